"""FunctionGemma's prompt, with function declarations, calls and responses, and the calls in the model's answers.

Follows its chat template (guide: ai.google.dev/gemma/docs/functiongemma; public tests such as flutter_gemma's show its
output for many schemas). A value is a string between two <escape>, a bare number, true, false or null, `[…]`, or
`{key:…}` with sorted keys.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemma_tpu.checks import brief
from gemma_tpu.text.special import FUNCTION_PIECES
from gemma_tpu.text.template import Messages, PromptBuilder, answer_text, check_turns, content_parts
from gemma_tpu.text.tools import (
    MAX_DEPTH,
    Call,
    call_of,
    read_calls,
    read_responses,
    read_tools,
    require_responses,
    tool_place,
)

# The template's default developer message, which enables function calling.
DEFAULT_DEVELOPER = "You are a model that can do function calling with the following functions"
_DECLARATION = ("<start_function_declaration>", "<end_function_declaration>")
_CALL = ("<start_function_call>", "<end_function_call>")
_RESPONSE = ("<start_function_response>", "<end_function_response>")
STOP = _RESPONSE[0]  # ends an answer after a call: the caller writes the response
_ESCAPE = "<escape>"
_CALL_TEXT = re.compile(rf"{_CALL[0]}call:([^{{<]+)(\{{.*?\}}){_CALL[1]}", re.DOTALL)
_LAST_CALL_TEXT = re.compile(rf"{_CALL_TEXT.pattern.removesuffix(_CALL[1])}(?:{_CALL[1]}|$)", re.DOTALL)
_WORD = re.compile(r"[^,\]}]+")
_FUNCTION_PIECE = re.compile(f"({'|'.join(FUNCTION_PIECES)})")
_SCHEMA_KEYS = ("description", "type", "properties", "required", "nullable")

Pieces = Iterator[tuple[bool, str]]  # (is a control piece, text)


def write_functions(builder: PromptBuilder, messages: Messages, continue_final: bool, tools: Any = None) -> None:
    """Writes the prompt for the model's next turn: a call or an answer.

    `tools`: functions as JSON schemas, `{"type": "function", "function": {"name", "description", "parameters"}}` or the
    inner object alone. The first message may have the role "developer" or "system"; without one, `DEFAULT_DEVELOPER`
    introduces the tools. An assistant message may have `tool_calls`, each `{"function": {"name", "arguments"}}` with
    arguments as a mapping or JSON text; messages of the role "tool" follow, whose content is `{"name", "response"}`, a
    list of these, or text (named by the message's `name`, else by the call it answers).

    ValueError, naming the message, for anything else, and for a vocabulary that lacks the pieces.
    """
    developer, turns = check_turns(messages, continue_final, tools=True)
    functions = read_tools(tools)
    if developer is not None or functions:
        builder.begin_turn("developer")
        builder.text((DEFAULT_DEVELOPER if developer is None else developer).strip())
        for i, function in enumerate(functions):
            _write(builder, _declaration(function, tool_place(i, function)))
        builder.end_turn()
    calls: list[Mapping[str, Any]] = []  # calls that have no response yet
    in_model_turn = False
    for i, (location, role, message) in enumerate(turns):
        if role == "tool":
            for name, response in read_responses(message, calls, location):
                response = response if isinstance(response, Mapping) else {"value": response}
                _write(builder, _wrapped(_RESPONSE, f"response:{name}", response))
        elif role == "user":
            builder.begin_turn(role)
            for at, kind, value in content_parts(message["content"], location):
                builder.image(value, at) if kind == "image" else builder.text(value.strip())
            builder.end_turn()
        else:
            require_responses(calls, location)
            if not in_model_turn:
                builder.begin_turn(role)
            calls = read_calls(message, location)
            if message.get("content") or not calls:
                text = answer_text(message["content"], location)
                if continue_final and i == len(turns) - 1:
                    _write(builder, _partial_answer(text))
                else:
                    builder.text(text)
            for call in calls:
                _write(builder, _wrapped(_CALL, f"call:{call['name']}", call["arguments"]))
            if not calls and not (continue_final and i == len(turns) - 1):
                builder.end_turn()
        in_model_turn = role == "tool" or bool(calls)
    require_responses(calls, turns[-1][0])
    if turns[-1][1] == "user":
        builder.begin_turn("model")


def _declaration(function: Mapping[str, Any], location: str) -> Pieces:
    declared: dict[str, Any] = {"description": _description(function, location)}
    if parameters := _object(function.get("parameters"), f"{location}: parameters"):
        properties = _properties(parameters, location)
        declared["parameters"] = ({"properties": properties} if properties else {}) | _required(parameters)
        declared["parameters"]["type"] = "OBJECT"
    return _wrapped(_DECLARATION, f"declaration:{function['name']}", declared)


# The declared parts of a schema. The template writes them in alphabetical order, as `_value` does.


def _properties(schema: Mapping[str, Any], location: str) -> dict[str, Any]:
    properties = _object(schema.get("properties"), f"{location}: properties")
    return {name: _property(name, part, f"{location}.{name}") for name, part in properties.items()}


def _property(name: str, schema: Any, location: str) -> dict[str, Any]:
    if name in _SCHEMA_KEYS:
        raise ValueError(f"{location}: FunctionGemma knows no parameter of the name {brief(name)}; call it another")
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if not isinstance(kind, str):
        raise ValueError(f"{location}: needs one type, such as 'string', got {brief(kind)}")
    declared: dict[str, Any] = {"description": _description(schema, location), "type": kind.upper()}
    if declared["type"] == "STRING" and schema.get("enum"):
        declared["enum"] = schema["enum"]
    elif declared["type"] == "OBJECT":
        declared |= {"properties": _properties(schema, location)} | _required(schema)
    elif declared["type"] == "ARRAY" and schema.get("items"):
        items = dict(_object(schema["items"], f"{location}: items"))
        if "properties" in items:
            items["properties"] = _properties(items, f"{location}[]")
        declared["items"] = items | ({"type": str(items["type"]).upper()} if "type" in items else {})
    return declared


def _required(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"required": schema["required"]} if schema.get("required") else {}


def _object(value: Any, location: str) -> Mapping[str, Any]:
    """A schema's object, {} for None."""
    if not isinstance(value, Mapping | None):
        raise ValueError(f"{location} must be an object, got {brief(value)}")
    return value or {}


def _description(schema: Mapping[str, Any], location: str) -> str:
    text = schema.get("description")
    if not isinstance(text, str | None):
        raise ValueError(f"{location}: description must be a string, got {brief(text)}")
    return text or ""


def _wrapped(delimiters: tuple[str, str], name: str, values: Mapping[str, Any]) -> Pieces:
    yield True, delimiters[0]
    yield False, name
    yield from _value(values)
    yield True, delimiters[1]


def _partial_answer(text: str) -> Pieces:
    """An answer to continue, possibly truncated within a call."""
    for part in _FUNCTION_PIECE.split(text):
        if part:
            yield part in FUNCTION_PIECES, part


def _value(value: Any) -> Pieces:
    if isinstance(value, str):
        yield from _string(value)
    elif isinstance(value, Mapping):
        for i, key in enumerate(sorted(value, key=str.lower)):
            yield False, f"{',' if i else '{'}{key}:"
            yield from _value(value[key])
        yield False, "}" if value else "{}"
    elif isinstance(value, Sequence):
        for i, item in enumerate(value):
            yield False, "," if i else "["
            yield from _value(item)
        yield False, "]" if value else "[]"
    else:
        yield False, json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _string(text: str) -> Pieces:
    yield True, _ESCAPE
    yield False, text
    yield True, _ESCAPE


def _write(builder: PromptBuilder, pieces: Pieces) -> None:
    for control, text in pieces:
        builder.control(builder.tokenizer.id(text)) if control else builder.text(text)


class FunctionCalls:
    """Separates FunctionGemma's calls from the text around them, see `CallReader`.

    A malformed call stays in the text, and so does a truncated one; one that lacks its last token alone is a call.
    """

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> list[str | Call]:
        self._held += text
        pieces = self._read(_CALL_TEXT)
        before, begun, rest = self._held.partition(_CALL[0])
        self._held = begun + rest
        return [*pieces, *[before] * bool(before)]

    def flush(self) -> list[str | Call]:
        pieces = self._read(_LAST_CALL_TEXT)
        rest, self._held = self._held, ""
        return [*pieces, *[rest] * bool(rest)]

    def _read(self, pattern: re.Pattern[str]) -> list[str | Call]:
        pieces: list[str | Call] = []
        at = 0
        for match in pattern.finditer(self._held):
            with contextlib.suppress(ValueError, IndexError):  # malformed
                call = call_of(match[1].strip(), _Reader.read_whole(match[2]))
                pieces += [self._held[at : match.start()], call]
                at = match.end()
        self._held = self._held[at:]
        return [piece for piece in pieces if piece]


class _Reader:
    """Parses one value in FunctionGemma's notation. ValueError or IndexError if malformed."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0

    @classmethod
    def read_whole(cls, text: str) -> Any:
        reader = cls(text)
        value = reader.read()
        if reader.position != len(text):
            raise ValueError(f"more than a value: {reader.position} of {len(text)} characters")
        return value

    def read(self, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        if self.text.startswith(_ESCAPE, self.position):
            end = self.text.index(_ESCAPE, self.position + len(_ESCAPE))
            value = self.text[self.position + len(_ESCAPE) : end]
            self.position = end + len(_ESCAPE)
            return value
        if self.text[self.position] == "{":
            return dict(self._entries("}", depth))
        if self.text[self.position] == "[":
            return [value for _, value in self._entries("]", depth)]
        match = _WORD.match(self.text, self.position)
        if match is None:
            raise ValueError(f"no value at {self.position}")
        self.position = match.end()
        word = match[0].strip()
        try:
            return json.loads(word)
        except ValueError:
            return word  # a string without <escape> around it

    def _entries(self, closing: str, depth: int):
        self.position += 1
        while self.text[self.position] != closing:
            key = ""
            if closing == "}":
                colon = self.text.index(":", self.position)
                key, self.position = (
                    self.text[self.position : colon].strip().removeprefix(_ESCAPE).removesuffix(_ESCAPE),
                    colon + 1,
                )
            yield key, self.read(depth + 1)
            if self.text[self.position] == ",":
                self.position += 1
            elif self.text[self.position] != closing:
                raise ValueError(f"neither , nor {closing} at {self.position}")
        self.position += 1
