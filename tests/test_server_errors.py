"""Requests that are wrong, and what they are told: a status, and the field by its name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from server_site import CHAT, COMPLETIONS, HELLO, Site, data_url, error_of, make_model, noise, serve

import gemma_tpu
from gemma_tpu.server import Settings
from gemma_tpu.server.schema import ChatRequest, CompletionRequest

UNSUPPORTED: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "mp3"},
    "chat_template": "{{ messages }}",
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni"},
    "prediction": {"type": "content", "content": "a"},
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "high",
    "service_tier": "priority",
    "store": True,
    "verbosity": "low",
    "web_search_options": {},
}
WRONG: list[tuple[str, Any]] = [
    ("add_generation_prompt", False),
    ("continue_final_message", True),
    ("frequency_penalty", "much"),
    ("max_completion_tokens", 0),
    ("max_tokens", 1.5),
    ("messages", []),
    ("messages", "Hello"),
    ("metadata", {"a": 1}),
    ("min_p", 1.5),
    ("model", 5),
    ("n", 0),
    ("n", 129),
    ("seed", 2**63),
    ("seed", 1.5),
    ("stop", [5]),
    ("stop", ["a"] * 17),
    ("stop", [""]),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "1"),
    ("temperature", True),
    ("top_k", -2),
    ("top_p", 0),
    ("top_p", 1.1),
    ("user", 5),
]


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


def test_every_field_of_the_api_is_known() -> None:
    for ours, theirs in ((ChatRequest, chat_create_params), (CompletionRequest, completion_create_params)):
        fields = theirs.CompletionCreateParamsStreaming.__annotations__
        assert len(fields) > 15
        assert set(fields) <= set(ours.model_fields)


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_not_supported(site: Site, field: str) -> None:
    error = site.refused(400, **{field: UNSUPPORTED[field]})
    assert (error["param"], error["code"], error["type"]) == (field, "unsupported_parameter", "invalid_request_error")
    assert error["message"].startswith(f"{field}: ")


@pytest.mark.parametrize(("field", "value"), [("best_of", 3), ("suffix", "end")])
def test_what_is_not_supported_of_completions(site: Site, field: str, value: Any) -> None:
    error = site.refused(400, COMPLETIONS, prompt="a", **{field: value})
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


def test_every_field_without_support_is_tried_here() -> None:
    marked = {name for name, field in ChatRequest.model_fields.items() if field.annotation is Any}
    others = {"chat_template_kwargs", "documents", "mm_processor_kwargs", "priority"}
    assert set(UNSUPPORTED) == marked - others


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_wrong_values(site: Site, field: str, value: Any) -> None:
    error = site.refused(400, **{field: value})
    assert re.split(r"[\[.]", error["param"])[0] == field
    assert error["message"].startswith(error["param"])
    assert error["code"] in ("invalid_value", "unsupported_parameter")


@pytest.mark.parametrize("prompt", [[], [1, "a"], ["a", 1], [[1], "a"], 5, {}, [True]])
def test_wrong_prompts(site: Site, prompt: Any) -> None:
    assert site.refused(400, COMPLETIONS, prompt=prompt)["param"].startswith("prompt")


@pytest.mark.parametrize("prompt", [[[]], [10**6], [-1], "<start_of_image>"])
def test_prompts_that_the_model_cannot_take(site: Site, prompt: Any) -> None:
    body = json.dumps({"prompt": prompt, "max_tokens": 2})
    response = site.http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert error_of(response, 400)["param"] == "prompt"


def message(role: str, content: Any = "a", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


IMAGE = {"type": "image_url", "image_url": {"url": data_url()}}


@pytest.mark.parametrize(
    ("messages", "param", "said"),
    [
        ([message("assistant")], "messages[0]", "first"),
        ([message("user"), message("user")], "messages[1]", "role 'user' out of turn: expected assistant"),
        ([message("user"), message("system")], "messages[1]", "only be the first"),
        ([message("user"), message("assistant")], "messages[1]", "or continue it (continue_final_message)"),
        ([message("system")], "messages", "no message of a user"),
        ([message("user"), message("assistant"), message("tool")], "messages[2]", "tool"),
        ([message("wizard")], "messages[0].role", "system"),
        ([message("user", None)], "messages[0]", "content"),
        ([message("user", 5)], "messages[0].content", "string"),
        ([message("user", name="bob")], "messages[0].name", "not supported"),
        ([message("user", zip=1)], "messages[0].zip", "not a field"),
        ([message("user", tool_calls=[{"id": "1"}])], "messages[0].tool_calls", "not supported"),
        ([message("user", [{"type": "input_audio"}])], "messages[0].content[0].type", "image_url"),
        ([message("user", [{"type": "text"}])], "messages[0].content[0]", "text"),
        ([message("user", [{"type": "text", "text": "a", "image_url": IMAGE["image_url"]}])], None, "no other"),
        ([message("system", [IMAGE]), message("user")], "messages[0].content[0]", "only text"),
        ([{"role": "user"}], "messages[0]", "content"),
        ([{"content": "a"}], "messages[0].role", "required"),
        (["Hello"], "messages[0]", "Message"),
    ],
)
def test_wrong_messages(site: Site, messages: Any, param: str | None, said: str) -> None:
    error = site.refused(400, messages=messages)
    assert error["param"] == (param or "messages[0].content[0]")
    assert said in error["message"]


def test_a_prompt_that_is_too_long(site: Site) -> None:
    error = site.refused(400, messages=[message("user", "word " * 300)])
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    error = site.refused(400, COMPLETIONS, prompt=[5] * 192)
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_an_unknown_field(site: Site, model: gemma_tpu.Model, caplog: pytest.LogCaptureFixture) -> None:
    asked: dict[str, Any] = {"wings": 2, "messages": [message("user", [{"type": "text", "text": "a", "tail": 1}])]}
    error = site.refused(400, **asked)
    assert (error["param"], error["code"]) == ("messages[0].content[0].tail", "unknown_parameter")
    assert site.refused(400, wings=2)["param"] == "wings"
    with serve(model, Settings(lenient=True)) as lenient:
        assert lenient.ask(**asked).status_code == 200
        assert sorted(r.args[0] for r in caplog.records if "unknown field" in r.message) == [
            "messages[0].content[0].tail",
            "wings",
        ]
        assert lenient.refused(400, **asked, store=True)["param"] == "store"
        assert lenient.refused(400, **asked, n=0)["param"] == "n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'{"messages": NaN}',
        b"\xff",
        rb'{"\ud800": 1}',
        rb'{"messages": "\ud800"}',
        b"[" * 100_000,
        b'{"a": ' * 100_000,
    ],
)
def test_a_malformed_body(site: Site, body: bytes) -> None:
    response = site.http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert error_of(response, 400)["code"] == "invalid_json"


def test_addresses_methods_and_types(site: Site) -> None:
    assert error_of(site.http.get("/v1/nonsense"), 404)["code"] == "not_found"
    assert error_of(site.http.get(CHAT), 405)["code"] == "method_not_allowed"
    assert error_of(site.http.post("/v1/models"), 405)["code"] == "method_not_allowed"
    # As a form or a script without CORS may send it from a page of another site.
    response = site.http.post(CHAT, content=json.dumps({"messages": HELLO}), headers={"content-type": "text/plain"})
    assert error_of(response, 415)["code"] == "unsupported_media_type"


def test_a_body_that_is_too_large(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(max_body_bytes=2000)) as site:
        large = json.dumps({"messages": [message("user", "a" * 3000)]}).encode()
        headers = {"content-type": "application/json"}
        assert error_of(site.http.post(CHAT, content=large, headers=headers), 413)["code"] == "body_too_large"
        pieces = iter([large[:1500], large[1500:]])  # whose length is not told before
        assert error_of(site.http.post(CHAT, content=pieces, headers=headers), 413)["code"] == "body_too_large"
        assert site.ask().status_code == 200


def test_limits_of_tokens(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(max_tokens=5)) as site:
        assert site.refused(400, max_tokens=6)["param"] == "max_tokens"
        assert site.ask(max_tokens=None).json()["usage"]["completion_tokens"] <= 5


def image(url: str, **more: Any) -> list[dict[str, Any]]:
    return [message("user", [{"type": "image_url", "image_url": {"url": url, **more}}])]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/png;base64,AAAA", "not an image"),
        ("data:image/png;base64,!!!!", "base64"),
        ("data:nonsense", "comma"),
        ("/etc/passwd", "neither"),
        ("file:///etc/passwd", "not read from files"),
        ("http://127.0.0.1/a.png", "not fetched"),
        ("https://example.com/a.png", "not fetched"),
        ("ftp://example.com/a.png", "neither"),
        ("gopher:a", "neither"),
        ("", "neither"),
        (data_url(noise(300, 300)), "limit"),
    ],
)
def test_images_that_are_refused(limited: Site, url: str, said: str) -> None:
    error = limited.refused(400, messages=image(url))
    assert (error["param"], error["code"]) == ("messages[0].content[0].image_url", "invalid_image")
    assert said in error["message"]


@pytest.fixture(scope="module")
def limited(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model, Settings(max_pixels=10_000, max_images=2)) as site:
        yield site


def test_limits_of_images(limited: Site, site: Site) -> None:
    assert limited.ask(messages=[message("user", [IMAGE] * 2)]).status_code == 200
    error = limited.refused(400, messages=[message("user", [IMAGE] * 3)])
    assert error["param"] == "messages[0].content[2].image_url"
    both = [*image(data_url(), detail="low")[0]["content"], *image(data_url(), detail="high")[0]["content"]]
    assert site.refused(400, messages=[message("user", both)])["param"] == "messages"


def test_detail_shows_crops(site: Site, model: gemma_tpu.Model) -> None:
    wide = noise(600, 260)
    tokens = [
        site.ask(messages=image(data_url(wide), detail=detail)).json()["usage"]["prompt_tokens"]
        for detail in ("low", "auto", "high")
    ]
    prompt = [message("user", [{"type": "image", "image": wide}])]
    wanted = [
        model.generate(prompt, max_new_tokens=1, pan_and_scan=crops).usage.prompt_tokens for crops in (False, True)
    ]
    assert tokens == [wanted[0], wanted[0], wanted[1]]


def test_the_client_reads_the_errors(site: Site) -> None:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model="tiny", messages=HELLO, temperature=math.pi)
        assert (raised.value.param, raised.value.code) == ("temperature", "invalid_value")
        assert raised.value.request_id
