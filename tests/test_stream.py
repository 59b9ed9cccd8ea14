"""Answers from tokens, however the engine hands them over: a request whose lists of tokens the test makes itself."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gemma_tpu.engine.request import Request
from gemma_tpu.options import Completion, SamplingParams
from gemma_tpu.stream import TextStream
from gemma_tpu.text import Tokenizer

TOKENIZER = Tokenizer(Path(__file__).parent / "goldens" / "text" / "tokenizer.model")


def answer(groups: list[list[int]], stop: list[str]) -> Completion:
    request = Request([2], [], SamplingParams(stop=stop))
    for group in groups:
        request.push(group)
    request.finish("length")
    return TextStream(request, TOKENIZER).finish()


def groups_of(rng: random.Random, tokens: list[int]) -> list[list[int]]:
    groups = []
    while tokens:
        count = rng.randrange(1, 6)
        groups.append(tokens[:count])
        tokens = tokens[count:]
    return groups


@pytest.mark.parametrize("stop", [[" blue"], ["ue s", "square,"], ["é"], ["two\n\n"], ["nowhere"], []])
def test_the_answer_ends_with_the_token_that_completes_a_stop_string(stop: list[str]) -> None:
    tokens = TOKENIZER.encode("the red circle and a blue square, café two\n\nthree\nmore 你好")
    # The rule, by decoding every beginning of the tokens.
    texts = [TOKENIZER.decode(tokens[: n + 1]) for n in range(len(tokens))]
    count = next((n + 1 for n, text in enumerate(texts) if any(word in text for word in stop)), len(tokens))
    whole = texts[count - 1]
    expected = min((whole[: whole.index(word)] for word in stop if word in whole), key=len, default=whole)
    rng = random.Random(0)
    for groups in [[tokens], [[token] for token in tokens], *(groups_of(rng, tokens) for _ in range(20))]:
        completion = answer(groups, stop)
        assert completion.tokens == tokens[:count]
        assert completion.usage.completion_tokens == count
        assert completion.text == expected
        assert completion.finish_reason == ("length" if count == len(tokens) else "stop")


def test_an_id_without_a_piece_is_nothing() -> None:
    tokens = [*TOKENIZER.encode("the red"), TOKENIZER.vocab_size + 5, *TOKENIZER.encode(" circle")]
    completion = answer([tokens], [])
    assert completion.text == "the red circle"
    assert completion.tokens == tokens
