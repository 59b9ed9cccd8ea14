"""Conversations in the browser's session storage (static/session_storage.js): they survive a reload and a restart.

Each browser tab has its own, which ends when the tab is closed.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Literal

import pydantic
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

import gemma_tpu
from demo.chat import Conversation, Turn
from demo.texts import text

_VERSION = 3
_MAX_BYTES = 200_000  # of a file that is stored unchanged
_MAX_SIDE = 1024  # pixels to which a larger one is scaled; the model sees fewer
_EXAMPLES = Path(__file__).parent / "examples"


@dataclasses.dataclass(eq=False)
class StoredAnswer:
    """An answer of an earlier visit (`demo.chat.AnyAnswer`). `lines`: its statistics by language, if it was done."""

    text: str
    can_continue: bool
    lines: dict[str, str]
    error: Exception | None = None
    forgotten: int = 0
    done: bool = True
    queue_position: int | None = None

    def stop(self) -> None:
        pass

    def statistics(self, lang: str) -> str:
        return escape(self.lines.get(lang) or text("ended_cancelled", lang))


class _Turn(pydantic.BaseModel):
    question: str
    pictures: tuple[str, ...]
    answer: str
    can_continue: bool
    statistics: dict[str, str]
    fresh: bool
    lost: int


class _StoredConversation(pydantic.BaseModel):
    """`start` and `attached`: see `Conversation.state`. `pictures`: files in base64 by their former path.

    `shortened`: the browser had no room for the oldest turns.
    """

    version: Literal[3] = _VERSION
    turns: list[_Turn]
    start: int
    attached: tuple[str, ...]
    pictures: dict[str, str]
    shortened: bool = False


class _BrowserState(pydantic.BaseModel):
    """What static/session_storage.js sends: the stored conversation ("" if none) and the text typed but not sent."""

    kept: str
    draft: str


def pack(conversation: Conversation, new: Iterable[str] = ()) -> str:
    """The conversation for the browser to store, with the pictures at the paths `new`, which it does not have yet."""
    turns, start, attached = conversation.state
    packed = [
        _Turn(
            question=turn.question,
            pictures=turn.pictures,
            answer=turn.answer.text,
            # Leaving the page stops an unfinished answer.
            can_continue=turn.answer.can_continue if turn.answer.done else bool(turn.answer.text),
            statistics={lang: turn.answer.statistics(lang) for lang in ("en", "zh")} if turn.answer.done else {},
            fresh=turn.fresh,
            lost=turn.lost,
        )
        for turn in turns
    ]
    pictures = {path: _encode(path) for path in new}
    stored = _StoredConversation(turns=packed, start=start, attached=attached, pictures=pictures)
    return stored.model_dump_json()


def unpack(stored: str, conversation: Conversation) -> tuple[str, list[str], bool]:
    """Restores `conversation` from what the browser sends.

    Returns the unsent text, the paths of pictures whose files were recreated from the browser's copies, and whether
    everything stored could be restored.
    """
    try:
        state = _BrowserState.model_validate_json(stored)
    except ValueError:
        return "", [], not stored
    try:
        kept = _StoredConversation.model_validate_json(state.kept) if state.kept else None
    except ValueError:  # written by another version
        return state.draft, [], False
    if kept is None:
        return state.draft, [], True
    paths: dict[str, str] = {}
    for path in {path for turn in kept.turns for path in turn.pictures}:
        if (file := _existing(path) or _recreate(kept.pictures.get(path, ""))) is not None:
            paths[path] = file
    turns = []
    for turn in kept.turns:
        found = tuple(paths[path] for path in turn.pictures if path in paths)
        answer = StoredAnswer(turn.answer, turn.can_continue, turn.statistics)
        lost = max(0, turn.lost) + len(turn.pictures) - len(found)
        turns.append(Turn(turn.question, found, answer, turn.fresh, lost))
    start = min(max(0, kept.start), len(turns))
    conversation.restore(turns, start, [paths[path] for path in kept.attached if path in paths])
    return state.draft, [file for path, file in paths.items() if file != path], not kept.shortened


def _existing(path: str) -> str | None:
    """`path` if it is an uploaded or example picture; a visitor must not name other files."""
    folders = (Path(get_upload_folder()), _EXAMPLES)
    try:
        resolved = Path(path).resolve()
        allowed = any(resolved.is_relative_to(folder.resolve()) for folder in folders) and resolved.is_file()
    except (ValueError, OSError):  # not a valid path
        return None
    return path if allowed else None


def _recreate(data: str) -> str | None:
    try:
        content = base64.b64decode(data, validate=True)
        gemma_tpu.load_image(content)
    except (binascii.Error, ValueError):
        return None
    return save_bytes_to_cache(content, "picture.png", get_upload_folder())


def _encode(path: str) -> str:
    """The file at `path` in base64, scaled down if it is large."""
    content = Path(path).read_bytes()
    if len(content) > _MAX_BYTES:
        image, file = gemma_tpu.load_image(path), io.BytesIO()
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
        image.save(file, "JPEG", quality=85)
        content = file.getvalue()
    return base64.b64encode(content).decode()
