"""Grammars that answers can be held to, as callers give them. No jax, and no llguidance (gemma_tpu.constraint)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_tpu.checks import as_tuple, brief, one_line

# Between two parts of JSON a space, or a line break and its indentation: a model could go on with spaces for ever.
JSON_SPACE = r"( |\n {0,20})?"


class GrammarError(ValueError):
    """A grammar that cannot be followed: it is refused by llguidance, or leaves no token that may come next."""


@dataclasses.dataclass(frozen=True)
class Grammar:
    """What an answer has to be, whole; one that is cut at its longest is the beginning of such an answer.

    `kind`: "json_schema", "regex" or "lark", and `source` in that language.
    """

    kind: str
    source: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON that is valid under a schema, given as a mapping or as JSON."""
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else schema
            if not isinstance(parsed, Mapping):
                raise ValueError(f"it is {brief(schema)}")
            return cls("json_schema", json.dumps(parsed))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"a JSON schema is a JSON object: {one_line(error)}") from error

    @classmethod
    def json_object(cls) -> Grammar:
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A whole match of a regular expression, of the kind that Rust's regex crate has: no look-around."""
        return cls("regex", _text("regex", pattern))

    @classmethod
    def choice(cls, options: Sequence[str]) -> Grammar:
        """One of several strings."""
        texts = [_text("choice", option) for option in as_tuple("choice", options)]
        if not texts:
            raise ValueError("choice has no options")
        return cls("regex", "|".join(f"({re.escape(text)})" for text in texts))

    @classmethod
    def lark(cls, grammar: str) -> Grammar:
        """A context-free grammar in the syntax of Lark, as llguidance has it; its rule `start` is the answer."""
        return cls("lark", _text("lark", grammar))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a non-empty string, got {brief(value)}")
    return value
