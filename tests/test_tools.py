"""Tools through the library: Gemma 3 is told of functions, calls them, and is told what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from test_api import TOKENIZER
from tool_script import CALLED, INSTRUCTION, TOOLS, WRITTEN, Script, make

import gemma_tpu
from gemma_tpu.text import GEMMA3


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make(TOKENIZER, GEMMA3) as model:
        yield model


@pytest.fixture
def script(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script(TOKENIZER)
    monkeypatch.setattr(model.engine, "submit", script.submit)
    return script


def called(calls: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


@pytest.mark.parametrize("written", WRITTEN)
def test_calls_of_an_answer(model: gemma_tpu.Model, script: Script, written: str) -> None:
    script.says = [written] * 2
    answer = model.generate("What is it?", tools=TOOLS)
    assert isinstance(answer, gemma_tpu.Completion)
    assert (answer.text, called(answer.tool_calls)) == (written, CALLED)
    assert INSTRUCTION in script.prompts[0]
    plain = model.generate("What is it?")
    assert isinstance(plain, gemma_tpu.Completion)
    assert plain.tool_calls == []
    assert INSTRUCTION not in script.prompts[1]


def test_a_conversation(model: gemma_tpu.Model, script: Script) -> None:
    script.says = [f"I look.\n{WRITTEN[0]}", "It is a lamp."]
    chat = model.chat(tools=TOOLS)
    chat.send("What is it?")
    assert called(chat.calls) == CALLED
    assert chat.messages[-1]["content"] == "I look.\n"
    assert chat.respond(["a lamp", {"hour": 12}]).finish().text == "It is a lamp."
    assert chat.calls == []
    assert script.prompts[1].endswith(
        f"<start_of_turn>model\nI look.\n{WRITTEN[1]}<end_of_turn>\n<start_of_turn>user\n<tool_response>\na lamp\n"
        '</tool_response>\n<tool_response>\n{"hour": 12}\n</tool_response><end_of_turn>\n<start_of_turn>model\n'
    )


def test_tools_that_are_none(model: gemma_tpu.Model, script: Script) -> None:
    with pytest.raises(ValueError, match=r"tools\[1\]: expected a function as JSON schema"):
        model.generate("a", tools=[TOOLS[0], "f"])
    assert not script.prompts
