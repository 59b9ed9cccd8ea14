"""Functions in Gemma 3's prompts, as Google's documentation has them, and the grammar of calls."""

from __future__ import annotations

from typing import Any

import format_samples
import pytest

from gemma_tpu.text.formats import GEMMA3
from gemma_tpu.text.template import render_messages
from gemma_tpu.text.tool_prompt import call_grammar

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


@pytest.mark.parametrize(("several", "one", "text"), TEXTS)
def test_the_grammar_allows_calls_alone(several: bool, one: bool, text: str) -> None:
    llguidance = pytest.importorskip("llguidance")
    byte_tokens = llguidance.LLTokenizer("byte")
    for parallel, allowed in ((True, several), (False, one)):
        matcher = llguidance.LLMatcher(byte_tokens, call_grammar([PRODUCT, {"name": "now"}], parallel=parallel))
        tokens = byte_tokens.tokenize_str(text)
        assert (matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()) == allowed
