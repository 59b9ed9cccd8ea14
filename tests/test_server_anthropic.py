"""The server as Anthropic's own Python client sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from server_site import HELLO, WAIT, Site, data_url, make_model, noise, serve

import gemma_tpu
from gemma_tpu.server import Settings
from gemma_tpu.server.messages_schema import CountRequest, MessagesRequest

PATH = "/v1/messages"


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model, Settings(model_names=("tiny",), api_keys=("secret",))) as site:
        site.http.headers["x-api-key"] = "secret"
        yield site


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[anthropic.Anthropic]:
    asked: Any = {"api_key": "secret", "max_retries": 0, "timeout": WAIT, "_strict_response_validation": True}
    with anthropic.Anthropic(base_url=site.url, **asked) as client:
        yield client


SOURCE = dict(zip(("type", "media_type", "data"), ("base64", "image/png", data_url(noise(50, 30))[22:]), strict=True))
TEXT = {"type": "text", "text": "a"}
THOUGHTS = [
    {"type": "thinking", "thinking": "Which?", "signature": "x"},
    {"type": "redacted_thinking", "data": "x"},
]
SYSTEM = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
ASKED: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"messages": HELLO}, HELLO),
    ({"messages": HELLO, "system": "Be brief."}, [{"role": "system", "content": "Be brief."}, *HELLO]),
    ({"messages": HELLO, "system": SYSTEM}, [{"role": "system", "content": "Be brief."}, *HELLO]),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": SOURCE}, TEXT]}]},
        [{"role": "user", "content": [{"type": "image", "image": noise(50, 30)}, TEXT]}],
    ),
    ({"messages": [*HELLO, {"role": "assistant", "content": "It"}]}, [*HELLO, {"role": "assistant", "content": "It"}]),
    (
        {"messages": [*HELLO, {"role": "assistant", "content": [*THOUGHTS, {"type": "text", "text": "It"}]}, *HELLO]},
        [*HELLO, {"role": "assistant", "content": "It"}, *HELLO],
    ),
    (
        {"messages": [*HELLO, {"role": "assistant", "content": THOUGHTS}, *HELLO]},
        [*HELLO, {"role": "assistant", "content": ""}, *HELLO],
    ),
    ({"messages": [*HELLO, {"role": "assistant", "content": []}]}, [*HELLO, {"role": "assistant", "content": ""}]),
]


@pytest.mark.parametrize(("asked", "prompt"), ASKED)
@pytest.mark.parametrize("stop", [(), ("e", "zz")])
def test_an_answer(
    client: anthropic.Anthropic, model: gemma_tpu.Model, asked: dict[str, Any], prompt: Any, stop: tuple[str, ...]
) -> None:
    continued = prompt[-1]["role"] == "assistant"
    wanted = model.generate(prompt, max_new_tokens=12, continue_final=continued, stop=stop)
    options: Any = {"model": "tiny", "max_tokens": 12, "stop_sequences": list(stop), **asked}
    answer = client.messages.create(**options)
    (block,) = answer.content
    assert block.text == wanted.text
    assert (answer.role, answer.type, answer.model) == ("assistant", "message", "tiny")
    stopped = wanted.finish_reason == "stop"
    assert answer.stop_reason == ("stop_sequence" if stopped else "max_tokens")
    assert answer.stop_sequence == ("e" if stopped else None)
    usage = answer.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == wanted.usage.prompt_tokens
    assert usage.output_tokens == len(wanted.tokens)
    with client.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == wanted.text
        whole = stream.get_final_message()
    assert (whole.stop_reason, whole.stop_sequence) == (answer.stop_reason, answer.stop_sequence)
    assert whole.content[0].text == wanted.text
    assert whole.usage.output_tokens == len(wanted.tokens)
    counted = client.messages.count_tokens(model="tiny", **asked)
    assert counted.input_tokens == wanted.usage.prompt_tokens


def test_an_answer_that_ends_by_itself(client: anthropic.Anthropic, model: gemma_tpu.Model, monkeypatch) -> None:
    first = model.generate("Hello", max_new_tokens=12).tokens
    last = next(i for i, token in enumerate(first) if token != first[0])
    monkeypatch.setattr(model.engine._scheduler, "eos_tokens", (first[last],))
    answer = client.messages.create(model="tiny", max_tokens=12, messages=HELLO)
    assert (answer.stop_reason, answer.stop_sequence, answer.usage.output_tokens) == ("end_turn", None, last)


def test_the_events_are_named(site: Site) -> None:
    text = site.http.post(PATH, json={"max_tokens": 4, "messages": HELLO, "stream": True}).text
    events = [event.split("\n") for event in text.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in events]
    assert names == [json.loads(data.removeprefix("data: "))["type"] for _, data in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_every_field_of_the_api_is_known() -> None:
    for ours, theirs in (
        (MessagesRequest, message_create_params.MessageCreateParamsStreaming),
        (CountRequest, message_count_tokens_params.MessageCountTokensParams),
    ):
        assert set(theirs.__annotations__) <= set(ours.model_fields)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("thinking: is not supported", {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ("max_tokens: Field required", {"max_tokens": ...}),
        ("temperature: ", {"temperature": 1.5}),
        ("wings: is not a field", {"wings": 2}),
        ("messages[0].content[0].source: Field", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
        ("messages[0].content[0].source: ", {"messages": [{"role": "user", "content": [{"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": "AAAA"}}]}]}),
        ("messages[0].content[0].source: ", {"messages": [{"role": "user", "content": [{"type": "image", "source": {
            "type": "url", "url": "file:///etc/passwd"}}]}]}),
        ("messages[1]: ", {"messages": [*HELLO, *HELLO], "system": "Be brief."}),
        ("messages[1]: ", {"messages": [*HELLO, *HELLO]}),
        ("messages[0].role: ", {"messages": [{"role": "system", "content": "a"}]}),
    ],
)  # fmt: skip
def test_what_is_refused(site: Site, said: str, asked: dict[str, Any]) -> None:
    body = {key: value for key, value in {"max_tokens": 4, "messages": HELLO, **asked}.items() if value is not ...}
    response = site.http.post(PATH, json=body)
    assert response.status_code == 400
    told = response.json()
    assert told.keys() == {"type", "error", "request_id"}
    assert (told["type"], told["request_id"]) == ("error", response.headers["x-request-id"])
    assert told["error"]["type"] == "invalid_request_error"
    assert told["error"]["message"].startswith(said)


def test_errors_as_the_client_raises_them(site: Site, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.create(model="claude", max_tokens=4, messages=HELLO)
    stranger = anthropic.Anthropic(base_url=site.url, api_key="wrong", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        stranger.messages.create(model="tiny", max_tokens=4, messages=HELLO)


def test_an_error_in_the_middle(site: Site, model: gemma_tpu.Model, client: anthropic.Anthropic, monkeypatch) -> None:
    submit = model.engine.submit

    def spoiled(tokens, images, sampling_params, watch=None, *rest):
        return submit(tokens, images, sampling_params, lambda _: 1 / 0, *rest)

    monkeypatch.setattr(model.engine, "submit", spoiled)
    stream = client.messages.create(model="tiny", max_tokens=4, messages=HELLO, stream=True)
    with pytest.raises(anthropic.APIStatusError, match="internal error"):
        list(stream)
