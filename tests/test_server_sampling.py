"""What requests ask of their answers, through OpenAI's client. Every answer is that of `Model.generate`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import numpy as np
import openai
import pydantic
import pytest
from server_site import COMPLETIONS, HELLO, WAIT, Site, events, make_model, serve, streaming
from test_api import TOKENIZER
from test_grammar import LARK

import gemma_tpu

DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 5}
CHAT: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 12, **DRAWN}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "on": {"type": "boolean"}},
    "required": ["colour", "on"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model(max_context=512) as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0, timeout=WAIT) as client:
        yield client


def generate(model: gemma_tpu.Model, prompt: Any = "Hello", **options: Any) -> gemma_tpu.Completion:
    answer = model.generate(prompt, **{"max_new_tokens": 12, **DRAWN, **options})
    assert isinstance(answer, gemma_tpu.Completion)
    return answer


@pytest.mark.parametrize(
    "asked",
    [
        {"frequency_penalty": 2.0},
        {"presence_penalty": -2.0},
        {"repetition_penalty": 3.0},
        {"logit_bias": {"300": 30, "301": 30}},
        {"allowed_token_ids": [300, 301, 302]},
        {"bad_words": []},
    ],
)
def test_what_changes_an_answer(client: openai.OpenAI, model: gemma_tpu.Model, asked: dict[str, Any]) -> None:
    plain = generate(model, max_new_tokens=60)
    if "bad_words" in asked:
        written = [TOKENIZER.decode([token]) for token in plain.tokens]
        asked = {"bad_words": [text for text in written if text.isalpha()][:3]}
    bias = {int(token): value for token, value in asked.get("logit_bias", {}).items()}
    options = {**asked, "logit_bias": bias, "max_new_tokens": 60}
    wanted = generate(model, **options)
    assert wanted.text != plain.text
    answer = client.chat.completions.create(**CHAT | {"max_tokens": 60}, extra_body=asked)
    assert answer.choices[0].message.content == wanted.text
    text = client.completions.create(model="tiny", prompt="Hi", max_tokens=60, **DRAWN, extra_body=asked)
    assert text.choices[0].text == generate(model, "Hi", raw=True, **options).text


def test_where_an_answer_ends(site: Site, model: gemma_tpu.Model) -> None:
    def ask(**asked: Any) -> tuple[int, str]:
        answer = site.ask(max_tokens=9, **DRAWN, **asked).json()
        return answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]

    ends = {"logit_bias": {str(TOKENIZER.end_of_turn): 100}}
    assert ask(**ends) == (0, "stop")
    assert ask(**ends, min_tokens=4) == (4, "stop")
    assert ask(**ends, ignore_eos=True) == (9, "length")
    tokens = generate(model, stop_tokens=()).tokens
    assert ask(stop_token_ids=[tokens[3]]) == (tokens.index(tokens[3]), "stop")
    assert ask(**ends, stop_token_ids=[tokens[3]]) == (0, "stop")


@pytest.mark.parametrize("top", [0, 3])
def test_logprobs_of_a_prompt(site: Site, model: gemma_tpu.Model, top: int) -> None:
    """In vLLM's shape, against the logits of the whole prompt."""
    text = "a word or two"
    tokens = TOKENIZER.encode(text, bos=True)
    logits = np.asarray(model.logits([tokens]), np.float64)[0]
    shifted = logits - logits.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def check(found: Any) -> None:
        assert found[0] is None
        for i, entries in enumerate(found[1:]):
            order = np.argsort(-logprobs[i])
            wanted = dict.fromkeys([tokens[i + 1], *order[:top].tolist()])
            assert [int(token) for token in entries] == [*wanted]
            for token, entry in ((int(token), entry) for token, entry in entries.items()):
                assert entry["logprob"] == pytest.approx(logprobs[i, token], abs=1e-3)
                assert entry["decoded_token"] == spelled(token)
                place = order.tolist().index(token) + 1
                assert entry["rank"] == (place if place <= top else None)
        assert len(found) == len(tokens)

    answer = site.ask(COMPLETIONS, prompt=[text, "b"], max_tokens=3, prompt_logprobs=top, n=2).json()
    check(answer["choices"][0]["prompt_logprobs"])
    check(answer["choices"][1]["prompt_logprobs"])
    assert len(answer["choices"][2]["prompt_logprobs"]) == 2
    chat = site.ask(prompt_logprobs=top).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert "prompt_logprobs" not in site.ask().json()


def test_echo(client: openai.OpenAI, model: gemma_tpu.Model) -> None:
    text, ids = "a word or two", TOKENIZER.encode("some tokens", bos=True)
    asked: Any = {"model": "tiny", "max_tokens": 4, "echo": True, **DRAWN}
    said = [generate(model, prompt, raw=prompt is text, max_new_tokens=4).text for prompt in (text, ids)]
    answer = client.completions.create(prompt=text, **asked)
    assert (answer.choices[0].text, answer.choices[0].logprobs) == (text + said[0], None)
    assert client.completions.create(prompt=ids, **asked).choices[0].text == f"<bos>some tokens{said[1]}"
    wanted = generate(model, text, raw=True, max_new_tokens=4, logprobs=2, prompt_logprobs=2)
    scored = [*wanted.prompt_logprobs[1:], *wanted.logprobs]
    (choice,) = client.completions.create(prompt=text, logprobs=2, **asked).choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == [spelled(t) for t in [*TOKENIZER.encode(text, bos=True), *wanted.tokens]]
    assert choice.logprobs.token_logprobs[0] is choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx([one.logprob for one in scored])
    assert all(len(top) in (2, 3) for top in choice.logprobs.top_logprobs[1:])
    chunks = list(client.completions.create(prompt=[text, "b"], logprobs=2, stream=True, **asked))
    of_first = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == 0]
    assert of_first[0].text == text
    assert "".join(part.text for part in of_first) == choice.text
    for name in ("tokens", "text_offset"):
        streamed = [one for part in of_first for one in getattr(part.logprobs, name, [])]
        assert streamed == getattr(choice.logprobs, name)


def spelled(token: int) -> str:
    ((text, name),) = TOKENIZER.spell([token])
    return name or text.decode(errors="replace")


@pytest.mark.parametrize("top", [0, 3])
def test_logprobs_of_a_chat(client: openai.OpenAI, model: gemma_tpu.Model, top: int) -> None:
    wanted = generate(model, logprobs=top, seed=6)  # whose tokens are whole characters
    logits = np.asarray(model.last_logits(HELLO), np.float64)
    first = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

    def check(entries: Any) -> None:
        assert [entry.token for entry in entries] == [spelled(token) for token in wanted.tokens]
        assert b"".join(bytes(entry.bytes) for entry in entries).decode() == wanted.text
        assert [entry.logprob for entry in entries] == pytest.approx([one.logprob for one in wanted.logprobs])
        assert entries[0].logprob == pytest.approx(first[wanted.tokens[0]], abs=1e-4)
        for entry, one in zip(entries, wanted.logprobs, strict=True):
            found = [(other.token, other.logprob) for other in entry.top_logprobs]
            assert found == [(spelled(token), pytest.approx(logprob)) for token, logprob in one.top]
            assert len(found) == top
        likeliest = [spelled(int(token)) for token in np.argsort(-first)[:top]]
        assert [other.token for other in entries[0].top_logprobs] == likeliest

    asked: dict[str, Any] = {**CHAT, "seed": 6, "logprobs": True, "top_logprobs": top}
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.logprobs is not None
    check(choice.logprobs.content)
    entries: list[Any] = []
    text = ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        text += chunk.choices[0].delta.content or ""
        entries += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
        assert "".join(entry.token for entry in entries).startswith(text)  # no text comes before its tokens
    check(entries)
    (choice,) = client.chat.completions.create(**CHAT).choices
    assert choice.logprobs is None


def test_each_choice_has_its_own_logprobs(client: openai.OpenAI, model: gemma_tpu.Model) -> None:
    wanted = [generate(model, seed=5 + i).tokens for i in range(3)]
    asked = {**CHAT, "logprobs": True, "n": 3}
    found: list[list[str]] = [[], [], []]
    for chunk in client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        found[choice.index] += [entry.token for entry in choice.logprobs.content] if choice.logprobs else []
    assert found == [[spelled(token) for token in tokens] for tokens in wanted]
    choices = client.chat.completions.create(**asked).choices
    assert [[entry.token for entry in choice.logprobs.content] for choice in choices] == found


def test_logprobs_of_completions(client: openai.OpenAI, model: gemma_tpu.Model) -> None:
    wanted = generate(model, "Hi", raw=True, logprobs=2)
    asked: dict[str, Any] = {"model": "tiny", "prompt": "Hi", "max_tokens": 12, "logprobs": 2, **DRAWN}
    (choice,) = client.completions.create(**asked).choices
    found = choice.logprobs
    assert found is not None
    assert found.tokens == [spelled(token) for token in wanted.tokens]
    assert found.token_logprobs == pytest.approx([one.logprob for one in wanted.logprobs])
    for top, one in zip(found.top_logprobs, wanted.logprobs, strict=True):
        assert top == {
            spelled(token): pytest.approx(logprob) for token, logprob in [*one.top, (one.token, one.logprob)]
        }
    joined = "".join(found.tokens)
    pieces = zip(found.tokens, found.text_offset, strict=True)
    assert all(joined[offset:].startswith(token) for token, offset in pieces)
    assert found.text_offset[:2] == [0, len(found.tokens[0])]
    streamed: dict[str, list[Any]] = {name: [] for name in found.model_dump()}
    for chunk in client.completions.create(**asked, stream=True):
        if chunk.choices[0].logprobs:
            for name, values in chunk.choices[0].logprobs.model_dump().items():
                streamed[name] += values
    assert streamed == found.model_dump()


class Lamp(pydantic.BaseModel):
    colour: Literal["red", "green"]
    on: bool


@pytest.mark.parametrize("seed", range(3))
def test_a_response_format(client: openai.OpenAI, seed: int) -> None:
    """Random weights: without the grammar an answer is no JSON."""
    asked: dict[str, Any] = {**CHAT, "seed": seed, "max_tokens": 300}
    parsed = client.chat.completions.parse(**asked, response_format=Lamp)
    assert isinstance(parsed.choices[0].message.parsed, Lamp)
    assert parsed.choices[0].finish_reason == "stop"
    schema: Any = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": SCHEMA}}
    text = client.chat.completions.create(**asked, response_format=schema).choices[0].message.content
    jsonschema.validate(json.loads(text or ""), SCHEMA)
    llama_cpps = {"response_format": {"type": "json_object", "schema": SCHEMA}}
    assert client.chat.completions.create(**asked, extra_body=llama_cpps).choices[0].message.content == text
    stream = client.chat.completions.create(**asked, response_format=schema, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    begun = client.chat.completions.create(**CHAT, response_format={"type": "json_object"}).choices[0]
    assert (begun.message.content or "").lstrip().startswith("{")


VLLM: list[tuple[str, Any, Any]] = [
    ("json", SCHEMA, lambda text: jsonschema.validate(json.loads(text), SCHEMA)),
    ("json", json.dumps(SCHEMA), lambda text: jsonschema.validate(json.loads(text), SCHEMA)),
    ("regex", "[0-9]{3}", lambda text: re.fullmatch("[0-9]{3}", text)),
    ("choice", ["north (up)", "south|down"], ["north (up)", "south|down"].index),
    ("grammar", LARK, lambda text: re.fullmatch("(Hi|Hello) [a-z]{1,5}[!?]", text)),
]


@pytest.mark.parametrize(("kind", "source", "check"), VLLM)
def test_structured_outputs(client: openai.OpenAI, kind: str, source: Any, check: Any) -> None:
    texts = []
    for body in ({"structured_outputs": {kind: source}}, {f"guided_{kind}": source}):
        asked: dict[str, Any] = {"max_tokens": 300, **DRAWN, "extra_body": body}
        chat = client.chat.completions.create(model="tiny", messages=HELLO, **asked).choices[0].message.content
        text = client.completions.create(model="tiny", prompt="Hi", **asked).choices[0].text
        assert check(chat) is not None or kind == "json"
        assert check(text) is not None or kind == "json"
        texts.append((chat, text))
    assert texts[0] == texts[1]


def test_formats_of_the_other_apis(client: openai.OpenAI, site: Site) -> None:
    sent = {"type": "json_schema", "name": "lamp", "schema": SCHEMA}
    asked: dict[str, Any] = {"model": "tiny", "input": "Hello", "max_output_tokens": 300}
    answer = client.responses.create(**asked, temperature=1, text={"format": sent})  # pyright: ignore[reportArgumentType]
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)
    assert answer.model_dump(by_alias=True)["text"]["format"]["schema"] == SCHEMA
    parsed = client.responses.parse(**asked, text_format=Lamp)
    assert isinstance(parsed.output_parsed, Lamp)
    said = {
        "max_tokens": 300,
        "messages": HELLO,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }
    (block,) = site.http.post("/v1/messages", json=said).json()["content"]
    jsonschema.validate(json.loads(block["text"]), SCHEMA)


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


TOOLS = [{"type": "function", "function": {"name": "f"}}]
BAD_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}]


@pytest.mark.parametrize(
    ("param", "said", "asked"),
    [
        ("frequency_penalty", "less than", {"frequency_penalty": 2.1}),
        ("presence_penalty", "greater than", {"presence_penalty": -2.1}),
        ("repetition_penalty", "greater than", {"repetition_penalty": 0}),
        ("logit_bias.a", "pattern", {"logit_bias": {"a": 1}}),
        ("logit_bias.5", "less than", {"logit_bias": {"5": 101}}),
        ("logit_bias", "ids in", {"logit_bias": {"9999999": 1}}),
        ("logit_bias", "at most 512", {"logit_bias": {str(i): 1 for i in range(513)}}),
        ("min_tokens", "is 9", {"min_tokens": 9}),
        ("allowed_token_ids", "at least 1", {"allowed_token_ids": []}),
        ("allowed_token_ids", "ids in", {"allowed_token_ids": [10**6]}),
        ("bad_words[0]", "at least 1", {"bad_words": [""]}),
        ("bad_words", "at most", {"bad_words": ["some words that are many tokens long and more"]}),
        ("stop_token_ids", "ids in", {"stop_token_ids": [10**6]}),
        ("logprobs", "boolean", {"logprobs": 3}),
        ("top_logprobs", "goes with", {"top_logprobs": 3}),
        ("top_logprobs", "less than", {"logprobs": True, "top_logprobs": 21}),
        ("response_format", "goes with", {"response_format": {"type": "json_schema"}}),
        ("response_format.type", "json_object", {"response_format": {"type": "xml"}}),
        ("response_format", "goes with", {"response_format": {"type": "text", "schema": SCHEMA}}),
        ("response_format.json_schema.schema", "dictionary", {"response_format": schema_format(5)}),
        ("response_format", "objekt", {"response_format": schema_format({"type": "objekt"})}),
        ("response_format.json_schema.schema", "at most", {"response_format": schema_format({"title": "a" * 2**17})}),
        ("structured_outputs", "one of", {"structured_outputs": {"json": {}, "regex": "a"}}),
        ("structured_outputs", "one of", {"structured_outputs": {}}),
        ("structured_outputs.choice[0]", "string", {"structured_outputs": {"choice": [5]}}),
        ("structured_outputs", "refused", {"structured_outputs": {"regex": "("}}),
        ("structured_outputs", "no next token", {"structured_outputs": {"regex": "[0-9]"}, "allowed_token_ids": [300]}),
        ("guided_choice", "no options", {"guided_choice": []}),
        ("structured_outputs", "leave one out", {"guided_regex": "a", "structured_outputs": {"regex": "a"}}),
        ("prompt_logprobs", "does not go with stream", {"prompt_logprobs": 1, "stream": True}),
        ("prompt_logprobs", "less than or equal to 20", {"prompt_logprobs": 21}),
        ("tools", "do not go with guided_regex", {"tools": TOOLS, "guided_regex": "a"}),
        ("tools", "objekt", {"tools": BAD_TOOLS, "tool_choice": "required"}),
    ],
)
def test_what_is_wrong(site: Site, param: str, said: str, asked: dict[str, Any]) -> None:
    error = site.refused(400, **asked)
    assert error["param"] == param
    assert error["message"].startswith(param)
    assert said in error["message"]
    assert error["code"] == "invalid_value"


def test_what_is_wrong_elsewhere(site: Site) -> None:
    assert site.refused(400, COMPLETIONS, prompt="a", logprobs=21)["param"] == "logprobs"
    assert site.refused(400, COMPLETIONS, prompt="a", guided_regex="(")["param"] == "guided_regex"
    text = {"format": {"type": "json_schema", "name": "a"}}
    assert site.refused(400, "/v1/responses", input="a", text=text)["param"] == "text.format"
    text["format"]["schema"] = {"type": "objekt"}  # pyright: ignore[reportArgumentType]
    assert site.refused(400, "/v1/responses", input="a", text=text)["param"] == "text"
    said = {"max_tokens": 5, "messages": HELLO, "output_config": {"format": text["format"]}}
    assert "output_config: " in site.http.post("/v1/messages", json=said).json()["error"]["message"]


def test_a_grammar_that_ends_a_stream(site: Site) -> None:
    """Where no token can follow is known when it is reached."""
    with streaming(site, structured_outputs={"regex": "[0-9]"}, allowed_token_ids=[300]) as lines:
        told = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert (told[-1]["error"]["param"], told[-1]["error"]["code"]) == ("structured_outputs", "invalid_value")
    with streaming(site, structured_outputs={"choice": ["a"]}) as lines:
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events(lines)) == "a"
