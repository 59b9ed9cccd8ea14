"""Tools in Anthropic's Messages API, through its own client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from server_site import HELLO, WAIT, Site
from tool_script import ANSWER, CALLED, INSTRUCTION, PID, QUESTION, WRITTEN, Script

import gemma_tpu
from gemma_tpu.text import GEMMA3

CLAUDE_TOOLS: Any = [
    {"name": "get_product", "description": "A product's name", "input_schema": PID},
    {"name": "now", "input_schema": {"type": "object"}},
]
PATH = "/v1/messages"


@pytest.fixture(scope="module")
def claude(tool_site: Site) -> Iterator[anthropic.Anthropic]:
    asked: Any = {"api_key": "none", "max_retries": 0, "timeout": WAIT, "_strict_response_validation": True}
    with anthropic.Anthropic(base_url=tool_site.url, **asked) as client:
        yield client


@pytest.mark.parametrize("stream", [True, False])
def test_anthropic(claude: anthropic.Anthropic, script: Script, stream: bool) -> None:
    script.says += [f"I look.\n{WRITTEN[1]}", "It is a lamp."]
    asked: Any = {"model": "tiny", "max_tokens": 50, "tools": CLAUDE_TOOLS}
    if stream:
        with claude.messages.stream(messages=[QUESTION], **asked) as events:
            kinds = [event.type for event in events]
            answer = events.get_final_message()
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
    else:
        answer = claude.messages.create(messages=[QUESTION], **asked)
    text, *uses = answer.content
    assert (text.type, text.text) == ("text", "I look.")
    assert [(use.name, use.input) for use in uses] == CALLED
    assert len({use.id for use in uses}) == 2
    assert answer.stop_reason == "tool_use"
    assert INSTRUCTION in script.prompts[0]
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": f"of {i}"} for i, use in enumerate(uses)]
    history: Any = [
        QUESTION,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in answer.content]},
        {"role": "user", "content": [*results, {"type": "text", "text": "Sure?"}]},
    ]
    last = claude.messages.create(messages=history, **asked)
    assert (last.content[0].text, last.stop_reason) == ("It is a lamp.", "end_turn")
    turns = script.prompts[1].split("<start_of_turn>")
    assert turns[2] == f"model\nI look.\n{WRITTEN[1]}<end_of_turn>\n"
    told = "<tool_response>\nof 0\n</tool_response>\n<tool_response>\nof 1\n</tool_response>"
    assert turns[3] == f"user\n{told}\nSure?<end_of_turn>\n"
    counted = claude.messages.count_tokens(model="tiny", messages=history, tools=CLAUDE_TOOLS)
    assert counted.input_tokens == last.usage.input_tokens


@pytest.mark.parametrize("asked", ["What is it?", None])
def test_images_of_results_follow_them(
    claude: anthropic.Anthropic, script: Script, asked: str | None, red_png: Path
) -> None:
    """What a tool such as a screenshot gives."""
    script.says += ["It is red."]
    data = base64.b64encode(red_png.read_bytes()).decode()
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    text: Any = {"type": "text", "text": "done"}
    history: Any = [
        QUESTION,
        {"role": "assistant", "content": [{**USE, "id": str(i)} for i in range(2)]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "0", "content": [text, image, text]},
            {"type": "tool_result", "tool_use_id": "1", "content": [image]},
            *([{"type": "text", "text": asked}] if asked else []),
        ]},
    ]  # fmt: skip
    answer = claude.messages.create(model="tiny", max_tokens=50, tools=CLAUDE_TOOLS, messages=history)
    assert answer.content[0].text == "It is red."
    turn = script.prompts[0].split("<start_of_turn>")[3]
    told = "<tool_response>\ndonedone\n</tool_response>\n<tool_response>\n\n</tool_response>\n"
    assert turn.startswith(f"user\n{told}")
    assert turn.endswith(f"{asked or ''}<end_of_turn>\n")
    assert turn.count("<start_of_image>") == turn.count("<end_of_image>") == 2


def test_anthropics_tool_choice(claude: anthropic.Anthropic, script: Script) -> None:
    script.says += [WRITTEN[0]] * 2
    asked: Any = {"model": "tiny", "max_tokens": 50, "tools": CLAUDE_TOOLS, "messages": [QUESTION]}
    (block,) = claude.messages.create(tool_choice={"type": "none"}, **asked).content
    assert block.text == WRITTEN[0]
    (block,) = claude.messages.create(tool_choice={"type": "auto", "disable_parallel_tool_use": True}, **asked).content
    assert (block.name, block.input) == CALLED[0]
    assert [params.grammar for params in script.asked] == [None] * 2


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "now"}])
def test_anthropics_forced_calls(claude: anthropic.Anthropic, script: Script, choice: Any) -> None:
    script.says += [WRITTEN[0]]
    asked: Any = {"model": "tiny", "max_tokens": 50, "tools": CLAUDE_TOOLS, "messages": [QUESTION]}
    claude.messages.create(tool_choice=choice, **asked)
    tools = [{"name": tool["name"], "parameters": tool["input_schema"]} for tool in CLAUDE_TOOLS]
    assert GEMMA3.call_grammar is not None
    assert script.asked[0].grammar == gemma_tpu.Grammar.lark(GEMMA3.call_grammar(tools[choice["type"] != "any" :]))


def test_anthropics_strict_calls_and_formats(claude: anthropic.Anthropic, script: Script) -> None:
    script.says += [WRITTEN[1], WRITTEN[0], '{"name": "now", "steps": []}']
    asked: Any = {"model": "tiny", "max_tokens": 50, "messages": [QUESTION]}
    strict: Any = [{**tool, "strict": True} for tool in CLAUDE_TOOLS]
    uses = claude.messages.create(tools=strict, **asked).content
    assert [(use.name, use.input) for use in uses] == CALLED
    (block,) = claude.messages.create(tools=strict, **asked).content
    assert block.text == WRITTEN[0]
    tools = [{"name": tool["name"], "parameters": tool["input_schema"]} for tool in CLAUDE_TOOLS]
    assert GEMMA3.text_grammar is not None
    assert script.asked[0].grammar == gemma_tpu.Grammar.lark(GEMMA3.text_grammar(tools, ["get_product", "now"]))
    form: Any = {"format": {"type": "json_schema", "schema": ANSWER}}
    (block,) = claude.messages.create(tools=strict, output_config=form, **asked).content
    assert block.text == '{"name": "now", "steps": []}'
    assert GEMMA3.call_grammar is not None
    assert script.asked[2].grammar == gemma_tpu.Grammar.lark(GEMMA3.call_grammar(tools, answer=ANSWER))


USE = {"type": "tool_use", "id": "1", "name": "now", "input": {}}


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("tools[0].input_schema: ", {"tools": [{"name": "f"}]}),
        ("tools[0].type: ", {"tools": [{"type": "web_search_20250305", "name": "web_search", "input_schema": {}}]}),
        ("tool_choice: ", {"tools": CLAUDE_TOOLS, "tool_choice": {"type": "tool"}}),
        ("tool_choice: there is no such", {"tools": CLAUDE_TOOLS, "tool_choice": {"type": "tool", "name": "f"}}),
        ("messages[0]: ", {"messages": [{"role": "user", "content": [USE]}]}),
        ("messages[0]: ", {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "a"}]}]}),
        ("messages[0]: ", {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "a"}, {"type": "tool_result", "tool_use_id": "1"}]}]}),
        ("messages[1]: no response to now", {"messages": [QUESTION, {"role": "assistant", "content": [USE]}]}),
        ("messages[2]: ", {"messages": [QUESTION, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "2", "content": "x"}]}]}),
        ("messages[2].content[1].source: ", {"messages": [QUESTION, {"role": "assistant", "content": [USE]}, {
            "role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}, {"type": "image",
            "source": {"type": "url", "url": "http://127.0.0.1/a.png"}}]}]}),
        ("messages[2].content[0].content[1].source: ", {"messages": [
            QUESTION, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "x"}, {
                    "type": "image", "source": {"type": "url", "url": "http://127.0.0.1/a.png"}}]}]}]}),
        ("messages[2].content[0].content[0].", {"messages": [QUESTION, {"role": "assistant", "content": [USE]}, {
            "role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [USE]}]}]}),
    ],
)  # fmt: skip
def test_what_anthropics_clients_are_told(tool_site: Site, script: Script, said: str, asked: dict[str, Any]) -> None:
    response = tool_site.http.post(PATH, json={"max_tokens": 4, "messages": HELLO, **asked})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(said)
    assert not script.prompts
