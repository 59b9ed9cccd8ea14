"""Tools in chats, through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import format_samples
import openai
import pytest
from server_site import CHAT, Site, serve
from tool_script import ANSWER, CALLED, INSTRUCTION, QUESTION, TOOLS, WRITTEN, Script, make

import gemma_tpu
from gemma_tpu.text import FUNCTION_GEMMA, GEMMA3


def ask(tool_client: openai.OpenAI, script: Script, says: str, **asked: Any) -> Any:
    script.says.append(says)
    asked = {"model": "tiny", "messages": [QUESTION], "tools": TOOLS, **asked}
    (choice,) = tool_client.chat.completions.create(**asked).choices
    return choice


def called(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


@pytest.mark.parametrize("written", WRITTEN)
def test_calls(tool_client: openai.OpenAI, script: Script, written: str) -> None:
    choice = ask(tool_client, script, written)
    assert called(choice.message) == CALLED
    assert choice.message.content is None
    assert choice.finish_reason == "tool_calls"
    ids = [call.id for call in choice.message.tool_calls]
    assert len({*ids}) == 2
    assert all(id.startswith("call_") for id in ids)
    assert INSTRUCTION in script.prompts[0]
    assert '"description": "A product\'s name"' in script.prompts[0]


def test_text_and_calls(tool_client: openai.OpenAI, script: Script) -> None:
    choice = ask(tool_client, script, f"I look.\n\n{WRITTEN[2]}\n\nWait.")
    assert (choice.message.content, called(choice.message)) == ("I look.\n\nWait.", CALLED)
    choice = ask(tool_client, script, " No tool [is] needed.\n")
    assert (choice.message.content, choice.message.tool_calls) == (" No tool [is] needed.\n", None)
    assert choice.finish_reason == "stop"
    script.reason = "length"
    choice = ask(tool_client, script, "[get_product(PID='8")
    assert (choice.message.content, choice.finish_reason) == ("[get_product(PID='8", "length")
    choice = ask(tool_client, script, f"{WRITTEN[0]} And")
    assert (called(choice.message), choice.finish_reason) == (CALLED, "length")


@pytest.mark.parametrize("written", ["Let me see.\n{}", "{}"])
def test_a_stream(tool_client: openai.OpenAI, script: Script, written: str) -> None:
    script.says += [written.format(WRITTEN[1])] * 2
    asked: Any = {"model": "tiny", "messages": [QUESTION], "tools": TOOLS, "n": 2}
    content, reasons = ["", ""], [None, None]
    calls: list[list[dict[str, Any]]] = [[], []]
    for chunk in tool_client.chat.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            i, delta = choice.index, choice.delta
            content[i] += delta.content or ""
            reasons[i] = choice.finish_reason or reasons[i]
            for part in delta.tool_calls or ():
                if part.index == len(calls[i]):
                    assert part.function.name
                    calls[i].append({"id": part.id, "name": part.function.name, "arguments": ""})
                calls[i][part.index]["arguments"] += part.function.arguments or ""
    assert content == ["Let me see." if "see" in written else ""] * 2
    for of_one in calls:
        assert [(call["name"], json.loads(call["arguments"])) for call in of_one] == CALLED
    assert len({call["id"] for of_one in calls for call in of_one}) == 4
    assert reasons == ["tool_calls"] * 2


def test_what_was_called_comes_back(tool_client: openai.OpenAI, script: Script) -> None:
    message = ask(tool_client, script, f"I look.\n{WRITTEN[0]}").message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"of {i}"} for i, call in enumerate(message.tool_calls)
    ]
    history = [QUESTION, message.model_dump(exclude_none=True), *results]
    answer = ask(tool_client, script, "It is a lamp.", messages=history)
    assert answer.message.content == "It is a lamp."
    turns = script.prompts[1].split("<start_of_turn>")
    assert turns[2] == f"model\nI look.\n{WRITTEN[1]}<end_of_turn>\n"
    results_told = "<tool_response>\nof 0\n</tool_response>\n<tool_response>\nof 1\n</tool_response>"
    assert turns[3] == f"user\n{results_told}<end_of_turn>\n"
    ask(tool_client, script, "Yes.", messages=[*history, {"role": "user", "content": "Sure?"}], tools=openai.omit)
    assert script.prompts[2].endswith(f"{results_told}\nSure?<end_of_turn>\n<start_of_turn>model\n")


def test_tool_choice(tool_client: openai.OpenAI, script: Script) -> None:
    none = ask(tool_client, script, WRITTEN[0], tool_choice="none")
    assert (none.message.content, none.message.tool_calls, none.finish_reason) == (WRITTEN[0], None, "stop")
    assert INSTRUCTION not in script.prompts[0]
    one = ask(tool_client, script, WRITTEN[0], tool_choice="auto", parallel_tool_calls=False)
    assert called(one.message) == CALLED[:1]


def test_tokens_of_tools(tool_site: Site, tool_client: openai.OpenAI, script: Script) -> None:
    script.says.append("a")
    usage = tool_client.chat.completions.create(model="tiny", messages=[QUESTION], tools=TOOLS).usage
    assert usage is not None
    assert tool_site.ask("/tokenize", messages=[QUESTION], tools=TOOLS).json()["count"] == usage.prompt_tokens
    assert tool_site.refused(400, "/tokenize", prompt="a", tools=TOOLS)["param"] == "tools"


FORCED: list[Any] = ["required", {"type": "function", "function": {"name": "now"}}]


@pytest.mark.parametrize("choice", FORCED)
def test_a_grammar_guarantees_calls(tool_client: openai.OpenAI, script: Script, choice: Any) -> None:
    ask(tool_client, script, "{}", tool_choice=choice, parallel_tool_calls=False)
    tools = [tool["function"] for tool in TOOLS[choice != "required" :]]
    assert GEMMA3.call_grammar is not None
    assert script.asked[0].grammar == gemma_tpu.Grammar.lark(GEMMA3.call_grammar(tools, parallel=False))
    assert "get_product" in script.prompts[0]


@pytest.mark.parametrize("seed", range(3))
def test_forced_calls(tool_client: openai.OpenAI, seed: int) -> None:
    """Of random weights."""
    tools: Any = [TOOLS[1]]
    asked: Any = {"model": "tiny", "messages": [QUESTION], "temperature": 1, "seed": seed}
    answer = tool_client.chat.completions.create(
        tools=tools, tool_choice="required", parallel_tool_calls=False, **asked
    )
    assert called(answer.choices[0].message) == [("now", {})]
    assert answer.choices[0].finish_reason == "tool_calls"


STRICT: Any = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]


def test_strict_calls_follow_their_schemas(tool_client: openai.OpenAI, script: Script) -> None:
    choice = ask(tool_client, script, f"I look.\n{WRITTEN[1]}", tools=[STRICT[0], TOOLS[1]])
    assert (choice.message.content, called(choice.message)) == ("I look.", CALLED)
    assert GEMMA3.text_grammar is not None
    functions = [tool["function"] for tool in TOOLS]
    assert script.asked[0].grammar == gemma_tpu.Grammar.lark(GEMMA3.text_grammar(functions, ["get_product"]))
    assert "strict" not in script.prompts[0]
    mixed = ask(tool_client, script, WRITTEN[0], tools=[STRICT[0], TOOLS[1]])  # which is not held to anything
    assert (mixed.message.content, called(mixed.message)) == (WRITTEN[0], [])
    required = ask(tool_client, script, WRITTEN[1], tools=STRICT, tool_choice="required")
    assert called(required.message) == CALLED
    none = ask(tool_client, script, WRITTEN[1], tools=STRICT, tool_choice="none")
    assert (none.message.content, script.asked[-1].grammar) == (WRITTEN[1], None)


FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "steps", "schema": ANSWER, "strict": True}}


@pytest.mark.parametrize("tools", [TOOLS, STRICT])
def test_calls_or_an_answer_of_a_form(tool_client: openai.OpenAI, script: Script, tools: Any) -> None:
    choice = ask(tool_client, script, WRITTEN[1], tools=tools, response_format=FORMAT)
    assert (choice.message.content, called(choice.message), choice.finish_reason) == (None, CALLED, "tool_calls")
    assert GEMMA3.call_grammar is not None
    functions = [tool["function"] for tool in TOOLS]
    assert script.asked[0].grammar == gemma_tpu.Grammar.lark(GEMMA3.call_grammar(functions, answer=ANSWER))
    answer = '{"name": "now", "steps": [{"name": "now", "parameters": {}}]}'
    choice = ask(tool_client, script, answer, tools=tools, response_format=FORMAT)
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (answer, None, "stop")
    script.says.append(answer)
    asked: Any = {"model": "tiny", "messages": [QUESTION], "tools": tools, "response_format": FORMAT}
    chunks = tool_client.chat.completions.create(stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    ask(tool_client, script, WRITTEN[1], tools=tools, response_format=FORMAT, tool_choice="required")
    assert script.asked[-1].grammar == gemma_tpu.Grammar.lark(GEMMA3.call_grammar(functions))
    ask(tool_client, script, answer, tools=tools, response_format=FORMAT, tool_choice="none")
    assert script.asked[-1].grammar == gemma_tpu.Grammar.json_schema(ANSWER)


def test_a_random_model_calls_or_answers(tool_client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["x", "no"]}}, "required": ["name"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}}}
    asked: Any = {"model": "tiny", "messages": [QUESTION], "temperature": 1, "response_format": form}
    answers = [tool_client.chat.completions.create(tools=[TOOLS[1]], seed=seed, **asked) for seed in range(8)]
    messages = [answer.choices[0].message for answer in answers]
    assert all(called(message) or json.loads(message.content)["name"] in ("x", "no") for message in messages)
    assert len({bool(message.tool_calls) for message in messages}) == 2


def call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def assistant(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


RESULT = {"role": "tool", "tool_call_id": "1", "content": "x"}


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name", "pattern"),
        ({"tools": [tool(x=1)]}, "tools[0].function.x", "not a field"),
        ({"tools": [tool(strict=1)]}, "tools[0].function.strict", "boolean"),
        ({"tools": TOOLS, "structured_outputs": {"choice": ["a"]}}, "tools", "structured_outputs"),
        ({"tools": [tool(strict=True)], "response_format": {"type": "json_object"}}, "tools", "that no call follows"),
        ({"tools": [tool(parameters=5)]}, "tools[0].function.parameters", ""),
        ({"tools": TOOLS * 65}, "tools", "128"),
        ({"tools": TOOLS * 2}, "tools", "one name"),
        ({"tool_choice": "always", "tools": TOOLS}, "tool_choice", "required"),
        ({"tool_choice": "required"}, "tool_choice", "no such tool"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": TOOLS}, "tool_choice", "no such"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": TOOLS}, "tool_choice.type", "function"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "boolean"),
        ({"messages": [QUESTION, RESULT]}, "messages[1]", "out of turn"),
        ({"messages": [QUESTION, assistant(call("1", "f", "{}"))]}, "messages[1]", "no response to f"),
        ({"messages": [QUESTION, assistant(call("1", "f", "{")), RESULT]}, "messages[1].tool_calls[0]", "no JSON"),
        ({"messages": [QUESTION, assistant(call("2", "f", "{}")), RESULT]}, "messages[2]", "not called"),
        ({"messages": [QUESTION, assistant({"id": "1", "type": "function"}), RESULT]},
         "messages[1].tool_calls[0].function", "required"),
        ({"messages": [QUESTION | {"tool_call_id": "1"}]}, "messages[0].tool_call_id", "not supported"),
    ],
)  # fmt: skip
def test_what_is_wrong(tool_site: Site, script: Script, asked: dict[str, Any], param: str, said: str) -> None:
    error = tool_site.refused(400, **asked)
    assert error["param"] == param
    assert said in error["message"]
    assert not script.prompts


def test_schemas_may_not_be_too_deep(tool_site: Site) -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}
    error = tool_site.refused(400, tools=[tool(parameters=schema)])
    assert (error["param"], "nested more than" in error["message"]) == ("tools[0]", True)


def test_function_gemma(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = format_samples.function_gemma()
    script = Script(tokenizer)
    written = "<start_function_call>call:get_product{PID:<escape>807ZPKBL9V<escape>}<end_function_call>"
    script.says = [f"{written}<start_function_call>call:now{{}}<end_function_call>", written, "raw"]
    with make(tokenizer, FUNCTION_GEMMA) as model, serve(model) as site:
        monkeypatch.setattr(model.engine, "submit", script.submit)
        (choice,) = site.ask(messages=[QUESTION], tools=TOOLS).json()["choices"]
        calls = [call["function"] for call in choice["message"]["tool_calls"]]
        assert [(one["name"], json.loads(one["arguments"])) for one in calls] == CALLED
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
        assert "<start_function_declaration>declaration:get_product" in script.prompts[0]
        (choice,) = site.ask(messages=[QUESTION]).json()["choices"]
        assert choice["message"]["content"] == written
        monkeypatch.undo()
        for seed in range(3):  # of random weights
            asked = {"messages": [QUESTION], "tools": TOOLS[1:], "tool_choice": "required", "max_tokens": 30}
            (choice,) = site.ask(parallel_tool_calls=False, temperature=1, seed=seed, **asked).json()["choices"]
            (one,) = choice["message"]["tool_calls"]
            assert (one["function"]["name"], one["function"]["arguments"]) == ("now", "{}")
        pattern = {"type": "object", "properties": {"x": {"type": "string", "pattern": "a"}}}
        error = site.refused(400, CHAT, tools=[tool(parameters=pattern, strict=True)])
        assert (error["param"], "not held to pattern" in error["message"]) == ("tools", True)
