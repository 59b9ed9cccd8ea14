"""The server through LangChain's and LiteLLM's OpenAI clients, as they come."""

from __future__ import annotations

import asyncio
import importlib
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import pydantic
import pytest
from server_site import HELLO, WAIT, Site, data_url, make_model, noise, serve

import gemma_tpu

DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 5}
QUESTION = [
    {"type": "image_url", "image_url": {"url": data_url(noise(50, 30))}},
    {"type": "text", "text": "What is it?"},
]
PROMPT = [{"type": "image", "image": noise(50, 30)}, QUESTION[1]]
TOOL = {"type": "function", "function": {"name": "f"}}


class Lamp(pydantic.BaseModel):
    colour: Literal["red", "green"]
    on: bool


def client_library(name: str) -> Any:
    pytest.importorskip(name, exc_type=ImportError)
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def _their_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model(max_context=512) as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


def test_langchain(site: Site, model: gemma_tpu.Model) -> None:
    langchain = client_library("langchain_openai")
    common: dict[str, Any] = {"model": "tiny", "api_key": "none", "base_url": f"{site.url}/v1", "timeout": WAIT}
    chat = langchain.ChatOpenAI(**common, max_tokens=12, max_retries=0, stream_usage=True, **DRAWN)
    wanted = model.generate("Hello", max_new_tokens=12, **DRAWN)
    answer = chat.invoke("Hello")
    assert answer.content == wanted.text
    assert answer.usage_metadata["output_tokens"] == len(wanted.tokens)
    pieces = list(chat.stream("Hello"))
    assert "".join(piece.content for piece in pieces) == wanted.text
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) == len(wanted.tokens)
    assert asyncio.run(chat.ainvoke([("system", "Be brief."), ("user", "Hello")])).content
    shown = model.generate([{"role": "user", "content": PROMPT}], max_new_tokens=12, **DRAWN)
    assert chat.invoke([{"role": "user", "content": QUESTION}]).content == shown.text
    responses = langchain.ChatOpenAI(**common, max_tokens=12, use_responses_api=True, temperature=0)
    assert responses.invoke("Hello").text == model.generate("Hello", max_new_tokens=12).text
    plain = langchain.OpenAI(**common, max_tokens=12, **DRAWN)
    wanted = model.generate("Hello", raw=True, max_new_tokens=12, top_p=1.0, **DRAWN)  # which is its default
    assert plain.invoke("Hello") == wanted.text
    longer = langchain.ChatOpenAI(**common, max_tokens=300, max_retries=0, **DRAWN)
    assert isinstance(longer.with_structured_output(Lamp).invoke("Hello"), Lamp)
    forced = longer.bind_tools([TOOL], tool_choice="any", parallel_tool_calls=False).invoke("Hi")
    assert [(call["name"], call["args"]) for call in forced.tool_calls] == [("f", {})]
    told = chat.bind_tools([TOOL], tool_choice="auto").invoke("Hi")
    assert told.content == model.generate("Hi", tools=[TOOL], max_new_tokens=12, **DRAWN).text


def test_litellm(site: Site, model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the web for it
    litellm = client_library("litellm")
    asked: dict[str, Any] = {"model": "openai/tiny", "api_base": f"{site.url}/v1", "api_key": "none", "max_tokens": 12}
    wanted = model.generate("Hello", max_new_tokens=12, **DRAWN)
    answer = litellm.completion(messages=HELLO, **asked, **DRAWN)
    assert answer.choices[0].message.content == wanted.text
    assert answer.usage.completion_tokens == len(wanted.tokens)
    pieces = litellm.completion(messages=HELLO, stream=True, **asked, **DRAWN)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == wanted.text
    shown = model.generate([{"role": "user", "content": PROMPT}], max_new_tokens=12, **DRAWN)
    answer = litellm.completion(messages=[{"role": "user", "content": QUESTION}], **asked, **DRAWN)
    assert answer.choices[0].message.content == shown.text
    answer = litellm.completion(messages=HELLO, tools=[TOOL], tool_choice="auto", **asked, **DRAWN)
    wanted = model.generate("Hello", tools=[TOOL], max_new_tokens=12, **DRAWN)
    assert answer.choices[0].message.content == wanted.text
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(messages=HELLO, **asked, temperature=5.0)
