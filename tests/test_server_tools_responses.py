"""Tools in OpenAI's Responses API, through its own client."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from tool_script import CALLED, FUNCTIONS, INSTRUCTION, TOOLS, WRITTEN, Script

from gemma_tpu.text import GEMMA3


def called_of(output: Any) -> list[tuple[str, Any]]:
    return [(item.name, json.loads(item.arguments)) for item in output if item.type == "function_call"]


@pytest.mark.parametrize("stream", [True, False])
def test_responses(tool_client: openai.OpenAI, script: Script, stream: bool) -> None:
    script.says += [f"I look.\n{WRITTEN[1]}", "It is a lamp."]
    asked: Any = {"model": "tiny", "tools": FUNCTIONS}
    if stream:
        with tool_client.responses.stream(input="Which?", **asked) as events:
            kinds = [event.type.removeprefix("response.") for event in events]
            answer = events.get_final_response()
        call = [
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
        ]
        assert kinds[-9:] == [*call * 2, "completed"]
        assert kinds[2:4] == ["output_item.added", "content_part.added"]
        assert kinds[-12:-9] == ["output_text.done", "content_part.done", "output_item.done"]
    else:
        answer = tool_client.responses.create(input="Which?", **asked)
    assert [item.type for item in answer.output] == ["message", "function_call", "function_call"]
    assert (answer.output_text, called_of(answer.output), answer.status) == ("I look.", CALLED, "completed")
    ids = [item.id for item in answer.output] + [item.call_id for item in answer.output[1:]]
    assert len({*ids}) == 5
    assert INSTRUCTION in script.prompts[0]
    assert script.asked[0].grammar is None
    results: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": item.name} for item in answer.output[1:]
    ]
    history: Any = [{"role": "user", "content": "Which?"}, *answer.output, *results]
    assert tool_client.responses.create(input=history, **asked).output_text == "It is a lamp."
    turns = script.prompts[1].split("<start_of_turn>")
    assert turns[2] == f"model\nI look.\n{WRITTEN[1]}<end_of_turn>\n"
    told = "<tool_response>\nget_product\n</tool_response>\n<tool_response>\nnow\n</tool_response>"
    assert turns[3] == f"user\n{told}<end_of_turn>\n"


def test_images_of_results_follow_them(tool_client: openai.OpenAI, script: Script, red_png: Path) -> None:
    """What a tool such as a screenshot gives: with a question behind it, an answer, another call, or nothing."""
    data = base64.b64encode(red_png.read_bytes()).decode()
    image: Any = {"type": "input_image", "image_url": f"data:image/png;base64,{data}"}
    text: Any = {"type": "input_text", "text": "done"}
    calls: Any = [{"type": "function_call", "call_id": str(i), "name": "now", "arguments": "{}"} for i in range(2)]
    results: Any = [
        {"type": "function_call_output", "call_id": "0", "output": [text, image, text]},
        {"type": "function_call_output", "call_id": "1", "output": [image]},
    ]
    question = {"role": "user", "content": "What is it?"}
    script.says += ["It is red."] * 4
    told = "<tool_response>\ndonedone\n</tool_response>\n<tool_response>\n\n</tool_response>\n"
    for behind, asked in (
        ([], ""),
        ([question], "What is it?"),
        ([{"role": "assistant", "content": "Red."}, question], ""),
        ([calls[0], {**results[0], "output": "noon"}], ""),
    ):
        history: Any = [{"role": "user", "content": "Which?"}, *calls, *results, *behind]
        answer = tool_client.responses.create(model="tiny", tools=FUNCTIONS, input=history)
        assert answer.output_text == "It is red."
        turn = script.prompts[-1].split("<start_of_turn>")[3]
        assert turn.startswith(f"user\n{told}")
        assert turn.endswith(f"{asked}<end_of_turn>\n")
        assert turn.count("<start_of_image>") == 2
        assert script.prompts[-1].count("<start_of_image>") == 2


def test_how_responses_call(tool_client: openai.OpenAI, script: Script) -> None:
    script.says += [WRITTEN[1]] * 5
    functions = [tool["function"] for tool in TOOLS]
    asked: Any = {"model": "tiny", "input": "Which?", "tools": FUNCTIONS}
    none = tool_client.responses.create(tool_choice="none", **asked)
    assert (none.output_text, called_of(none.output)) == (WRITTEN[1], [])
    assert INSTRUCTION not in script.prompts[0]
    tool_client.responses.create(tool_choice={"type": "function", "name": "now"}, **asked)
    one = tool_client.responses.create(tool_choice="required", parallel_tool_calls=False, **asked)
    assert called_of(one.output) == CALLED[:1]
    tool_client.responses.create(**asked | {"tools": [{**FUNCTIONS[0], "strict": True}, FUNCTIONS[1]]})
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "array"}}}
    tool_client.responses.create(text=form, **asked)
    assert GEMMA3.call_grammar is not None
    assert GEMMA3.text_grammar is not None
    assert [params.grammar and params.grammar.source for params in script.asked] == [
        None,
        GEMMA3.call_grammar(functions[1:]),
        GEMMA3.call_grammar(functions, parallel=False),
        GEMMA3.text_grammar(functions, ["get_product"]),
        GEMMA3.call_grammar(functions, answer={"type": "array"}),
    ]


def test_a_response_that_is_cut(tool_client: openai.OpenAI, script: Script) -> None:
    script.says.append(f"{WRITTEN[1]}\nAnd")
    script.reason = "length"
    answer = tool_client.responses.create(model="tiny", input="Which?", tools=FUNCTIONS)
    assert [item.type for item in answer.output] == ["function_call", "function_call", "message"]
    assert [item.status for item in answer.output] == ["completed", "completed", "incomplete"]
    assert answer.status == "incomplete"
