"""FunctionGemma's prompt, with function declarations, calls and responses, and the calls in the model's answers.

Follows its chat template (guide: ai.google.dev/gemma/docs/functiongemma; public tests such as flutter_gemma's show its
output for many schemas). A value is a string between two <escape>, a bare number, true, false or null, `[…]`, or
`{key:…}` with sorted keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gemma_tpu.checks import as_tuple, brief, one_line
from gemma_tpu.text.special import FUNCTION_PIECES
from gemma_tpu.text.template import Messages, PromptBuilder, answer_text, check_turns, content_parts

# The template's default developer message, which enables function calling.
DEFAULT_DEVELOPER = "You are a model that can do function calling with the following functions"
_DECLARATION = ("<start_function_declaration>", "<end_function_declaration>")
_CALL = ("<start_function_call>", "<end_function_call>")
_RESPONSE = ("<start_function_response>", "<end_function_response>")
STOP = _RESPONSE[0]  # ends an answer after a call: the caller writes the response
_ESCAPE = "<escape>"
_CALL_TEXT = re.compile(rf"{_CALL[0]}call:([^{{<]+)(\{{.*?\}})(?:{_CALL[1]}|$)", re.DOTALL)
_WORD = re.compile(r"[^,\]}]+")
_MAX_DEPTH = 64  # nesting of values in a schema, call or response
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
    tools = () if tools is None else as_tuple("tools", tools)
    if developer is not None or tools:
        builder.begin_turn("developer")
        builder.text((DEFAULT_DEVELOPER if developer is None else developer).strip())
        for i, tool in enumerate(tools):
            _write(builder, _declaration(tool, f"tools[{i}]"))
        builder.end_turn()
    calls: list[Mapping[str, Any]] = []  # calls that have no response yet
    in_model_turn = False
    for i, (location, role, message) in enumerate(turns):
        if role == "tool":
            for name, response in _responses(message, calls, location):
                response = response if isinstance(response, Mapping) else {"value": response}
                _write(builder, _wrapped(_RESPONSE, f"response:{name}", response))
        elif role == "user":
            builder.begin_turn(role)
            for at, kind, value in content_parts(message["content"], location):
                builder.image(value, at) if kind == "image" else builder.text(value.strip())
            builder.end_turn()
        else:
            _require_responses(calls, location)
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
    _require_responses(calls, turns[-1][0])
    if turns[-1][1] == "user":
        builder.begin_turn("model")


def _require_responses(calls: list[Mapping[str, Any]], location: str) -> None:
    if calls:
        names = ", ".join(call["name"] for call in calls)
        raise ValueError(f'{location}: no response to {names}: add {{"role": "tool", "content": …}} after the calls')


def read_calls(message: Mapping[str, Any], location: str) -> list[Mapping[str, Any]]:
    """The calls of an assistant message as `{"name", "arguments", "id"}`, with arguments as a mapping.

    ValueError, naming `location`, for what are none.
    """
    calls, given = [], message.get("tool_calls")
    if not isinstance(given, list | tuple | None):
        raise ValueError(f"{location}: tool_calls must be a list of calls, got {brief(given)}")
    for i, call in enumerate(given or ()):
        at = f"{location}.tool_calls[{i}]"
        function = call.get("function", call) if isinstance(call, Mapping) else call
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f'{at}: expected {{"function": {{"name": …, "arguments": …}}}}, got {brief(call)}')
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{at}: its arguments are no JSON: {one_line(error)}") from error
        if not isinstance(arguments, Mapping):
            raise ValueError(f"{at}: arguments must be an object, got {brief(arguments)}")
        _require_values(arguments, f"{at}: arguments")
        calls.append({"name": function["name"], "arguments": arguments, "id": call.get("id")})
    return calls


def _responses(message: Mapping[str, Any], calls: list[Mapping[str, Any]], location: str) -> Iterator[tuple[str, Any]]:
    """The (name, response) pairs of a tool message. Removes the answered calls from `calls`."""
    content = message["content"]
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, str | list | tuple):
        raise ValueError(f"{location}: a response must be text, an object or a list of those, got {brief(content)}")
    if isinstance(content, str) or all(isinstance(part, Mapping) and "type" in part for part in content):
        text = "".join(value for _, kind, value in content_parts(content, location) if kind == "text")
        content = [{"name": message.get("name"), "response": text}]
    for part in content:
        if not isinstance(part, Mapping) or "response" not in part:
            raise ValueError(
                f'{location}: expected {{"name": …, "response": …}}, a list of those, or text, got {brief(part)}'
            )
        name, call_id = part.get("name"), message.get("tool_call_id")
        answered = [
            call
            for call in calls
            if (name is None or call["name"] == name) and (call_id is None or call["id"] in (None, call_id))
        ]
        if not answered:
            raise ValueError(f"{location}: a response of {name or 'a function'}, which was not called")
        calls.remove(answered[0])
        _require_values(part["response"], location)
        yield answered[0]["name"], part["response"]


def _declaration(tool: Any, location: str) -> Pieces:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(
            f'{location}: expected a function as JSON schema, {{"name": …, "parameters": …}}, got {brief(tool)}'
        )
    location = f"{location} ({one_line(function['name'])[:80]})"
    _require_values(function, location)
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


def _require_values(value: Any, location: str, depth: int = 0) -> None:
    """ValueError unless `value` can be expressed in JSON."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"{location}: nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        if invalid := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{location}: keys must be strings, got {brief(invalid[0])}")
        for inner in value.values():
            _require_values(inner, location, depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for inner in value:
            _require_values(inner, location, depth + 1)
    elif not isinstance(value, str | bool | int | float | np.number | None):
        raise ValueError(f"{location}: holds {brief(value)}, which is not text, a number, a list or an object")
    elif isinstance(value, int) and abs(value) > 10**300:
        raise ValueError(f"{location}: holds {brief(value)}")


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


def parse_calls(text: str) -> list[dict[str, Any]]:
    """The calls in an answer, as in messages: `{"type": "function", "function": {"name", "arguments"}}`.

    Truncated or malformed calls are skipped; they remain in the text.
    """
    calls = []
    for match in _CALL_TEXT.finditer(text):
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
    return text.partition(_CALL[0])[0]


class _Reader:
    """Parses one value in FunctionGemma's notation. ValueError or IndexError if malformed."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0

    def read(self, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
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
