"""Functions in Gemma 3's prompts, as Google's documentation has them, and the grammar of calls."""

from __future__ import annotations

import random
from typing import Any

import format_samples
import jsonschema
import llguidance
import pytest

from gemma_tpu.text.formats import GEMMA3
from gemma_tpu.text.template import render_messages
from gemma_tpu.text.tool_prompt import call_grammar, text_grammar
from gemma_tpu.text.written_calls import WrittenCalls

TOKENIZER = format_samples.tokenizer()
# ai.google.dev/gemma/docs/capabilities/function-calling, the second of its prompts, whose first line is broken in two.
INSTRUCTION = """\
You have access to functions. If you decide to invoke any of the function(s), you MUST put it in the format of
{"name": function name, "parameters": dictionary of argument name and its value}

You SHOULD NOT include any other text in the response if you call a function
"""
DOCUMENTED = (
    INSTRUCTION
    + """\
[
  {
    "name": "get_product_name_by_PID",
    "description": "Finds the name of a product by its Product ID",
    "parameters": {
      "type": "object",
      "properties": {
        "PID": {
          "type": "string"
        }
      },
      "required": [
        "PID"
      ]
    }
  }
]
While browsing the product catalog, I came across a product that piqued my interest."""
)
PRODUCT: dict[str, Any] = {
    "name": "get_product_name_by_PID",
    "description": "Finds the name of a product by its Product ID",
    "parameters": {"type": "object", "properties": {"PID": {"type": "string"}}, "required": ["PID"]},
}
QUESTION = {
    "role": "user",
    "content": "While browsing the product catalog, I came across a product that piqued my interest. ",
}


def call(name: str, arguments: Any, id: str | None = None) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def spelled(messages: Any, **options: Any) -> str:
    return format_samples.spelled(TOKENIZER, GEMMA3.render(messages, TOKENIZER, None, **options).tokens)


def turn(role: str, text: str) -> str:
    return f"<start_of_turn>{role}\n{text}<end_of_turn>\n"


ASKED = "<start_of_turn>model\n"


@pytest.mark.parametrize("tool", [PRODUCT, {"type": "function", "function": PRODUCT}])
def test_the_documented_prompt(tool: dict[str, Any]) -> None:
    assert spelled([QUESTION], tools=[tool]) == f"<bos>{turn('user', DOCUMENTED)}{ASKED}"
    system = {"role": "developer", "content": "Be brief."}
    assert (
        spelled([system, QUESTION], tools=[tool])
        == f"<bos>{turn('user', f'Be brief.{chr(10) * 2}{DOCUMENTED}')}{ASKED}"
    )


@pytest.mark.parametrize("tools", [None, []])
@pytest.mark.parametrize("continue_final", [False, True])
def test_without_tools_it_is_the_usual_prompt(tools: Any, continue_final: bool) -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " a "}]
    messages.append({"role": "assistant", "content": "b "})
    messages += [] if continue_final else [{"role": "user", "content": [{"type": "text", "text": "c "}] * 2}]
    usual = render_messages(messages, TOKENIZER, None, continue_final=continue_final)
    assert GEMMA3.render(messages, TOKENIZER, None, continue_final=continue_final, tools=tools) == usual


def test_calls_and_responses() -> None:
    messages = [
        {"role": "user", "content": "Compare."},
        {"role": "assistant", "content": "I look.", "tool_calls": [call("f", {"é": 1}, "1"), call("g", "{}", "2")]},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": {"name": "g", "response": {"x": [1, None]}}},
        {"role": "assistant", "content": None, "tool_calls": [call("f", {}, "3")]},
        {
            "role": "tool",
            "tool_call_id": "3",
            "content": [{"type": "text", "text": "th"}, {"type": "text", "text": "ree"}],
        },
        {"role": "user", "content": "And?"},
    ]
    assert spelled(messages) == (
        f"<bos>{turn('user', 'Compare.')}"
        + turn("model", 'I look.\n{"name": "f", "parameters": {"é": 1}}\n{"name": "g", "parameters": {}}')
        + turn("user", '<tool_response>\none\n</tool_response>\n<tool_response>\n{"x": [1, null]}\n</tool_response>')
        + turn("model", '{"name": "f", "parameters": {}}')
        + turn("user", "<tool_response>\nthree\n</tool_response>\nAnd?")
        + ASKED
    )
    assert spelled(messages[:-1]).endswith(f"three\n</tool_response><end_of_turn>\n{ASKED}")


CALLED = {"role": "assistant", "tool_calls": [call("f", {}, "1"), call("g", {}, "2")]}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([CALLED], r"messages\[1\]: no response to f, g"),
        ([CALLED, {"role": "tool", "tool_call_id": "1", "content": "x"}], r"messages\[2\]: no response to g"),
        ([CALLED, {"role": "tool", "tool_call_id": "1", "content": "x"}, QUESTION], r"messages\[3\]: no response to g"),
        ([CALLED, {"role": "tool", "tool_call_id": "7", "content": "x"}], r"messages\[2\]: .* not called"),
        ([CALLED, QUESTION], r"messages\[2\]: role 'user' out of turn: expected tool"),
        ([{"role": "tool", "content": "x"}], r"messages\[1\]: role 'tool' out of turn"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}], r"messages\[1\]\.tool_calls\[0\]"),
    ],
)
def test_malformed_messages(messages: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spelled([QUESTION, *messages])


@pytest.mark.parametrize(
    "tools", ["f", [{}], [{"name": 5}], [{"function": None}], [{"name": "f", "parameters": {1: 2}}]]
)
def test_malformed_tools(tools: Any) -> None:
    with pytest.raises(ValueError, match="tools"):
        spelled([QUESTION], tools=tools)


TEXTS = [
    # (allowed with several calls, allowed with one, text)
    (True, True, '{"name": "get_product_name_by_PID", "parameters": {"PID": "807ZPKBL9V"}}'),
    (True, True, '{"name": "now", "parameters": {}}'),
    (True, False, '{"name": "now", "parameters": {}}\n{"name": "get_product_name_by_PID", "parameters": {"PID": ""}}'),
    (False, False, '{"name": "get_product_name_by_PID", "parameters": {}}'),
    (False, False, '{"name": "now", "parameters": {"a": 1}}'),
    (False, False, '{"name": "other", "parameters": {}}'),
    (False, False, '{"name": "get_product_name_by_PID", "parameters": {\n"PID": "807ZPKBL9V"}}'),
    (False, False, '{"name": "get_product_name_by_PID", "parameters": {"PID":  "807ZPKBL9V"}}'),
    (False, False, "It is noon."),
    (False, False, ""),
]


BYTES = llguidance.LLTokenizer("byte")


def allows(grammar: str, text: str) -> bool:
    matcher = llguidance.LLMatcher(BYTES, grammar)
    tokens = BYTES.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(("several", "one", "text"), TEXTS)
def test_the_grammar_allows_calls_alone(several: bool, one: bool, text: str) -> None:
    for parallel, allowed in ((True, several), (False, one)):
        assert allows(call_grammar([PRODUCT, {"name": "now"}], parallel=parallel), text) == allowed


@pytest.mark.parametrize(
    ("allowed", "text"),
    [
        *((several, text) for several, _, text in TEXTS),
        (True, '{"name": "now", "age": 3}'),  # begins as a call does
        (True, '{"name": "Ada", "age": 36}'),
        (False, '{"name": "Ada", "age": "36"}'),
        (False, '{"name": "Ada", "age": 36}\n{"name": "now", "parameters": {}}'),
        (False, '{"name": "now", "parameters": {}}\n{"name": "Ada", "age": 36}'),
    ],
)
def test_the_grammar_allows_calls_or_an_answer(allowed: bool, text: str) -> None:
    properties = {"name": {"type": "string"}, "age": {"type": "integer"}}
    answer = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    assert allows(call_grammar([PRODUCT, {"name": "now"}], answer=answer), text) == allowed


@pytest.mark.parametrize(
    ("others", "allowed"),
    [
        ({}, False),
        ({"additionalProperties": True}, True),
        ({"additionalProperties": {"type": "integer"}}, True),
        ({"allOf": [{"properties": {"x": {"type": "integer"}}}]}, True),
    ],
)
def test_arguments_that_are_not_declared(others: dict, allowed: bool) -> None:
    """JSON Schema allows them, but a call with one would fail; what a schema says of them holds."""
    tool = {"name": "now", "parameters": {"type": "object", "properties": {}, **others}}
    for grammar in (call_grammar([tool]), call_grammar([tool], answer={"type": "array"})):
        assert allows(grammar, '{"name": "now", "parameters": {}}')
        assert allows(grammar, '{"name": "now", "parameters": {"x": 1}}') == allowed


def test_references_within_the_schema_of_a_function() -> None:
    tree = {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}, "y": {"$ref": "#"}}, "required": ["x"]}
    tool = {"name": "f", "parameters": {**tree, "additionalProperties": False, "$defs": {"n": {"type": "integer"}}}}
    for grammar in (call_grammar([tool]), call_grammar([tool], answer={"type": "array"}), text_grammar([tool], ["f"])):
        assert allows(grammar, '{"name": "f", "parameters": {"x": 1, "y": {"x": 2}}}')
        assert not allows(grammar, '{"name": "f", "parameters": {"x": 1, "y": {"x": "2"}}}')


STRICT = [PRODUCT, {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}]
PARTS = [
    '{"name": "',
    "get_product_name_by_PID",
    "now",
    "other",
    '", "parameters": ',
    '", "arguments":\n  ',
    '{"PID": "',
]
PARTS += [
    '{"PID": 5}',
    "a",
    '"}',
    "{}",
    "}",
    "\n",
    " ",
    "[",
    "]",
    ", ",
    "```json\n",
    "```",
    '{"type": "function", "function": ',
]
PARTS += [
    "now()",
    '{"name": "now", "parameters": {}}',
    '{"name":"now","arguments":{"a": 1}}',
    "now(a=1)",
    "It is {noon}.",
]
PARTS += ['get_product_name_by_PID(PID="x")', "'", '{"id": "1", ', '"', "\\"]


@pytest.mark.parametrize("seed", range(12))
def test_strict_calls_in_any_text_follow_their_schemas(seed: int) -> None:
    """Whatever the grammar lets a model write, and however that is read."""
    pick, written, found = random.Random(seed), "", 0
    matcher = llguidance.LLMatcher(BYTES, text_grammar(STRICT, ["now", PRODUCT["name"]]))
    for step in range(200):
        part = pick.choice(PARTS)
        tokens = BYTES.tokenize_str(part)
        if (kept := matcher.try_consume_tokens(tokens)) < len(tokens):
            matcher.rollback(kept)
            continue
        written += part
        if step % 8:
            continue
        reader = WrittenCalls(STRICT, ["now", PRODUCT["name"]])
        calls = [piece["function"] for piece in [*reader.push(written), *reader.flush()] if isinstance(piece, dict)]
        for called in calls:
            jsonschema.validate(
                called["arguments"], next(t for t in STRICT if t["name"] == called["name"])["parameters"]
            )
        found = len(calls)
    assert found
    assert len(written) > 200


@pytest.mark.parametrize(
    ("text", "allowed", "names"),
    [
        ('Text {"name": "Ada"} [x](y) `z`', True, []),
        ('I look.\n{"name": "now", "parameters": {}}\nWait.', True, ["now"]),
        ('```json\n{\n  "name": "now",\n  "arguments": {}\n}\n```', True, ["now"]),
        ('[{"name": "now", "parameters": {}}, {"name": "now", "parameters": {}}]', True, ["now", "now"]),
        ('{"name": "now", "parameters": {"a": 1}}', False, ["now"]),
        ("now(a=1)", True, []),  # which is no call, since it is not held
        ('{"name": "now", "id": "1", "parameters": {"a": 1}}', True, []),
        ('{"name": "other", "parameters": {"a": 1}}', True, []),
    ],
)
def test_what_a_strict_call_is(text: str, allowed: bool, names: list[str]) -> None:
    assert allows(text_grammar(STRICT, ["now"]), text) == allowed
    reader = WrittenCalls(STRICT, ["now"])
    pieces = [*reader.push(text), *reader.flush()]
    assert [piece["function"]["name"] for piece in pieces if isinstance(piece, dict)] == names
