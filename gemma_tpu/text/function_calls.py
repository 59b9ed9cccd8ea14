"""FunctionGemma's answers: the calls in them."""

from __future__ import annotations

import json
import re
from typing import Any

_CALL = re.compile(r"<start_function_call>call:([^{<]+)(\{.*?\})(?:<end_function_call>|$)", re.DOTALL)
_ESCAPE = "<escape>"
_WORD = re.compile(r"[^,\]}]+")


def parse_calls(text: str) -> list[dict[str, Any]]:
    """The calls that an answer makes, as messages have them: `{"type": "function", "function": {"name", "arguments"}}`.

    A call that is cut off or not of the form is none: the text still has it.
    """
    calls = []
    for match in _CALL.finditer(text):
        reader = _Reader(match[2])
        try:
            arguments = reader.value()
        except (ValueError, IndexError):
            continue
        if reader.at == len(reader.text):
            calls.append({"type": "function", "function": {"name": match[1].strip(), "arguments": arguments}})
    return calls


def before_calls(text: str) -> str:
    """What an answer says before its first call."""
    return text.partition("<start_function_call>")[0]


class _Reader:
    """Reads one value of FunctionGemma's notation. ValueError or IndexError if there is none."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def value(self) -> Any:
        if self.text.startswith(_ESCAPE, self.at):
            end = self.text.index(_ESCAPE, self.at + len(_ESCAPE))
            value = self.text[self.at + len(_ESCAPE) : end]
            self.at = end + len(_ESCAPE)
            return value
        if self.text[self.at] == "{":
            return dict(self._entries("}"))
        if self.text[self.at] == "[":
            return [value for _, value in self._entries("]")]
        match = _WORD.match(self.text, self.at)
        if match is None:
            raise ValueError(f"no value at {self.at}")
        self.at = match.end()
        word = match[0].strip()
        try:
            return json.loads(word)
        except ValueError:
            return word  # a string that the model forgot to escape

    def _entries(self, closing: str):
        self.at += 1
        while self.text[self.at] != closing:
            key = ""
            if closing == "}":
                colon = self.text.index(":", self.at)
                key, self.at = self.text[self.at : colon].strip().removeprefix(_ESCAPE).removesuffix(_ESCAPE), colon + 1
            yield key, self.value()
            if self.text[self.at] == ",":
                self.at += 1
            elif self.text[self.at] != closing:
                raise ValueError(f"neither , nor {closing} at {self.at}")
        self.at += 1
