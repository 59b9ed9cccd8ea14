"""The fields that hold an answer to a grammar: OpenAI's formats, and vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from gemma_tpu.grammar import Grammar
from gemma_tpu.server.fields import Strict, either

_MAX_SOURCE = 1 << 17  # characters of a schema, a pattern or a grammar; llguidance limits the work that it makes


SCHEMA = either(str, dict[str, Any])  # JSON as text, or as it is


def held_to(kind: Any, make: Callable[[Any], Grammar], **options: Any) -> Any:
    """The type of a field whose value, of type `kind`, is made a grammar. `options` are those of the field."""

    def read(value: Any) -> Grammar | None:
        if value is None:
            return None
        try:
            grammar = make(value)
        except ValueError as error:
            raise PydanticCustomError("grammar", "{said}", {"said": str(error)}) from error
        if len(grammar.source) > _MAX_SOURCE:
            raise PydanticCustomError("grammar", "has at most {limit} characters", {"limit": f"{_MAX_SOURCE:,}"})
        return grammar

    return Annotated[kind | None, AfterValidator(read), Field(default=None, **options)]


class NamedSchema(Strict):
    """`name`, `description` and `strict` change nothing: every answer follows the schema, of which no prompt tells."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w-]{1,64}$")] | None = None
    description: str | None = None
    schema_: held_to(dict[str, Any], Grammar.json_schema, alias="schema")
    strict: bool | None = None


_Kind = Literal["text", "json_object", "json_schema"]


def _grammar(kind: str, schema: Grammar | None) -> Grammar | None:
    return None if kind == "text" else schema or Grammar.json_object()


class ResponseFormat(Strict):
    """Of chats and completions. A `schema` of a json_object is a field of llama.cpp's server, and of others."""

    type: _Kind
    json_schema: NamedSchema | None = None
    schema_: held_to(dict[str, Any], Grammar.json_schema, alias="schema")

    @pydantic.model_validator(mode="after")
    def _fits(self) -> ResponseFormat:
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise PydanticCustomError("format", 'type "json_schema" goes with json_schema, and no other')
        if self.schema_ and self.type != "json_object":
            raise PydanticCustomError("format", 'schema goes with type "json_object", and no other')
        return self

    @property
    def grammar(self) -> Grammar | None:
        return _grammar(self.type, self.json_schema.schema_ if self.json_schema else self.schema_)


class TextFormat(NamedSchema):
    """Of OpenAI's Responses and Anthropic's Messages, which have the schema beside the type."""

    type: _Kind

    @pydantic.model_validator(mode="after")
    def _fits(self) -> TextFormat:
        if (self.schema_ is None) == (self.type == "json_schema"):
            raise PydanticCustomError("format", 'type "json_schema" goes with a schema, and no other')
        return self

    @property
    def grammar(self) -> Grammar | None:
        return _grammar(self.type, self.schema_)

    def as_sent(self) -> dict[str, Any]:
        schema = {"schema": json.loads(self.schema_.source)} if self.schema_ else {}
        return self.model_dump(exclude_none=True, exclude={"schema_"}) | schema


class StructuredOutputs(Strict):
    """vLLM's: one of these."""

    json_: held_to(SCHEMA, Grammar.json_schema, alias="json")
    regex: held_to(str, Grammar.regex)
    choice: held_to(list[str], Grammar.choice)
    grammar_: held_to(str, Grammar.lark, alias="grammar")
    json_object: bool | None = None

    @pydantic.model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if len(self._asked) != 1:
            raise PydanticCustomError("structured", "has one of json, regex, choice, grammar and json_object")
        return self

    @property
    def _asked(self) -> list[Grammar]:
        any_object = Grammar.json_object() if self.json_object else None
        return [asked for asked in (self.json_, self.regex, self.choice, self.grammar_, any_object) if asked]

    @property
    def grammar(self) -> Grammar:
        return self._asked[0]
