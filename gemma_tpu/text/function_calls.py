"""Parses the function calls in FunctionGemma's answers."""

from __future__ import annotations

import json
import re
from typing import Any

_CALL = re.compile(r"<start_function_call>call:([^{<]+)(\{.*?\})(?:<end_function_call>|$)", re.DOTALL)
_ESCAPE = "<escape>"
_WORD = re.compile(r"[^,\]}]+")


def parse_calls(text: str) -> list[dict[str, Any]]:
    """The calls in an answer, as in messages: `{"type": "function", "function": {"name", "arguments"}}`.

    Truncated or malformed calls are skipped; they remain in the text.
    """
    calls = []
    for match in _CALL.finditer(text):
        reader = _Reader(match[2])
        try:
            arguments = reader.read()
        except (ValueError, IndexError):
            continue
        if reader.position == len(reader.text):
            calls.append({"type": "function", "function": {"name": match[1].strip(), "arguments": arguments}})
    return calls


def text_before_calls(text: str) -> str:
    """The text of an answer before its first call."""
    return text.partition("<start_function_call>")[0]


class _Reader:
    """Parses one value in FunctionGemma's notation. ValueError or IndexError if malformed."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0

    def read(self) -> Any:
        if self.text.startswith(_ESCAPE, self.position):
            end = self.text.index(_ESCAPE, self.position + len(_ESCAPE))
            value = self.text[self.position + len(_ESCAPE) : end]
            self.position = end + len(_ESCAPE)
            return value
        if self.text[self.position] == "{":
            return dict(self._entries("}"))
        if self.text[self.position] == "[":
            return [value for _, value in self._entries("]")]
        match = _WORD.match(self.text, self.position)
        if match is None:
            raise ValueError(f"no value at {self.position}")
        self.position = match.end()
        word = match[0].strip()
        try:
            return json.loads(word)
        except ValueError:
            return word  # a string without <escape> around it

    def _entries(self, closing: str):
        self.position += 1
        while self.text[self.position] != closing:
            key = ""
            if closing == "}":
                colon = self.text.index(":", self.position)
                key, self.position = (
                    self.text[self.position : colon].strip().removeprefix(_ESCAPE).removesuffix(_ESCAPE),
                    colon + 1,
                )
            yield key, self.read()
            if self.text[self.position] == ",":
                self.position += 1
            elif self.text[self.position] != closing:
                raise ValueError(f"neither , nor {closing} at {self.position}")
        self.position += 1
