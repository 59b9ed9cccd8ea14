"""Turns, conversations and groups of them: what every task generator returns."""

from __future__ import annotations

import dataclasses
from typing import Any

from PIL import Image

# A span between these marks is written letter by letter, whatever longer pieces the vocabulary has: a word that was
# read or reversed is then spelt rather than recalled. The marks themselves are in no text.
SPELL_START, SPELL_END = "\ue000", "\ue001"


def spell(word: str) -> str:
    """Marks `word` to be written letter by letter."""
    return f"{SPELL_START}{word}{SPELL_END}"


def plain(answer: str) -> str:
    """The answer as a user reads it."""
    return answer.replace(SPELL_START, "").replace(SPELL_END, "")


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question and its answer. `images` index the conversation's images shown in this turn.

    `task` is what accuracy is counted by. `check` is how an answer is judged: "exact", "json" (the same value) or
    "scope" (says in any words that it is the small demo model and that a real checkpoint is needed).
    """

    task: str
    question: str
    answer: str
    check: str = "exact"
    images: tuple[int, ...] = ()
    image_last: bool = False


@dataclasses.dataclass(frozen=True)
class Conversation:
    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...] = ()
    system: str | None = None

    def messages(self) -> list[dict[str, Any]]:
        """The prompt for the last turn's answer, in the public API's message format."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            text = {"type": "text", "text": turn.question}
            shown = [{"type": "image", "image": self.images[i]} for i in turn.images]
            messages.append({"role": "user", "content": [text, *shown] if turn.image_last else [*shown, text]})
            messages.append({"role": "assistant", "content": plain(turn.answer)})
        return messages[:-1]


@dataclasses.dataclass(frozen=True)
class Group:
    """Conversations that begin with the same images and system text, so that these are computed once."""

    conversations: tuple[Conversation, ...]
    images: tuple[Image.Image, ...] = ()
