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
from gemma_tpu.text import CallReader


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """`tools`: functions as JSON schemas that the model is told of. `forced`: it must call one. `parallel`: or several.

    `only`: the one that must be called.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    forced: bool = False
    only: str | None = None
    parallel: bool = True

    def options(self, model: Model) -> dict[str, Any]:
        """Keyword arguments of `Model.stream`. APIError if calls are forced and cannot be guaranteed."""
        if not self.tools:
            return {}
        options: dict[str, Any] = {"tools": self.tools}
        if self.forced:
            if model.format.call_grammar is None:
                message = "tool_choice: this server cannot guarantee calls; with auto the model decides"
                raise APIError(400, message, param="tool_choice", code="unsupported_parameter")
            callable_tools = [tool for tool in self.tools if self.only in (None, tool["name"])]
            options["grammar"] = Grammar.lark(model.format.call_grammar(callable_tools, parallel=self.parallel))
        return options


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call in an answer, with a new id; `arguments` as JSON text."""

    name: str
    arguments: str
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)


class Parts:
    """Separates the text of an answer from calls; `parts` is what has come so far, neighbouring texts joined.

    White space before a call is left out, and so is that after one unless it is between texts.
    """

    def __init__(self, reader: CallReader | None, parallel: bool) -> None:
        self._reader, self._parallel = reader, parallel
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
        return self._told(self._reader.push(piece)) if self._reader else self._keep([piece])

    def flush(self) -> list[str | ToolCall]:
        """The rest, when the answer has ended."""
        told = self._told(self._reader.flush()) if self._reader else []
        space, self._space = self._space, ""
        return [*told, *self._keep([space] * bool(space and not self.calls))]

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
