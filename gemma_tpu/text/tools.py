"""What conversations say of functions, in the shape of OpenAI and Hugging Face: tools, calls, responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gemma_tpu.checks import as_tuple, brief, one_line
from gemma_tpu.text.template import content_parts

MAX_DEPTH = 64  # nesting of values in a schema, call or response
Call = dict[str, Any]  # {"type": "function", "function": {"name", "arguments"}}, with arguments as a mapping


@runtime_checkable
class CallReader(Protocol):
    """Separates calls from the text around them, as an answer is written."""

    def push(self, text: str) -> list[str | Call]:
        """The pieces of text and the calls that have become certain, in order."""
        ...

    def flush(self) -> list[str | Call]:
        """What is left when the answer has ended."""
        ...


MakeReader = Callable[[], CallReader | None]  # None where there are no calls to find


def call_of(name: str, arguments: Mapping[str, Any]) -> Call:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def read_tools(tools: Any) -> list[Mapping[str, Any]]:
    """Functions as JSON schemas, `{"name", "description", "parameters"}`, without what OpenAI's API puts around them.

    None is none. ValueError, naming `tools[i]`, for what are none.
    """
    functions = []
    for i, tool in enumerate(() if tools is None else as_tuple("tools", tools)):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f'tools[{i}]: expected a function as JSON schema, {{"name": …, "parameters": …}}, got {brief(tool)}'
            )
        _require_values(function, tool_place(i, function))
        functions.append(function)
    return functions


def tool_place(index: int, function: Mapping[str, Any]) -> str:
    """For errors: the function at `index` of the tools, with its name."""
    return f"tools[{index}] ({one_line(function['name'])[:80]})"


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


def read_responses(
    message: Mapping[str, Any], calls: list[Mapping[str, Any]], location: str
) -> Iterator[tuple[str, Any]]:
    """The (name, response) pairs of a tool message. Removes the answered calls from `calls`."""
    content = message["content"]
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, str | list | tuple):
        raise ValueError(f"{location}: a response must be text, an object or a list of those, got {brief(content)}")
    if isinstance(content, str) or all(isinstance(part, Mapping) and "type" in part for part in content):
        parts = list(content_parts(content, location))
        if images := [at for at, kind, _ in parts if kind == "image"]:
            raise ValueError(f"{images[0]}: an image in a response; only users show images")
        content = [{"name": message.get("name"), "response": "".join(text for *_, text in parts)}]
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


def require_responses(calls: list[Mapping[str, Any]], location: str) -> None:
    if calls:
        names = ", ".join(call["name"] for call in calls)
        raise ValueError(f'{location}: no response to {names}: add {{"role": "tool", "content": …}} after the calls')


def _require_values(value: Any, location: str, depth: int = 0) -> None:
    """ValueError unless `value` can be expressed in JSON."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{location}: nested more than {MAX_DEPTH} deep")
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
