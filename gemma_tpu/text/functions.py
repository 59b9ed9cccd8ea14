"""FunctionGemma's prompt: declarations of functions, the model's calls of them, and their responses.

As its chat template renders it (Google's guide: ai.google.dev/gemma/docs/functiongemma; its output for many schemas is
in public tests, such as flutter_gemma's). A value is a string between two <escape>, a bare number, true, false or null,
`[…]` or `{key:…}` with its keys sorted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gemma_tpu import image as image_lib
from gemma_tpu.checks import as_tuple, one_line, shown
from gemma_tpu.text.special import FUNCTION_PIECES
from gemma_tpu.text.template import LoadImage, Messages, Prompt, PromptBuilder, answer_text, content_parts
from gemma_tpu.text.tokenizer import Tokenizer

# What the template says where messages begin without a developer's; the model calls functions because of it.
DEVELOPER = "You are a model that can do function calling with the following functions"
_DECLARATION = ("<start_function_declaration>", "<end_function_declaration>")
_CALL = ("<start_function_call>", "<end_function_call>")
_RESPONSE = ("<start_function_response>", "<end_function_response>")
STOP = _RESPONSE[0]  # ends an answer that is a call: the response is not the model's to write
_ESCAPE = "<escape>"
_DEEPEST = 64  # of values in a schema, a call or a response
_FUNCTION_PIECE = re.compile(f"({'|'.join(FUNCTION_PIECES)})")
_SCHEMA_KEYS = ("description", "type", "properties", "required", "nullable")
_ROLES = {"user": "user", "assistant": "model", "model": "model", "tool": "tool"}

Pieces = Iterator[tuple[bool, str]]  # whether it is a control piece, and its text


def render_functions(
    messages: Messages,
    tokenizer: Tokenizer,
    num_soft_tokens: int | None,
    *,
    load_image: LoadImage = image_lib.load_image,
    pan_and_scan: bool = False,
    continue_final: bool = False,
    tools: Any = None,
) -> Prompt:
    """The prompt for the model's next words: a call, or an answer.

    `tools` are functions as JSON schemas, `{"type": "function", "function": {"name", "description", "parameters"}}` or
    the inner part alone. The first message may be the developer's ("developer" or "system"); without one, `DEVELOPER`
    introduces the tools. An assistant's message may have `tool_calls`, each `{"function": {"name", "arguments"}}` with
    arguments as a mapping or as JSON; then follow messages of the role "tool", whose content is `{"name", "response"}`,
    a list of those, or text (its name is `name`, or that of the call in its place).

    ValueError, naming the message, for anything not of this shape, and for a vocabulary without the pieces.
    """
    developer, turns = _check(messages)
    tools = () if tools is None else as_tuple("tools", tools)
    builder = PromptBuilder(tokenizer, num_soft_tokens, load_image, pan_and_scan)
    builder.begin()
    if developer is not None or tools:
        builder.begin_turn("developer")
        builder.text((DEVELOPER if developer is None else developer).strip())
        for i, tool in enumerate(tools):
            _write(builder, tokenizer, _declaration(tool, f"tools[{i}]"))
        builder.end_turn()
    calls: list[Mapping[str, Any]] = []  # those that have no response yet
    model_speaks = False
    for i, (where, role, message) in enumerate(turns):
        if role == "tool":
            for name, response in _responses(message, calls, where):
                response = response if isinstance(response, Mapping) else {"value": response}
                _write(builder, tokenizer, _wrapped(_RESPONSE, f"response:{name}", response))
        elif role == "user":
            builder.begin_turn(role)
            for at, kind, value in content_parts(message["content"], where):
                builder.image(value, at) if kind == "image" else builder.text(value.strip())
            builder.end_turn()
        else:
            _require_responses(calls, where)
            if not model_speaks:
                builder.begin_turn(role)
            if message.get("content"):
                text = answer_text(message["content"], where)
                if continue_final and i == len(turns) - 1:
                    _write(builder, tokenizer, _begun(text))
                else:
                    builder.text(text)
            calls = _calls(message, where)
            for call in calls:
                _write(builder, tokenizer, _wrapped(_CALL, f"call:{call['name']}", call["arguments"]))
            if not calls and not (continue_final and i == len(turns) - 1):
                builder.end_turn()
        model_speaks = role == "tool" or bool(calls)
    where, role, _ = turns[-1]
    _require_responses(calls, where)
    if role == "model" and not continue_final:
        raise ValueError(f"{where}: the last message is the assistant's; end with a user's or a tool's")
    if role == "user":
        builder.begin_turn("model")
    return builder.prompt()


def _require_responses(calls: list[Mapping[str, Any]], where: str) -> None:
    if calls:
        named = ", ".join(call["name"] for call in calls)
        raise ValueError(f'{where}: no response to {named}: add {{"role": "tool", "content": …}} after the calls')


def _check(messages: Messages) -> tuple[str | None, list[tuple[str, str, Mapping[str, Any]]]]:
    """The developer's text, and the other messages: where each stands, its role, itself."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages must be a list of messages, got {type(messages).__name__}")
    developer, turns = None, []
    allowed = ("user",)
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f'{where}: expected {{"role": …, "content": …}}, got {shown(message)}')
        if message["role"] in ("developer", "system"):
            if i:
                raise ValueError(f"{where}: a developer's message may only be the first")
            parts = list(content_parts(message.get("content"), where))
            if any(kind != "text" for _, kind, _ in parts):
                raise ValueError(f"{where}: a developer's message holds only text")
            developer = "".join(value for _, _, value in parts)
            continue
        role = _ROLES.get(message["role"]) if isinstance(message["role"], str) else None
        if role is None:
            raise ValueError(
                f"{where}: unknown role {shown(message['role'])}; known are developer, user, assistant and tool"
            )
        if role not in allowed:
            raise ValueError(f"{where}: role {shown(message['role'])} out of turn: {' or '.join(allowed)} comes here")
        if message.get("content") is None and not message.get("tool_calls"):
            raise ValueError(f"{where}: lacks content")
        turns.append((where, role, message))
        allowed = {
            "user": ("model",),
            "model": ("tool",) if message.get("tool_calls") else ("user",),
            "tool": ("tool", "model"),
        }[role]
    if not turns:
        raise ValueError("messages hold no message of a user")
    return developer, turns


def _calls(message: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """The calls of an assistant's message, each `{"name", "arguments"}` with arguments as a mapping."""
    calls, given = [], message.get("tool_calls")
    if not isinstance(given, list | tuple | None):
        raise ValueError(f"{where}: tool_calls must be a list of calls, got {shown(given)}")
    for i, call in enumerate(given or ()):
        at = f"{where}.tool_calls[{i}]"
        function = call.get("function", call) if isinstance(call, Mapping) else call
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f'{at}: expected {{"function": {{"name": …, "arguments": …}}}}, got {shown(call)}')
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{at}: its arguments are no JSON: {one_line(error)}") from error
        if not isinstance(arguments, Mapping):
            raise ValueError(f"{at}: arguments must be an object, got {shown(arguments)}")
        _require_values(arguments, f"{at}: arguments")
        calls.append({"name": function["name"], "arguments": arguments, "id": call.get("id")})
    return calls


def _responses(message: Mapping[str, Any], calls: list[Mapping[str, Any]], where: str) -> Iterator[tuple[str, Any]]:
    """Names and responses in a tool's message; takes the calls that they answer out of `calls`."""
    content = message["content"]
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, str | list | tuple):
        raise ValueError(f"{where}: a response must be text, an object or a list of those, got {shown(content)}")
    if isinstance(content, str) or all(isinstance(part, Mapping) and "type" in part for part in content):
        text = "".join(value for _, kind, value in content_parts(content, where) if kind == "text")
        content = [{"name": message.get("name"), "response": text}]
    for part in content:
        if not isinstance(part, Mapping) or "response" not in part:
            raise ValueError(
                f'{where}: expected {{"name": …, "response": …}}, a list of those, or text, got {shown(part)}'
            )
        name, call_id = part.get("name"), message.get("tool_call_id")
        answered = [
            call
            for call in calls
            if (name is None or call["name"] == name) and (call_id is None or call["id"] in (None, call_id))
        ]
        if not answered:
            raise ValueError(f"{where}: a response of {name or 'a function'}, which the message before does not call")
        calls.remove(answered[0])
        _require_values(part["response"], where)
        yield answered[0]["name"], part["response"]


def _declaration(tool: Any, where: str) -> Pieces:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(
            f'{where}: expected a function as JSON schema, {{"name": …, "parameters": …}}, got {shown(tool)}'
        )
    where = f"{where} ({one_line(function['name'])[:80]})"
    _require_values(function, where)
    yield True, _DECLARATION[0]
    yield False, f"declaration:{function['name']}{{description:"
    yield from _string(_description(function, where))
    if parameters := _object(function.get("parameters"), f"{where}: parameters"):
        yield False, ",parameters:{"
        if properties := _object(parameters.get("properties"), f"{where}: properties"):
            yield False, "properties:{"
            yield from _properties(properties, where)
            yield False, "},"
        if required := parameters.get("required"):
            yield False, "required:"
            yield from _value(required)
            yield False, ","
        yield False, "type:"
        yield from _string("OBJECT")
        yield False, "}"
    yield False, "}"
    yield True, _DECLARATION[1]


def _properties(properties: Mapping[str, Any], where: str) -> Pieces:
    for i, name in enumerate(sorted(properties, key=str.lower)):
        schema, at = properties[name], f"{where}.{name}"
        if name in _SCHEMA_KEYS:
            raise ValueError(f"{at}: FunctionGemma knows no parameter of the name {shown(name)}; call it another")
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        if not isinstance(kind, str):
            raise ValueError(f"{at}: needs one type, such as 'string', got {shown(kind)}")
        yield False, f"{',' if i else ''}{name}:{{description:"
        yield from _string(_description(schema, at))
        if kind.upper() == "STRING" and schema.get("enum"):
            yield False, ",enum:"
            yield from _value(schema["enum"])
        elif kind.upper() == "OBJECT":
            yield False, ",properties:{"
            yield from _properties(_object(schema.get("properties"), f"{at}: properties"), at)
            yield False, "}"
            if schema.get("required"):
                yield False, ",required:"
                yield from _value(schema["required"])
        elif kind.upper() == "ARRAY" and schema.get("items"):
            yield False, ",items:{"
            yield from _items(_object(schema["items"], f"{at}: items"), f"{at}[]")
            yield False, "}"
        yield False, ",type:"
        yield from _string(kind.upper())
        yield False, "}"


def _items(schema: Mapping[str, Any], where: str) -> Pieces:
    """What an array holds: the keys of its schema, sorted."""
    for i, key in enumerate(sorted(schema, key=str.lower)):
        yield False, f"{',' if i else ''}{key}:"
        if key == "properties":
            yield False, "{"
            yield from _properties(_object(schema[key], f"{where}: properties"), where)
            yield False, "}"
        elif key == "type":
            yield from _string(str(schema[key]).upper())
        else:
            yield from _value(schema[key])


def _object(value: Any, where: str) -> Mapping[str, Any]:
    """An object of a schema; empty if there is none."""
    if not isinstance(value, Mapping | None):
        raise ValueError(f"{where} must be an object, got {shown(value)}")
    return value or {}


def _description(schema: Mapping[str, Any], where: str) -> str:
    text = schema.get("description")
    if not isinstance(text, str | None):
        raise ValueError(f"{where}: description must be a string, got {shown(text)}")
    return text or ""


def _require_values(value: Any, where: str, depth: int = 0) -> None:
    """ValueError unless `value` can be written down as JSON can."""
    if depth > _DEEPEST:
        raise ValueError(f"{where}: nested more than {_DEEPEST} deep")
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where}: keys must be strings, got {shown(wrong[0])}")
        for inner in value.values():
            _require_values(inner, where, depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for inner in value:
            _require_values(inner, where, depth + 1)
    elif not isinstance(value, str | bool | int | float | np.number | None):
        raise ValueError(f"{where}: holds {shown(value)}, which is no text, number, list or object")
    elif isinstance(value, int) and abs(value) > 10**300:
        raise ValueError(f"{where}: holds {shown(value)}")


def _wrapped(around: tuple[str, str], name: str, values: Mapping[str, Any]) -> Pieces:
    yield True, around[0]
    yield False, name
    yield from _value(values)
    yield True, around[1]


def _begun(text: str) -> Pieces:
    """An answer to go on with, which may have been cut within a call."""
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


def _write(builder: PromptBuilder, tokenizer: Tokenizer, pieces: Pieces) -> None:
    for control, text in pieces:
        builder.control(tokenizer.id(text)) if control else builder.text(text)
