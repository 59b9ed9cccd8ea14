"""What a call of `Model` can ask beside its prompt, on a small random model."""

from __future__ import annotations

import pytest
from test_api import FREE, TOKENIZER, make_model

import gemma_tpu


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
