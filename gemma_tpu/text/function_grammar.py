"""Grammars of answers that call functions in FunctionGemma's notation, in llguidance's Lark.

The notation is that of `gemma_tpu.text.functions`. A call has the declared parameters alone, sorted as in the prompt.
Types, enumerations, required parameters and sizes of arrays are held; for functions that are strict, a schema that has
more is a ValueError.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemma_tpu.text.tools import MAX_DEPTH, tool_place

_HELD = {"type", "properties", "required", "items", "enum", "const", "anyOf", "nullable", "minItems", "maxItems"}
_SAYS_NOTHING = {"title", "description", "default", "examples", "deprecated", "$schema", "$id", "additionalProperties"}
_RULES = r"""
CONTENT: /(?s:.*)/ & ~/(?s:.*)<(escape|end_function_call)>(?s:.*)/
STRING: "<escape>" CONTENT "<escape>"
INTEGER: /-?(0|[1-9][0-9]{0,18})/
NUMBER: /-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][-+]?[0-9]{1,2})?/
boolean: "true" | "false"
anything: STRING | NUMBER | boolean | "null" | list | object
list: "[" (anything ("," anything)*)? "]"
object: "{" (KEY anything ("," KEY anything)*)? "}"
KEY: /[A-Za-z_][A-Za-z0-9_]{0,63}:/
"""
_TYPES = {"string": "STRING", "integer": "INTEGER", "number": "NUMBER", "boolean": "boolean", "null": '"null"'}


def function_call_grammar(tools: Sequence[Mapping[str, Any]], *, parallel: bool = True, answer: Any = None) -> str:
    """See `gemma_tpu.text.tool_prompt.call_grammar`."""
    start = "start: call+" if parallel else "start: call"
    otherwise = "" if answer is None else f" | answer\nanswer: %json {json.dumps(answer)}"
    return f'{start}{otherwise}\ncall: "<start_function_call>" function\n{_functions(tools, ())}'


def function_text_grammar(tools: Sequence[Mapping[str, Any]], strict: Sequence[str]) -> str:
    """See `gemma_tpu.text.tool_prompt.text_grammar`. Calls of the other tools are held to their types too."""
    start = "start: call* TEXT\nTEXT: /(.|\\n)*/\nbegin[lazy]: /(.|\\n)*<start_function_call>/\ncall: begin function\n"
    return start + _functions(tools, strict)


def _functions(tools: Sequence[Mapping[str, Any]], strict: Sequence[str]) -> str:
    """The rule `function`: what follows the beginning of a call."""
    writer = _Writer()
    names = []
    for i, tool in enumerate(tools):
        writer.strict = tool["name"] in strict
        parameters = {"type": "object", "properties": {}, **(tool.get("parameters") or {})}
        value = writer.value(parameters, f"{tool_place(i, tool)}: parameters")
        names.append(writer.rule(f'{json.dumps("call:" + tool["name"])} {value} "<end_function_call>"'))
    return "\n".join([f"function: {' | '.join(names)}", *writer.rules]) + _RULES


class _Writer:
    """Collects rules. With `strict`, ValueError for what of a schema they do not hold."""

    def __init__(self) -> None:
        self.rules: list[str] = []
        self.strict = False
        self._numbers = itertools.count()

    def rule(self, body: str) -> str:
        name = f"rule_{next(self._numbers)}"
        self.rules.append(f"{name}: {body}")
        return name

    def value(self, schema: Any, place: str, depth: int = 0) -> str:
        """What in a rule stands for a value of this schema; `place` is for errors."""
        schema = schema if isinstance(schema, Mapping) else {}
        if self.strict and (other := sorted(schema.keys() - _HELD - _SAYS_NOTHING)):
            raise ValueError(f"{place}: FunctionGemma's calls are not held to {', '.join(other)}: leave strict out")
        if depth > MAX_DEPTH:
            return "anything"
        if "enum" in schema or "const" in schema:
            return self._either(map(_literal, schema.get("enum", [schema.get("const")])))
        if "anyOf" in schema:
            kinds = [self.value(one, place, depth + 1) for one in schema["anyOf"]]
        else:
            types = schema.get("type")
            kinds = [
                self._of_type(kind, schema, place, depth) for kind in (types if isinstance(types, list) else [types])
            ]
        return self._either([*kinds, *['"null"'] * bool(schema.get("nullable"))])

    def _either(self, kinds: Iterator[str] | Sequence[str]) -> str:
        first, *more = dict.fromkeys(kinds)
        return self.rule(" | ".join([first, *more])) if more else first

    def _of_type(self, kind: Any, schema: Mapping[str, Any], place: str, depth: int) -> str:
        kind = str(kind).lower()
        if kind == "array":
            item = self.value(schema.get("items"), f"{place}[]", depth + 1)
            least, most = schema.get("minItems", 0), schema.get("maxItems")
            if most == 0:
                return '"[]"'
            more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
            return self.rule(f'"[" {item} {more} "]"' + ("" if least else ' | "[]"'))
        if kind == "object" and isinstance(schema.get("properties"), Mapping):
            return self._object(schema, place, depth)
        return _TYPES.get(kind, "object" if kind == "object" else "anything")

    def _object(self, schema: Mapping[str, Any], place: str, depth: int) -> str:
        """Its properties in order. `begun` and `rest` are what may follow, with and without one before it."""
        properties, required = schema["properties"], schema.get("required") or ()
        begun = rest = '"}"'
        for name in sorted(properties, key=str.lower, reverse=True):
            value = self.value(properties[name], f"{place}.{name}", depth + 1)
            left_out = [] if name in required else [begun, rest]
            pair = f"{json.dumps(name + ':')} {value} {begun}"
            begun, rest = (
                self.rule(" | ".join([f"{comma} {pair}".strip(), *left_out[i : i + 1]]))
                for i, comma in enumerate(('","', ""))
            )
        return self.rule(f'"{{" {rest}')


def _literal(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(f"<escape>{text}<escape>" if isinstance(value, str) else text, ensure_ascii=False)
