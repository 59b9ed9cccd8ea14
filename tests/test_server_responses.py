"""OpenAI's Responses API, as OpenAI's own client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import response_create_params
from server_site import HELLO, WAIT, Site, data_url, make_model, noise, serve
from tool_script import FUNCTIONS as TOOLS

import gemma_tpu
from gemma_tpu.server.responses_schema import ResponsesRequest

PATH = "/v1/responses"


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[openai.OpenAI]:
    asked: Any = {"api_key": "none", "max_retries": 0, "timeout": WAIT, "_strict_response_validation": True}
    with openai.OpenAI(base_url=f"{site.url}/v1", **asked) as client:
        yield client


TEXT = {"type": "input_text", "text": "What is it?"}
IMAGE = {"type": "input_image", "image_url": data_url(noise(50, 30)), "detail": "auto"}
PICTURE = {"type": "image", "image": noise(50, 30)}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Which?"}]}
SAID = {"type": "output_text", "text": "said", "annotations": []}
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "said"}, {"role": "user", "content": "b"}]
ASKED: list[tuple[dict[str, Any], Any]] = [
    ({"input": "Hello"}, HELLO),
    ({"input": HELLO, "instructions": "Be brief."}, [{"role": "system", "content": "Be brief."}, *HELLO]),
    (
        {"input": [{"role": "user", "content": [IMAGE, TEXT]}]},
        [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What is it?"}]}],
    ),
    (
        {
            "input": [
                TURNS[0],
                THOUGHT,
                {"type": "message", "id": "1", "role": "assistant", "content": [SAID]},
                TURNS[2],
            ]
        },
        TURNS,
    ),
]


CALL = {"type": "function_call", "call_id": "1", "name": "now", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "noon"}


def test_logprobs(client: openai.OpenAI, model: gemma_tpu.Model) -> None:
    options: Any = {"model": "tiny", "input": "Hello", "max_output_tokens": 8, "top_logprobs": 2}
    wanted = model.generate("Hello", max_new_tokens=8, logprobs=2)
    include: Any = ["message.output_text.logprobs"]
    answer = client.responses.create(include=include, **options)
    found = answer.output[0].content[0].logprobs
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in wanted.logprobs])
    assert b"".join(bytes(one.bytes) for one in found).decode(errors="replace") == wanted.text
    assert [[top.logprob for top in one.top_logprobs] for one in found] == [
        pytest.approx([logprob for _, logprob in one.top]) for one in wanted.logprobs
    ]
    events = list(client.responses.create(include=include, stream=True, **options))
    deltas = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    done = next(event for event in events if event.type == "response.output_text.done")
    assert [one.logprob for one in done.logprobs] == pytest.approx([one.logprob for one in found])
    assert [one.logprob for one in deltas] == pytest.approx([one.logprob for one in found][: len(deltas)])
    bare = client.responses.create(include=include, **options | {"top_logprobs": openai.omit})
    assert [one.top_logprobs for one in bare.output[0].content[0].logprobs] == [[]] * len(found)
    assert client.responses.create(**options | {"top_logprobs": openai.omit}).output[0].content[0].logprobs == []


@pytest.mark.parametrize(("asked", "prompt"), ASKED)
def test_an_answer(client: openai.OpenAI, model: gemma_tpu.Model, asked: dict[str, Any], prompt: Any) -> None:
    wanted = model.generate(prompt, max_new_tokens=12, temperature=1.0, seed=5)
    options: Any = {"model": "tiny", "max_output_tokens": 12, "temperature": 1.0, "extra_body": {"seed": 5}, **asked}
    answer = client.responses.create(**options)
    assert answer.output_text == wanted.text
    cut = wanted.finish_reason == "length"
    assert answer.status == ("incomplete" if cut else "completed")
    assert (answer.incomplete_details.reason if cut else None) == ("max_output_tokens" if cut else None)
    assert answer.usage.input_tokens == wanted.usage.prompt_tokens
    assert answer.usage.output_tokens == len(wanted.tokens)
    events = list(client.responses.create(stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == wanted.text
    assert events[-1].response.output_text == wanted.text
    assert events[-1].type == f"response.{answer.status}"
    assert [event.type.removeprefix("response.") for event in events[:4]] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
    ]


@pytest.mark.parametrize("options", [{"top_k": 3}, {"min_p": 0.5}, {"repetition_penalty": 3.0}, {"top_k": -1}])
def test_fields_of_other_servers(client: openai.OpenAI, model: gemma_tpu.Model, options: dict[str, Any]) -> None:
    drawn = {"max_new_tokens": 24, "temperature": 1.0, "seed": 5}
    wanted = model.generate("Hello", **drawn, **{name: max(value, 0) for name, value in options.items()})
    assert (wanted.text == model.generate("Hello", **drawn, top_k=0).text) == (options == {"top_k": -1})
    body = {"seed": 5, "chat_template_kwargs": {"enable_thinking": False}, **options}
    asked: Any = {"model": "tiny", "input": "Hello", "max_output_tokens": 24, "temperature": 1.0}
    assert client.responses.create(**asked, extra_body=body).output_text == wanted.text


def test_the_clients_own_stream(client: openai.OpenAI, model: gemma_tpu.Model) -> None:
    wanted = model.generate("Hello", max_new_tokens=12)
    with client.responses.stream(model="tiny", input="Hello", max_output_tokens=12) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert snapshots[-1] == wanted.text


def test_truncation(site: Site, model: gemma_tpu.Model) -> None:
    turns = [{"role": role, "content": "word " * 60} for role in ("user", "assistant") * 3] + HELLO
    assert site.refused(400, PATH, input=turns)["code"] == "context_length_exceeded"
    answer = site.ask(PATH, input=turns, truncation="auto", max_output_tokens=8).json()
    wanted = model.generate(turns, drop_oldest=True, max_new_tokens=8)
    assert wanted.dropped_turns
    assert answer["usage"]["input_tokens"] == wanted.usage.prompt_tokens
    assert answer["output"][0]["content"][0]["text"] == wanted.text


def test_an_answer_is_not_continued(site: Site) -> None:
    error = site.refused(400, PATH, input=[*HELLO, {"role": "assistant", "content": "It"}])
    assert error["param"] == "input[1]"
    assert error["message"].endswith("; end with a user's")


def test_every_field_of_the_api_is_known() -> None:
    theirs = response_create_params.ResponseCreateParamsStreaming.__annotations__
    assert len(theirs) > 15
    assert set(theirs) <= set(ResponsesRequest.model_fields)


@pytest.mark.parametrize(
    ("param", "asked"),
    [
        ("tools[0].type", {"tools": [{"type": "web_search"}]}),
        ("tools[0].name", {"tools": [{"type": "function"}]}),
        ("tools", {"tools": [TOOLS[0]] * 2}),
        ("tools", {"tools": [{**TOOLS[0], "strict": True}], "text": {"format": {"type": "json_object"}}}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}),
        ("tool_choice", {"tool_choice": "required"}),
        ("top_logprobs", {"top_logprobs": 21}),
        ("include[0]", {"include": ["reasoning.encrypted_content"]}),
        ("input[1].arguments", {"input": [*HELLO, CALL | {"arguments": "{"}, OUTPUT]}),
        ("input[1]", {"input": [*HELLO, OUTPUT]}),
        ("input[2]", {"input": [*HELLO, CALL, OUTPUT | {"call_id": "2"}]}),
        (
            "input[2].output[1].image_url",
            {
                "input": [
                    *HELLO,
                    CALL,
                    OUTPUT
                    | {
                        "output": [
                            {"type": "input_text", "text": "x"},
                            {"type": "input_image", "image_url": "http://127.0.0.1/a.png"},
                        ]
                    },
                ]
            },
        ),
        ("input[0].call_id", {"input": [{"type": "function_call", "name": "now", "arguments": "{}"}]}),
        ("store", {"store": True}),
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("wings", {"wings": 2}),
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("input", {"input": 5}),
        ("input[0].type", {"input": [{"type": "web_search_call", "role": "user", "content": "a"}]}),
        ("input[0].role", {"input": [{"type": "reasoning", "role": "user"}]}),
        ("input[0].content[0]", {"input": [{"role": "user", "content": [{"type": "input_text"}]}]}),
        ("input[0].content[0].image_url", {"input": [{"role": "user", "content": [IMAGE | {"image_url": "/a"}]}]}),
        ("input[1]", {"input": [*HELLO, *HELLO]}),
        ("input[1]", {"input": [*HELLO, *HELLO], "instructions": "Be brief."}),
    ],
)
def test_what_is_refused(site: Site, param: str, asked: dict[str, Any]) -> None:
    error = site.refused(400, PATH, **{"input": "Hello", **asked})
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


def test_an_error_in_the_middle(model: gemma_tpu.Model, client: openai.OpenAI, monkeypatch) -> None:
    submit = model.engine.submit

    def spoiled(tokens, images, sampling_params, watch=None, *rest):
        return submit(tokens, images, sampling_params, lambda _: 1 / 0, *rest)

    monkeypatch.setattr(model.engine, "submit", spoiled)
    stream = client.responses.create(model="tiny", input="Hello", stream=True)
    with pytest.raises(openai.APIError, match="internal error"):
        list(stream)
