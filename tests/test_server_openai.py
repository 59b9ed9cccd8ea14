"""The server as OpenAI's own Python client sees it. Every answer is that of `Model.generate`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from server_site import HELLO, SETTINGS, WAIT, Site, data_url, make_model, noise, serve
from test_api import TOKENIZER

import gemma_tpu

DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 5}


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
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0, timeout=WAIT) as client:
        yield client


def conversation(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": f"said {i}"} for i, role in enumerate(roles)]


IMAGE = {"type": "image_url", "image_url": {"url": data_url(noise(50, 30))}}
CONVERSATIONS = [
    HELLO,
    conversation("developer", "user", "assistant", "user"),
    [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What is it?"}]}],
]
SAMPLING = [
    {},
    DRAWN,
    {**DRAWN, "seed": -1},
    {"temperature": 0.7, "seed": 2**63 - 1, "top_p": 0.5, "extra_body": {"top_k": 7, "min_p": 0.02}},
    {**DRAWN, "stop": ["e", "zz"], "extra_body": {"top_k": -1}},
]


def expected(model: gemma_tpu.Model, prompt: Any, asked: dict[str, Any], **options: Any) -> gemma_tpu.Completion:
    given = {**asked, **asked.get("extra_body", {}), **options}
    given.pop("extra_body", None)
    given["seed"] = given["seed"] % 2**32 if "seed" in given else None
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if isinstance(prompt, list) and isinstance(prompt[0], dict):
        prompt = [message | {"role": message["role"].replace("developer", "system")} for message in prompt]
    return model.generate(prompt, max_new_tokens=12, **given)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("asked", SAMPLING)
def test_chat(client: openai.OpenAI, model: gemma_tpu.Model, messages: Any, asked: dict[str, Any]) -> None:
    wanted = expected(model, messages, asked)
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, **asked)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", wanted.text)
    assert choice.finish_reason == wanted.finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == wanted.usage.prompt_tokens
    assert answer.usage.completion_tokens == wanted.usage.completion_tokens == len(wanted.tokens)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    pieces, reasons, usage = [], [], None
    for chunk in client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_completion_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        **asked,
    ):
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reasons.append(choice.finish_reason)
    assert "".join(pieces) == wanted.text
    assert reasons == [None] * (len(reasons) - 1) + [wanted.finish_reason]
    assert usage is not None
    assert usage.completion_tokens == len(wanted.tokens)


def test_several_choices_have_seeds_of_their_own(client: openai.OpenAI, model: gemma_tpu.Model) -> None:
    wanted = [model.generate("Hello", max_new_tokens=12, temperature=1.0, seed=5 + i) for i in range(6)]
    texts = [one.text for one in wanted]
    assert len(set(texts)) > 1
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "n": 6, **DRAWN}
    answer = client.chat.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.message.content for choice in answer.choices] == texts
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == wanted[0].usage.prompt_tokens
    assert answer.usage.completion_tokens == sum(len(one.tokens) for one in wanted)
    written = [""] * 6
    for chunk in client.chat.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            written[choice.index] += choice.delta.content or ""
        assert chunk.usage is None
    assert written == texts


PROMPTS = ["<start_of_turn>user\nHello", TOKENIZER.encode("some tokens", bos=True)]
PROMPTS = [*PROMPTS, ["first prompt", "second prompt"], [PROMPTS[1], PROMPTS[1][:2]]]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_completions(client: openai.OpenAI, model: gemma_tpu.Model, prompt: Any) -> None:
    one = isinstance(prompt, str) or isinstance(prompt[0], int)
    wanted = [expected(model, p, DRAWN, seed=5 + i, raw=True) for p in ([prompt] if one else prompt) for i in range(2)]
    asked: dict[str, Any] = {"model": "another-name", "prompt": prompt, "max_tokens": 12, "n": 2, **DRAWN}
    answer = client.completions.create(**asked)
    assert [choice.text for choice in answer.choices] == [one.text for one in wanted]
    assert [choice.finish_reason for choice in answer.choices] == [one.finish_reason for one in wanted]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in wanted[::2])
    assert (answer.object, answer.model) == ("text_completion", "another-name")
    written = [""] * len(wanted)
    for chunk in client.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            written[choice.index] += choice.text
    assert written == [one.text for one in wanted]


def test_usage_says_how_much_was_cached(client: openai.OpenAI, model: gemma_tpu.Model) -> None:
    prompt = TOKENIZER.encode("A question that nobody else has asked", bos=True)
    written = model.generate(prompt, max_new_tokens=8, stop_tokens=()).tokens
    longer = [*prompt, *written, *TOKENIZER.encode(" and then?")]
    usage = client.completions.create(model="tiny", prompt=longer, max_tokens=2).usage
    assert usage is not None
    assert usage.prompt_tokens == len(longer)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == len(prompt) + len(written) - 1  # the last was never fed
    usage = client.completions.create(model="tiny", prompt=[2, 7, 9, 11], max_tokens=2).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_usage_in_every_chunk(client: openai.OpenAI) -> None:
    """vLLM's `continuous_usage_stats`."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    asked: Any = {"model": "tiny", "max_tokens": 12, "stream": True, **DRAWN, "extra_body": {"ignore_eos": True}}
    for chunks in (
        list(client.chat.completions.create(messages=HELLO, stream_options=options, **asked)),
        list(client.completions.create(prompt="Hello", stream_options=options, **asked)),
    ):
        counts = [chunk.usage.completion_tokens for chunk in chunks]
        assert counts == sorted(counts)
        assert (counts[0] < 12, counts[-1]) == (True, 12)
        totals = {chunk.usage.total_tokens - chunk.usage.completion_tokens for chunk in chunks}
        assert totals == {chunks[0].usage.prompt_tokens}
    options["include_usage"] = False
    chunks = client.chat.completions.create(messages=HELLO, stream_options=options, **asked)
    assert not any(chunk.usage for chunk in chunks)


def test_the_tokens_of_an_answer(client: openai.OpenAI, model: gemma_tpu.Model) -> None:
    """vLLM's `return_token_ids`."""
    wanted = [model.generate("Hello", max_new_tokens=12, temperature=1.0, seed=5 + i).tokens for i in range(2)]
    asked: Any = {"model": "tiny", "max_tokens": 12, "n": 2, **DRAWN, "extra_body": {"return_token_ids": True}}
    answer = client.chat.completions.create(messages=HELLO, **asked)
    assert [choice.token_ids for choice in answer.choices] == wanted
    prompt = answer.prompt_token_ids
    assert len(prompt) == answer.usage.prompt_tokens
    first, *rest = client.chat.completions.create(messages=HELLO, stream=True, **asked)
    assert first.prompt_token_ids == prompt
    assert not any(hasattr(chunk, "prompt_token_ids") for chunk in rest)
    assert tokens_of([first, *rest]) == wanted
    plain = client.completions.create(prompt=prompt, **asked)
    assert [choice.token_ids for choice in plain.choices] == wanted
    assert [choice.prompt_token_ids for choice in plain.choices] == [prompt] * 2
    for echo in (False, True):
        chunks = list(client.completions.create(prompt=prompt, stream=True, echo=echo, **asked))
        assert tokens_of(chunks) == wanted
        told = [chunk.choices[0] for chunk in chunks if hasattr(chunk.choices[0], "prompt_token_ids")]
        assert sorted((choice.index, choice.prompt_token_ids) for choice in told) == [(0, prompt), (1, prompt)]


def tokens_of(chunks: Any) -> list[list[int]]:
    tokens: list[list[int]] = [[], []]
    for chunk in chunks:
        tokens[chunk.choices[0].index] += chunk.choices[0].token_ids
    return tokens


@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": False}])
def test_the_last_message_is_continued(
    client: openai.OpenAI, site: Site, model: gemma_tpu.Model, more: dict[str, Any]
) -> None:
    begun: Any = [*HELLO, {"role": "assistant", "content": "It is a"}]
    wanted = model.generate(begun, max_new_tokens=12, continue_final=True)
    body = {"continue_final_message": True, **more}
    answer = client.chat.completions.create(model="tiny", messages=begun, max_tokens=12, extra_body=body)
    assert answer.choices[0].message.content == wanted.text
    assert site.ask("/tokenize", messages=begun, **body).json()["count"] == wanted.usage.prompt_tokens


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4).choices[0].message
    more: Any = [*HELLO, said.model_dump(), {"role": "user", "content": "And then?"}]
    assert client.chat.completions.create(model="tiny", messages=more, max_tokens=4).choices


def test_many_at_once_on_an_event_loop(site: Site, model: gemma_tpu.Model) -> None:
    wanted = [model.generate(f"Question {i}", max_new_tokens=12, temperature=1.0, seed=i).text for i in range(16)]

    async def ask(client: openai.AsyncOpenAI, i: int) -> str:
        asked: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 1.0, "seed": i}
        asked["messages"] = [{"role": "user", "content": f"Question {i}"}]
        if i % 2:
            return (await client.chat.completions.create(**asked)).choices[0].message.content
        stream = await client.chat.completions.create(stream=True, **asked)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def everyone() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(16)))

    assert asyncio.run(everyone()) == wanted


def test_what_means_nothing_is_accepted(client: openai.OpenAI) -> None:
    """As programs send it that set everything."""
    neutral: dict[str, Any] = {
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "logprobs": False,
        "metadata": {"purpose": "test"},
        "modalities": ["text"],
        "n": 1,
        "parallel_tool_calls": True,
        "prompt_cache_key": "key",
        "reasoning_effort": "none",
        "response_format": {"type": "text"},
        "safety_identifier": "somebody",
        "service_tier": "auto",
        "stop": None,
        "store": False,
        "tools": [],
        "tool_choice": "none",
        "top_logprobs": 0,
        "user": "somebody",
        "verbosity": "medium",
    }
    thinks_not = {"chat_template_kwargs": {"enable_thinking": False}}
    asked: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 2, "extra_body": thinks_not}
    assert len(client.chat.completions.create(**asked, **neutral).choices) == 1


def test_models(client: openai.OpenAI, model: gemma_tpu.Model) -> None:
    names = [one.id for one in client.models.list()]
    assert names == list(SETTINGS.model_names)
    assert client.models.retrieve("another-name").id == "another-name"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt", messages=HELLO)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_tokens_there_and_back(site: Site) -> None:
    text = "Hello <end_of_turn> world"
    counted = site.ask("/tokenize", prompt=text, return_token_strs=True).json()
    assert counted["tokens"] == TOKENIZER.encode(text, bos=True, control=True)
    assert counted["count"] == len(counted["tokens"]) == len(counted["token_strs"])
    assert site.ask("/tokenize", prompt=text, add_special_tokens=False).json()["tokens"] == counted["tokens"][1:]
    assert site.ask("/detokenize", tokens=counted["tokens"][1:]).json() == {"prompt": text}
    asked = site.ask("/tokenize", messages=CONVERSATIONS[2]).json()
    answer = site.ask(messages=CONVERSATIONS[2]).json()
    assert asked["count"] == answer["usage"]["prompt_tokens"]
    assert asked["token_strs"] is None
