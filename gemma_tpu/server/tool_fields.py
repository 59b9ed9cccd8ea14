"""The fields that tell of tools: functions as OpenAI's API has them, and what a request asks of them together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import StringConstraints
from pydantic_core import PydanticCustomError

from gemma_tpu.grammar import Grammar
from gemma_tpu.server.fields import Strict
from gemma_tpu.server.tools import ToolUse

MAX_TOOLS = 128


class Function(Strict):
    """With `strict`, arguments follow the schema whenever it is called."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What the model is told."""
        return self.model_dump(exclude_none=True, include={"name", "description", "parameters"})


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


def tool_use(
    tools: Sequence[dict[str, Any]],
    *,
    forced: bool,
    only: str | None,
    none: bool,
    parallel: bool | None,
    strict: Sequence[str],
    held_by: str | None,
    answer: Grammar | None,
) -> ToolUse:
    """What a request asks; `none`: that the model calls nothing, and is told of nothing to call.

    `held_by`: the field that holds the answer to a grammar. `answer`: that grammar, if it is a JSON schema.
    """
    names = [tool["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise PydanticCustomError("tools", "two of them have one name")
    if forced and (only not in names if only else not names):
        raise PydanticCustomError("tool_choice", "there is no such tool in tools")
    if tools and not none and held_by and not answer:
        message = "do not go with {field}: leave one out, or set tool_choice to none"
        raise PydanticCustomError("tools", message, {"field": held_by})
    schema = json.loads(answer.source) if answer else None
    if schema and strict and not (forced or none or _cannot_be_call(schema)):
        message = "strict tools go with a {field} that no call follows: an object with additionalProperties: false"
        raise PydanticCustomError("tools", message, {"field": held_by})
    return ToolUse(() if none else tools, forced, only, parallel is not False, strict, schema)


def _cannot_be_call(schema: Mapping[str, Any]) -> bool:
    """Whether what follows a schema cannot be read as a call."""
    properties = schema.get("properties", {})
    closed = schema.get("type") == "object" and schema.get("additionalProperties") is False
    return closed and not ("name" in properties and {"parameters", "arguments"} & properties.keys())
