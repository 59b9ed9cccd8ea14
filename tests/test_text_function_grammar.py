"""Grammars of FunctionGemma's calls: what they allow, and that it is what its reader reads."""

from __future__ import annotations

import random
from typing import Any

import jsonschema
import llguidance
import pytest

from gemma_tpu.text.function_grammar import function_call_grammar, function_text_grammar
from gemma_tpu.text.functions import FunctionCalls

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "days": {"type": "integer"},
        "City": {"type": "string"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "at": {
            "type": "object",
            "properties": {"xs": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 2}},
            "required": ["xs"],
        },
        "sure": {"anyOf": [{"type": "boolean"}, {"const": "?"}], "nullable": True},
        "any": {},
        "tags": {"type": "array", "items": {"type": ["string", "null"]}},
    },
    "required": ["City", "unit"],
}
TOOLS = [{"name": "weather", "parameters": WEATHER}, {"name": "now"}]
NOW = "<start_function_call>call:now{}<end_function_call>"
BYTES = llguidance.LLTokenizer("byte")
ESCAPE = BYTES.tokenize_str("<escape>")


def allows(grammar: str, text: str) -> bool:
    matcher = llguidance.LLMatcher(BYTES, grammar)
    tokens = BYTES.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def call(arguments: str) -> str:
    return f"<start_function_call>call:weather{arguments}<end_function_call>"


def read(text: str) -> list[dict[str, Any]]:
    reader = FunctionCalls()
    return [piece["function"] for piece in [*reader.push(text), *reader.flush()] if isinstance(piece, dict)]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("{City:<escape>A < b, {x}<escape>,unit:<escape>C<escape>}", {"City": "A < b, {x}", "unit": "C"}),
        (
            "{any:[1,{a:true}],at:{xs:[1,2.5]},City:<escape><escape>,days:-3,tags:[null,<escape>é<escape>],"
            "unit:<escape>F<escape>}",
            {"any": [1, {"a": True}], "at": {"xs": [1, 2.5]}, "City": "", "days": -3, "tags": [None, "é"], "unit": "F"},
        ),
        ("{City:<escape>x<escape>,sure:<escape>?<escape>,tags:[],unit:<escape>F<escape>}",
         {"City": "x", "sure": "?", "tags": [], "unit": "F"}),
        ("{days:3,unit:<escape>F<escape>}", None),  # without a required one
        ("{City:<escape>x<escape>,unit:<escape>K<escape>}", None),
        ("{unit:<escape>F<escape>,City:<escape>x<escape>}", None),
        ("{City:<escape>x<escape>,days:2.5,unit:<escape>F<escape>}", None),
        ("{at:{xs:[]},City:<escape>x<escape>,unit:<escape>F<escape>}", None),
        ("{at:{xs:[1,2,3]},City:<escape>x<escape>,unit:<escape>F<escape>}", None),
        ("{City:<escape>x<escape>,more:1,unit:<escape>F<escape>}", None),
        ("{City:<escape>}<end_function_call><escape>,unit:<escape>F<escape>}", None),  # where the reader would end
    ],
)  # fmt: skip
def test_arguments(text: str, arguments: dict[str, Any] | None) -> None:
    for grammar in (function_call_grammar(TOOLS), function_text_grammar(TOOLS, ["weather"])):
        assert allows(grammar, call(text)) == (arguments is not None)
    if arguments is not None:
        assert read(call(text)) == [{"name": "weather", "arguments": arguments}]


def test_calls_or_an_answer() -> None:
    several, one = (function_call_grammar(TOOLS, parallel=parallel) for parallel in (True, False))
    assert allows(several, NOW)
    assert allows(one, NOW)
    assert allows(several, NOW * 2)
    assert not allows(one, NOW * 2)
    assert not allows(several, "")
    assert not allows(several, f"Now. {NOW}")
    answer = function_call_grammar(TOOLS, answer={"type": "object", "properties": {"a": {"type": "integer"}}})
    assert allows(answer, '{"a": 1}')
    assert allows(answer, NOW)
    assert not allows(answer, '{"a": "1"}')


@pytest.mark.parametrize("text", ["", "It is <escape> {noon}.", f"I look. {NOW}{NOW} Wait."])
def test_text_with_calls(text: str) -> None:
    assert allows(function_text_grammar(TOOLS, ["now"]), text)
    assert not allows(function_text_grammar(TOOLS, ["now"]), f"{text}<start_function_call>call:other{{}}")


@pytest.mark.parametrize("seed", range(20))
def test_what_is_allowed_is_read_and_follows_the_schema(seed: int) -> None:
    """A random walk through the grammar."""
    pick, matcher, text = random.Random(seed), llguidance.LLMatcher(BYTES, function_call_grammar(TOOLS[:1])), b""
    likely = b"<>{}[],:.0123456789acdefilnrstuxCFT"  # what closes and what has an end
    while not matcher.is_accepting():
        if pick.random() < 0.1:
            if (count := matcher.try_consume_tokens(ESCAPE)) == len(ESCAPE):
                text += b"<escape>"
                continue
            matcher.rollback(count)
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        byte = pick.choice([byte for byte in allowed if byte in likely] or allowed)
        text += bytes([byte])
        assert matcher.consume_token(byte)
        assert len(text) < 5_000
    (called,) = read(text.decode())
    assert called["name"] == "weather"
    jsonschema.validate(called["arguments"], WEATHER | {"properties": WEATHER["properties"] | {"sure": {}}})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (
            {"properties": {"x": {"type": "string", "pattern": "a"}}},
            r"tools\[0\] \(f\): parameters.x: .* held to pattern",
        ),
        ({"properties": {"x": {"items": {"minimum": 1}, "type": "array"}}}, r"parameters.x\[\]: .* held to minimum"),
        ({"$ref": "#/a", "allOf": []}, r"parameters: .* held to \$ref, allOf"),
    ],
)
def test_what_a_strict_schema_cannot_have(schema: dict[str, Any], said: str) -> None:
    tool = {"name": "f", "parameters": schema}
    with pytest.raises(ValueError, match=said):
        function_text_grammar([tool], ["f"])
    assert function_text_grammar([tool], [])
    assert function_call_grammar([tool])
