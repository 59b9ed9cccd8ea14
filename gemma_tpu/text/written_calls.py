"""Calls of functions as Gemma 3 writes them, which has no tokens for them: Python, JSON, and either of them fenced.

The two forms that Google documents (ai.google.dev/gemma/docs/capabilities/function-calling) are `[f(x=1), g()]` and
`{"name": "f", "parameters": {"x": 1}}`. The model also writes lists of the latter, a call at the beginning of a line,
and code blocks, with `print(…)` around a call, as in Google's tutorials.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gemma_tpu.text.tools import MAX_DEPTH, Call, call_of

_FENCE = "```"
_LANGUAGE = re.compile(r"\w*")
_SPACE = re.compile(r"\s*")
_BEGINNING = re.compile(r"[`\[{]|^[A-Za-z_]", re.MULTILINE)  # of what may be a call
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_WORD = re.compile(r"[-+.\w]+")  # a number too
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U00[01][0-9a-fA-F]{5}|x[0-9a-fA-F]{2}|\r?\n|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": "", "\r\n": ""}
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_KEYS = ("name", "parameters", "arguments", "type", "function", "id")  # of a call as JSON
_CLOSING = {"`": "`", "[": "]", "{": "}"}  # the end of what begins so; of a call in Python, )
_SHORT = 256  # characters that are read again with every piece
_LONG = 1024  # and that are read again with every piece that may be the end
_PRINT = "print"


class _Incomplete(Exception):
    """The text ends before it is certain whether it is a call."""


class WrittenCalls:
    """Separates calls from the text around them, see `CallReader`.

    `tools`: functions as `gemma_tpu.text.tools.read_tools` gives them; others are not called. What is malformed or
    truncated stays in the text. Those named by `strict` are called by JSON alone, which begins as `json_call_begins`
    says.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]], strict: Sequence[str] = ()) -> None:
        self._tools = {tool["name"]: _Tool.of(tool, strict) for tool in tools}
        self._held = ""  # begins with what may be a call
        self._enough = 0  # so many characters are read again
        self._line_begins = True  # where the held text does

    def push(self, text: str) -> list[str | Call]:
        may_end = len(self._held) <= _SHORT or _CLOSING.get(self._held[0], ")") in text
        self._held += text
        return self._read(final=False) if may_end and len(self._held) >= self._enough else []

    def flush(self) -> list[str | Call]:
        return self._read(final=True)

    def _read(self, final: bool) -> list[str | Call]:
        pieces: list[str | Call] = []
        text, released, at = self._held, 0, 0
        while found := self._beginning(at):
            notation = _Notation(text, found.start(), self._tools)
            try:
                calls = notation.calls()
            except _Incomplete:
                if not final:
                    at = found.start()
                    break
                calls = notation.fenced_so_far()
            except ValueError:
                calls = []
            if calls:
                pieces += [text[released : found.start()], *calls]
                released = at = notation.at
            else:
                at = found.start() + 1
        else:
            at = len(text)
        pieces.append(text[released:at])
        # What is long and does not end is read more and more rarely, for time in proportion to its length.
        self._enough = (len(text) - at) * 5 // 4 if len(text) - at > _LONG else 0
        if at:
            self._line_begins = text[at - 1] == "\n"
        self._held = text[at:]
        return [piece for piece in pieces if piece]

    def _beginning(self, at: int) -> re.Match[str] | None:
        found = _BEGINNING.search(self._held, at)
        if found and found.start() == 0 and not self._line_begins and found[0].isalpha():
            found = _BEGINNING.search(self._held, 1)
        return found


def json_call_begins(name: str) -> str:
    """A regular expression of a call's beginning as JSON, up to the arguments."""
    space = r"[ \n\t]{0,20}"
    parts = (r"\{", '"name"', ":", f'"{re.escape(name)}"', ",", '"(parameters|arguments)"', ":")
    return space.join(parts)


class _Tool(NamedTuple):
    parameters: list[str]
    begins: re.Pattern[str] | None  # of a call, if it is strict

    @classmethod
    def of(cls, tool: Mapping[str, Any], strict: Sequence[str]) -> _Tool:
        parameters, name = tool.get("parameters"), tool["name"]
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        begins = re.compile(json_call_begins(name)) if name in strict else None
        return cls(list(properties) if isinstance(properties, Mapping) else [], begins)


class _Notation:
    """Reads calls at a place of a text; `at` is then behind them. ValueError where there is none, or `_Incomplete`."""

    def __init__(self, text: str, at: int, tools: Mapping[str, _Tool]) -> None:
        self.at = at
        self._text, self._tools = text, tools
        self._inside_fence: list[Call] = []

    def calls(self) -> list[Call]:
        if not self._take(_FENCE):
            return self._item()
        self._match(_LANGUAGE)
        self._space()
        while not self._take(_FENCE):
            self._inside_fence += self._item()
            self._space()
        return self._inside_fence

    def fenced_so_far(self) -> list[Call]:
        """Those of a block that is whole but for its closing fence."""
        return self._inside_fence if self.at == len(self._text) else []

    def _item(self) -> list[Call]:
        if self._peek() == "{":
            return [self._json_call()]
        if self._take("["):
            calls = list(self._elements("]", self._call))
            if not calls:
                raise ValueError("an empty list")
            return calls
        if self._take(f"{_PRINT}("):
            call = self._call()
            self._expect(")")
            return [call]
        return [self._call()]

    def _call(self) -> Call:
        return self._json_call() if self._peek() == "{" else self._python_call()

    def _python_call(self) -> Call:
        name = self._match(_NAME)
        if self.at == len(self._text) and any(known.startswith(name) for known in (*self._tools, _PRINT)):
            raise _Incomplete
        if name not in self._tools or self._tools[name].begins or not self._take("("):
            raise ValueError(f"{name!r} is no call")
        arguments: dict[str, Any] = {}
        names = self._tools[name].parameters
        for i, (keyword, value) in enumerate(self._elements(")", self._argument)):
            key = keyword if keyword or i >= len(names) else names[i]
            if not key or key in arguments:
                raise ValueError(f"argument {i} of {name} has no name of its own")
            arguments[key] = value
        return call_of(name, arguments)

    def _argument(self) -> tuple[str | None, Any]:
        start = self.at
        if _NAME.match(self._text, start):
            keyword = self._match(_NAME)
            self._space()
            if self._take("="):
                self._space()
                return keyword, self._value()
            self.at = start
        return None, self._value()

    def _json_call(self) -> Call:
        start, given = self.at, self._object(_KEYS)
        inner = given.get("function", given)
        name = inner.get("name") if isinstance(inner, dict) else None
        if not isinstance(name, str) or name not in self._tools:
            raise ValueError("an object that is no call")
        if (begins := self._tools[name].begins) and not begins.match(self._text, start):
            raise ValueError("a call in another form than a strict one")
        arguments = inner.get("parameters", inner.get("arguments", {}))
        if isinstance(arguments, str):  # as in OpenAI's API
            arguments = _Notation(arguments.strip(), 0, {})._whole_object()
        if not isinstance(arguments, dict):
            raise ValueError("arguments that are no object")
        return call_of(name, arguments)

    def _value(self, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        first = self._peek()
        if first in "\"'":
            return self._string()
        if first == "{":
            return self._object((), depth)
        if first in "[(":
            self.at += 1
            return list(self._elements("])"["[(".index(first)], lambda: self._value(depth + 1)))
        word = self._match(_WORD)
        if self.at == len(self._text):
            raise _Incomplete
        value = _WORDS[word] if word in _WORDS else json.loads(word.removeprefix("+"))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{word} is no number of JSON")
        return value

    def _object(self, keys: Sequence[str], depth: int = 0) -> dict[str, Any]:
        """With `keys`, ValueError at the first key that is none of them."""
        self._expect("{")

        def entry() -> tuple[str, Any]:
            key = self._string()
            if keys and key not in keys:
                raise ValueError(f"the key {key!r}")
            self._space()
            self._expect(":")
            self._space()
            return key, self._value(depth + 1)

        return dict(self._elements("}", entry))

    def _whole_object(self) -> dict[str, Any]:
        try:
            return self._object(())
        except _Incomplete as error:
            raise ValueError("the text ends within the object") from error

    def _elements(self, closing: str, read: Callable[[], Any]) -> Iterator[Any]:
        """What `read` reads, between commas, up to `closing`."""
        self._space()
        while not self._take(closing):
            yield read()
            self._space()
            if self._peek() != closing:
                self._expect(",")
                self._space()

    def _string(self) -> str:
        quote = self._peek()
        if quote not in "\"'":
            raise ValueError("no string")
        quote = 3 * quote if self._text.startswith(3 * quote, self.at) else quote
        start = end = self.at + len(quote)
        while (end := self._text.find(quote, end)) >= 0:
            escapes = end - len(self._text[start:end].rstrip("\\")) - start
            if escapes % 2 == 0:
                self.at = end + len(quote)
                return _unescaped(self._text[start:end])
            end += 1
        raise _Incomplete

    def _space(self) -> None:
        self.at = _SPACE.match(self._text, self.at).end()  # pyright: ignore[reportOptionalMemberAccess]

    def _peek(self) -> str:
        if self.at == len(self._text):
            raise _Incomplete
        return self._text[self.at]

    def _take(self, expected: str) -> bool:
        """Whether `expected` comes next, which is then behind."""
        if self._text.startswith(expected, self.at):
            self.at += len(expected)
            return True
        if expected.startswith(self._text[self.at :]):
            raise _Incomplete
        return False

    def _expect(self, expected: str) -> None:
        if not self._take(expected):
            raise ValueError(f"no {expected} at {self.at}")

    def _match(self, pattern: re.Pattern[str]) -> str:
        if (found := pattern.match(self._text, self.at)) is None:
            raise ValueError(f"nothing of a call at {self.at}")
        self.at = found.end()
        return found[0]


def _unescaped(text: str) -> str:
    """A string of Python or JSON. What neither of them escapes stays as it is."""

    def character(found: re.Match[str]) -> str:
        escaped = found[1]
        if escaped[0] in "uUx" and len(escaped) > 1:
            code = int(escaped[1:], 16)
            return chr(code) if code <= sys.maxunicode else found[0]
        return _ESCAPES.get(escaped, escaped if escaped in "\\'\"/" else found[0])

    text = _ESCAPE.sub(character, text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON has surrogate pairs
