"""Calls of functions: what a request asks of them, and an answer's text and calls in order."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_tpu.api import Model
from gemma_tpu.grammar import Grammar
from gemma_tpu.server.errors import APIError
from gemma_tpu.text import Call, CallReader, Format


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """`tools`: functions as JSON schemas that the model is told of. `forced`: it must call one. `parallel`: or several.

    `only`: the one that must be called. `strict`: the names of those whose arguments follow their schemas. `answer`:
    the schema of an answer that calls nothing; None is any text.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    forced: bool = False
    only: str | None = None
    parallel: bool = True
    strict: Sequence[str] = ()
    answer: Mapping[str, Any] | None = None

    def options(self, model: Model) -> dict[str, Any]:
        """Keyword arguments of `Model.stream`. APIError for schemas that calls cannot be held to."""
        if not self.tools:
            return {}
        try:
            grammar = self._grammar(model.format)
        except ValueError as error:
            raise APIError(400, str(error), param="tools", code="invalid_value") from error
        return {"tools": self.tools} | ({"grammar": Grammar.lark(grammar)} if grammar else {})

    def _grammar(self, format: Format) -> str | None:
        """Of the answer, unless anything may be written."""
        if not (self.forced or self.answer or self.strict) or not (format.call_grammar and format.text_grammar):
            return None
        if self.forced:
            wanted = [tool for tool in self.tools if self.only in (None, tool["name"])]
            return format.call_grammar(wanted, parallel=self.parallel)
        if self.answer:
            return format.call_grammar(self.tools, parallel=self.parallel, answer=self.answer)
        return format.text_grammar(self.tools, self.strict)

    def parts(self, format: Format) -> Parts:
        """What separates the calls in an answer from its text."""
        reader = format.call_reader(self.tools, self.strict) if self.tools else None
        return Parts(reader, self.parallel, either=self.answer is not None)


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call in an answer, with a new id; `arguments` as JSON text."""

    name: str
    arguments: str
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)


class Parts:
    """Separates the text of an answer from calls; `parts` is what has come so far, neighbouring texts joined.

    White space before a call is left out, and so is that after one unless it is between texts. With `either`, an answer
    that does not begin with a call is all text.
    """

    def __init__(self, reader: CallReader | None, parallel: bool, *, either: bool = False) -> None:
        self._reader, self._parallel = reader, parallel
        self._undecided = "" if either else None  # the answer so far, until it is known whether it begins with a call
        self._space = ""
        self.parts: list[str | ToolCall] = []

    @property
    def calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    def push(self, piece: str) -> list[str | ToolCall]:
        """The parts that are certain with `piece`."""
        if self._reader is None:
            return self._keep([piece])
        return self._told(self._decided(piece, self._reader.push(piece)))

    def flush(self) -> list[str | ToolCall]:
        """The rest, when the answer has ended."""
        told = self._told(self._decided("", self._reader.flush())) if self._reader else []
        space, self._space = self._space, ""
        return [*told, *self._keep([space] * bool(space and not self.calls))]

    def _decided(self, text: str, pieces: list[str | Call]) -> list[str | Call]:
        """`pieces`, which `text` was read as, unless all is text."""
        if self._undecided is None:
            return pieces
        self._undecided += text
        if not pieces:
            return []
        whole, self._undecided = self._undecided, None
        if not isinstance(pieces[0], str):
            return pieces
        self._reader = None
        return [whole]

    def _told(self, pieces: Sequence[str | Mapping[str, Any]]) -> list[str | ToolCall]:
        told: list[str | ToolCall] = []
        for piece in pieces:
            if isinstance(piece, str):
                text = self._space + piece
                if self.calls and not self.text:
                    text = text.lstrip()
                kept = text.rstrip()
                self._space = text[len(kept) :]
                told += self._keep([kept] * bool(kept))
            elif self._parallel or not self.calls:
                self._space = ""
                function = piece["function"]
                arguments = json.dumps(function["arguments"], ensure_ascii=False)
                told += self._keep([ToolCall(function["name"], arguments)])
        return told

    def _keep(self, parts: list[str | ToolCall]) -> list[str | ToolCall]:
        for part in parts:
            if isinstance(part, str) and self.parts and isinstance(self.parts[-1], str):
                self.parts[-1] += part
            else:
                self.parts.append(part)
        return parts
