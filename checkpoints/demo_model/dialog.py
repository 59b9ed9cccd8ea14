"""Turns and conversations: what every task generator returns."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
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
            content = [text, *shown] if turn.image_last else [*shown, text]
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": plain(turn.answer)})
        return messages[:-1]


def correct(turn: Turn, answer: str) -> bool:
    """Whether `answer` is right for `turn`, judged on its meaning where more than one wording is right."""
    answer = answer.strip()
    if turn.check == "scope":
        low = answer.lower()
        return ("demo" in low and "real" in low and "checkpoint" in low) or ("演示" in low and "检查点" in low)
    if turn.check == "json":
        try:
            return json.loads(answer) == json.loads(plain(turn.answer))
        except json.JSONDecodeError:
            return False
    return re.sub(r"\s+", " ", answer) == re.sub(r"\s+", " ", plain(turn.answer))


def lower_effort(rng: np.random.Generator, question: str) -> str:
    """Now and then the way people type: in lower case, without a question mark or a capital, with a space too many."""
    if rng.random() < 0.6:
        return question
    if rng.random() < 0.4:
        question = question.lower()
    elif rng.random() < 0.5:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.4:
        question = question.rstrip("?.。？")
    if rng.random() < 0.1:
        question = question + " "
    return question
