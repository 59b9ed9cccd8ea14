"""What a call of `Model` can ask beside its prompt, on a small random model."""

from __future__ import annotations

import asyncio
import time
from unittest import mock

import numpy as np
import pytest
from small_models import gated
from test_api import FREE, PICTURE, TOKENIZER, make_model

import gemma_tpu
from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.prompts import Reading


@pytest.fixture(scope="module")
def model():
    with make_model() as model:
        yield model


def contains(tokens: list[int], part: list[int]) -> bool:
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens)))


def test_bad_words_are_written_neither_at_the_beginning_of_a_line_nor_after_a_space(model: gemma_tpu.Model) -> None:
    forms = TOKENIZER.encode("dog"), TOKENIZER.encode(" dog")
    assert all(len(form) > 1 for form in forms)
    only = [*{*forms[0], *forms[1]}, *TOKENIZER.encode("a")]
    options = {"max_new_tokens": 100, "stop_tokens": (), "allowed_token_ids": only, "temperature": 1.0, "seed": 1}
    options |= {"top_k": 0, "top_p": 1.0, "logit_bias": dict.fromkeys(forms[1], 1.0)}
    written = model.generate("Hello", **options).tokens
    assert any(contains(written, form) for form in forms)
    for words in (["dog"], [forms[0], forms[1]]):
        tokens = model.generate("Hello", bad_words=words, **options).tokens
        assert not any(contains(tokens, form) for form in forms)
    assert model.generate("Hello", bad_words="dog", **FREE).tokens


def test_log_probabilities_belong_to_the_tokens_of_a_completion(model: gemma_tpu.Model) -> None:
    plain, asked = model.generate("Hello", **FREE), model.generate("Hello", logprobs=2, **FREE)
    assert asked.tokens == plain.tokens == [one.token for one in asked.logprobs]
    assert all(one.top[0] == (one.token, one.logprob) for one in asked.logprobs)  # greedy
    assert plain.logprobs == []
    stream = model.stream("Hello", logprobs=0, **FREE)
    for _ in stream:
        assert len(stream.completion.logprobs) == len(stream.completion.tokens) > 0
    stop = model.generate("Hello", logprobs=0, stop=[plain.text[3]], **FREE)
    assert [one.token for one in stop.logprobs] == stop.tokens == plain.tokens[: len(stop.tokens)]


def test_several_answers_are_those_of_the_seeds_that_follow(model: gemma_tpu.Model) -> None:
    options = FREE | {"temperature": 1.3, "top_k": 0, "top_p": 1.0}
    alone = [model.generate("Hello", seed=seed, **options).tokens for seed in (2**32 - 1, 0, 1)]
    assert [one.tokens for one in model.generate("Hello", n=3, seed=2**32 - 1, **options)] == alone
    shown = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]}]
    for prompt, images in (("What?", [PICTURE]), (shown, None)):
        first, second = model.generate(prompt, images=images, n=2, seed=5, **options)
        assert second.tokens == model.generate(prompt, images=images, seed=6, **options).tokens != first.tokens
    batch = model.generate(["Hello", "Bye"], n=2, seed=0, stop=["nowhere in it"], **options)
    assert [one.tokens for one in batch[0]] == alone[1:]
    assert len({tuple(one.tokens) for answers in batch for one in answers}) == 4
    grammar = gemma_tpu.Grammar.choice(["yes", "no"])
    assert {one.text for one in model.generate("Hello", n=6, seed=0, grammar=grammar, **options)} == {"yes", "no"}
    unseeded = model.generate("Hello", n=2, **options)
    assert unseeded[0].tokens != unseeded[1].tokens


def test_a_stream_and_a_chat_give_one_answer(model: gemma_tpu.Model) -> None:
    with mock.patch.object(model.engine, "submit") as submit:
        for call in (model.stream, model.chat().stream, model.chat().send):
            with pytest.raises(ValueError, match=r"n is 2, and a stream or a chat gives one answer: ask .* generate"):
                call("Hello", n=2)
        with pytest.raises(ValueError, match="n is 3"):
            model.chat(n=3)
        submit.assert_not_called()


def test_an_answer_ends_when_its_time_is_up(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beside it, and those that are given its row, are what they are without it."""
    options = {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "stop_tokens": ()}
    alone = [model.generate("Hello", max_new_tokens=60, seed=seed, **options).tokens for seed in range(6)]
    late = 0.0
    monkeypatch.setattr(model.engine._loop, "_clock", lambda: time.perf_counter() + late)
    chat = model.chat(**options)
    with gated(model.engine):
        streams = [model.stream("Hello", max_new_tokens=60, seed=seed, **options) for seed in range(3)]
        cut = chat.stream("Hello", max_new_tokens=150, timeout=900, seed=3)
        said = next(cut)
        waiting = model.stream("Hello", timeout=800, **options)
        more = [model.stream("Hello", max_new_tokens=60, seed=seed, **options) for seed in (4, 5)]
        late = 900.0
        answer = cut.finish()
    assert (answer.finish_reason, answer.text[: len(said)]) == ("timeout", said)
    unread = waiting.finish()
    assert (unread.finish_reason, unread.text, np.isnan(unread.timings.queue)) == ("timeout", "", True)
    assert 16 <= len(answer.tokens) < 60
    assert answer.tokens == alone[3][: len(answer.tokens)]
    assert chat.messages[-1] == {"role": "assistant", "content": answer.text}
    assert [stream.finish().tokens for stream in (*streams, *more)] == [*alone[:3], *alone[4:]]
    assert [one.tokens for one in model.generate(["Hello"] * 6, max_new_tokens=60, seed=0, **options)] == alone[:1] * 6
    assert chat.send(continue_final=True, max_new_tokens=2).finish_reason == "length"


@pytest.mark.parametrize("how", ["one", "batch", "several", "async"])
def test_the_time_is_counted_from_submission(model: gemma_tpu.Model, how: str) -> None:
    """By a true clock."""
    options = {"max_new_tokens": 150, "stop_tokens": (), "timeout": np.float32(0.3)}

    async def ask() -> list[gemma_tpu.Completion]:
        streams = [await model.astream("Hello", **options).start() for _ in range(6)]
        assert all([["".join([piece async for piece in stream])] for stream in streams])
        return [stream.completion for stream in streams]

    with gated(model.engine, 1):
        begin = time.perf_counter()
        if how == "one":
            answers = [model.generate("Hello", **options)]
        elif how == "batch":
            answers = model.generate(["Hello"] * 6, **options)
        else:
            answers = model.generate("Hello", n=6, **options) if how == "several" else asyncio.run(ask())
        assert time.perf_counter() - begin >= 0.3
    assert {answer.finish_reason for answer in answers} == {"timeout"}
    assert all(len(answer.tokens) < 150 for answer in answers)
    assert all(row.request is None for row in model.engine._scheduler.rows)


def test_an_answer_in_time_is_what_it_is_without_a_limit(model: gemma_tpu.Model) -> None:
    plain, timed = (model.generate("Hello", timeout=timeout, **FREE) for timeout in (None, 3600))
    assert (timed.tokens, timed.finish_reason) == (plain.tokens, "length")
    with pytest.raises(ValueError, match="timeout must be above 0"):
        model.generate("Hello", timeout=-1)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_the_tokens_of_a_prompt_have_log_probabilities(shape: tuple[int, int]) -> None:
    """Those of `logits`, also behind an image."""
    with make_model(*shape) as model:
        marker = TOKENIZER.start_of_image
        prompt = [2, *TOKENIZER.encode("Look: "), marker, *TOKENIZER.encode(" a picture of a dog in the garden")]
        answer = model.generate(prompt, images=[PICTURE], prompt_logprobs=3, **FREE)
        assert answer.tokens == model.generate(prompt, images=[PICTURE], **FREE).tokens
        found = answer.prompt_logprobs
        assert len(found) == answer.usage.prompt_tokens
        request = model._ask(prompt, [PICTURE], Reading(), {}, False)[1][0]
        assert [one.token for one in found if one] == [token for token in request.tokens[1:] if token != SOFT_TOKEN]
        assert [i for i, one in enumerate(found) if one is None] == [
            i for i, token in enumerate(request.tokens) if i == 0 or token == SOFT_TOKEN
        ]
        given = np.asarray(model.logits(np.array([prompt]), images=[[PICTURE]]), np.float64)[0]
        logs = given - np.log(np.exp(given).sum(axis=-1, keepdims=True))
        behind = len(prompt) - prompt.index(marker) - 2  # tokens that follow the one after the image's block
        for one, log in zip(found[-behind:], logs[-behind - 1 : -1], strict=True):
            assert one is not None
            assert one.logprob == pytest.approx(log[one.token], abs=1e-4)
            assert [token for token, _ in one.top] == np.argsort(-log)[:3].tolist()
        assert model.generate("Hello", **FREE).prompt_logprobs == []
