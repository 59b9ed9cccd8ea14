"""Conversations as the visitor's browser keeps them: over a refresh of the page, and a restart of the server.

They are in the tab's session storage (static/keep.js): each tab has its own, and nothing stays when it is closed.
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

_VERSION = 2
_WHOLE = 200_000  # bytes of a file that is kept as it is
_SIDE = 1024  # pixels of what is kept of a larger one: more than the model sees of a picture at once
_EXAMPLES = Path(__file__).parent / "examples"


@dataclasses.dataclass(eq=False)
class KeptAnswer:
    """An answer of an earlier visit (`demo.chat.Written`). `lines`: its statistics by language, if it came to them."""

    text: str
    cut: bool
    lines: dict[str, str]
    error: Exception | None = None
    forgotten: int = 0
    done: bool = True
    waiting_for: int | None = None

    def stop(self) -> None:
        pass

    def statistics(self, lang: str) -> str:
        return escape(self.lines.get(lang) or text("ended_cancelled", lang))


class _Turn(pydantic.BaseModel):
    question: str
    pictures: tuple[str, ...]
    answer: str
    cut: bool
    statistics: dict[str, str]
    fresh: bool
    lost: int


class _Kept(pydantic.BaseModel):
    """`laid`: paths, see `Conversation`. `pictures`: files in base64, by the path that they had; of those that the
    browser does not have yet.

    `shortened`: the browser had no room for the oldest turns.
    """

    version: Literal[2] = _VERSION
    turns: list[_Turn]
    start: int
    laid: tuple[str, ...]
    pictures: dict[str, str]
    shortened: bool = False


class _Stored(pydantic.BaseModel):
    """What static/keep.js hands over: what it keeps ("" if nothing), and what was typed and not sent."""

    kept: str
    draft: str


def pack(conversation: Conversation, new: Iterable[str] = ()) -> str:
    """What the browser is given to keep; with the pictures at the paths `new`, which it has not been given yet."""
    turns, start, laid = conversation.state
    packed = [
        _Turn(
            question=turn.question,
            pictures=turn.pictures,
            answer=turn.answer.text,
            # One that is being written when the page is left is stopped.
            cut=turn.answer.cut if turn.answer.done else bool(turn.answer.text),
            statistics={lang: turn.answer.statistics(lang) for lang in ("en", "zh")} if turn.answer.done else {},
            fresh=turn.fresh,
            lost=turn.lost,
        )
        for turn in turns
    ]
    pictures = {path: _small(path) for path in new}
    return _Kept(turns=packed, start=start, laid=laid, pictures=pictures).model_dump_json()


def unpack(stored: str, conversation: Conversation) -> tuple[str, list[str], bool]:
    """Restores `conversation` from what the browser hands over.

    Returns what had been typed, the paths of pictures that are other files now, and whether all that was kept could be
    read. Files that are here no more are made again of what the browser has of them.
    """
    try:
        given = _Stored.model_validate_json(stored)
    except ValueError:
        return "", [], not stored
    try:
        kept = _Kept.model_validate_json(given.kept) if given.kept else None
    except ValueError:  # an older page has written it
        return given.draft, [], False
    if kept is None:
        return given.draft, [], True
    paths: dict[str, str] = {}
    for path in {path for turn in kept.turns for path in turn.pictures}:
        if (here := _here(path) or _saved(kept.pictures.get(path, ""))) is not None:
            paths[path] = here
    turns = []
    for turn in kept.turns:
        shown = tuple(paths[path] for path in turn.pictures if path in paths)
        answer = KeptAnswer(turn.answer, turn.cut, turn.statistics)
        turns.append(
            Turn(turn.question, shown, answer, turn.fresh, max(0, turn.lost) + len(turn.pictures) - len(shown))
        )
    start = min(max(0, kept.start), len(turns))
    conversation.restore(turns, start, [paths[path] for path in kept.laid if path in paths])
    return given.draft, [here for path, here in paths.items() if here != path], not kept.shortened


def _here(path: str) -> str | None:
    """`path` if it is a picture of this page: no other file of this machine may be named."""
    folders = (Path(get_upload_folder()), _EXAMPLES)
    try:
        whole = Path(path).resolve()
        found = any(whole.is_relative_to(folder.resolve()) for folder in folders) and whole.is_file()
    except (ValueError, OSError):  # no path at all
        return None
    return path if found else None


def _saved(data: str) -> str | None:
    try:
        content = base64.b64decode(data, validate=True)
        gemma_tpu.load_image(content)
    except (binascii.Error, ValueError):
        return None
    return save_bytes_to_cache(content, "picture.png", get_upload_folder())


def _small(path: str) -> str:
    """The file at `path` in base64, or a smaller picture of it."""
    content = Path(path).read_bytes()
    if len(content) > _WHOLE:
        image, file = gemma_tpu.load_image(path), io.BytesIO()
        image.thumbnail((_SIDE, _SIDE))
        image.save(file, "JPEG", quality=85)
        content = file.getvalue()
    return base64.b64encode(content).decode()
