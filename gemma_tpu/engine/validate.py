"""Requests, and sequences whose logits are asked for, checked on their callers' threads."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from gemma_tpu.checks import brief
from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine.errors import ContextLengthError
from gemma_tpu.engine.request import Constraint, ImageInput, Request, StopWatch
from gemma_tpu.options import MAX_BAD_WORD_LENGTH, MAX_BAD_WORDS, SamplingParams
from gemma_tpu.picture import PlacedImage

MAX_BYTES = 2 << 30  # that one call returns: logits of 2,048 tokens over the vocabulary of the released models


def make_request(
    deployment: Deployment,
    tokens: Sequence[Any],
    images: Sequence[PlacedImage[ImageInput]],
    sampling_params: SamplingParams,
    stop_watch: StopWatch | None,
    constraint: Constraint | None,
    client: Hashable,
) -> Request:
    """ValueError for what cannot be run."""
    vocab_size = deployment.config.vocab_size
    if not len(tokens):
        raise ValueError("the prompt is empty")
    check_length(len(tokens), deployment.context)
    if bad := _not_ids((token for token in tokens if token != SOFT_TOKEN), vocab_size):
        raise ValueError(f"a prompt is ids in [0, {vocab_size}), got {bad[0]!r}")
    if tokens[-1] == SOFT_TOKEN:
        raise ValueError("a prompt cannot end within an image")
    _check_tokens(sampling_params, vocab_size)
    soft_tokens = [i for i, token in enumerate(tokens) if token == SOFT_TOKEN]
    count, starts = deployment.num_soft_tokens, [placed.start for placed in images]
    if soft_tokens != [start + i for start in starts for i in range(count)]:
        raise ValueError(
            f"the prompt has {len(soft_tokens)} soft tokens, which are not those of images of {count} each at {starts}"
        )
    return Request(tokens, images, sampling_params, stop_watch, constraint, client, num_soft_tokens=count)


def _check_tokens(params: SamplingParams, vocab_size: int) -> None:
    """ValueError for tokens that are not in the vocabulary, bad words that cannot be watched, and no token left."""
    words: list[Any] = list(params.bad_words)
    if strings := [word for word in words if isinstance(word, str)]:
        raise ValueError(f"without a tokenizer, bad_words are sequences of token ids, got {brief(strings[0])}")
    named = {"stop_tokens": params.stop_tokens or (), "forbidden_tokens": params.forbidden_tokens}
    named |= {"logit_bias": [token for token, _ in params.biases]}
    named |= {"allowed_token_ids": params.allowed_token_ids or (), "bad_words": [id for word in words for id in word]}
    for name, tokens in named.items():
        if bad := _not_ids(tokens, vocab_size):
            raise ValueError(f"{name} must be ids in [0, {vocab_size}), got {brief(bad)}")
    if too_long := [word for word in words if len(word) > MAX_BAD_WORD_LENGTH]:
        raise ValueError(f"bad_words have at most {MAX_BAD_WORD_LENGTH} tokens each, got {brief(too_long[0])}")
    if (count := sum(len(word) > 1 for word in words)) > MAX_BAD_WORDS:
        raise ValueError(
            f"bad_words are at most {MAX_BAD_WORDS} sequences of several tokens (a word may be two: as it begins a "
            f"line and after a space), got {count}"
        )
    never = {*params.forbidden_tokens, *(word[0] for word in words if len(word) == 1)}
    allowed = range(vocab_size) if params.allowed_token_ids is None else params.allowed_token_ids
    if never.issuperset(allowed):
        raise ValueError(
            "there is no token left to write: allowed_token_ids (without it, all) are all among forbidden_tokens (or "
            "the checkpoint's suppress_tokens), the ids that have no piece, and bad_words of one token"
        )


def check_length(tokens: int, max_context: int) -> None:
    """ContextLengthError if a prompt of so many tokens leaves no room for an answer."""
    if tokens >= max_context:
        raise ContextLengthError(
            f"the prompt has {tokens} tokens, and the context of {max_context} must hold the answer too: "
            "shorten it, or load the model with a larger max_context"
        )


def _not_ids(tokens: Iterable[object], vocab_size: int) -> list[object]:
    """Those that are no integers (a float may be one's equal) in [0, vocab_size)."""

    def is_id(token: object) -> bool:
        return isinstance(token, int | np.integer) and not isinstance(token, bool) and 0 <= int(token) < vocab_size

    return [token for token in tokens if not is_id(token)]


def check_logits(deployment: Deployment, rows: int, tokens: int, kept: int) -> None:
    """ValueError for rows of more tokens than the context holds, or logits at more positions of each than fit."""
    _check_sequences(deployment, tokens)
    nbytes = rows * kept * deployment.config.vocab_size * 4
    _check_size(f"logits of {rows * kept:,} tokens", nbytes, "give fewer rows, or only the positions that are wanted")


def check_attention(deployment: Deployment, rows: int, tokens: int, kept: int) -> None:
    """`check_logits` for attention weights, with the padding that they have on the device."""
    _check_sequences(deployment, tokens)
    config, T = deployment.config, sequence_length(tokens, deployment.context)
    nbytes = rows * padded_count(kept) * config.num_layers * config.num_heads * T * 4
    said = f"attention weights of {rows * kept:,} tokens in {config.num_layers} layers of {config.num_heads} heads"
    _check_size(f"{said}, onto up to {T:,} tokens,", nbytes, "give fewer positions, fewer rows, or shorter ones")


def _check_sequences(deployment: Deployment, tokens: int) -> None:
    if tokens > (context := deployment.context):
        raise ValueError(
            f"a row has {tokens:,} tokens with its images, and the context holds {context:,}: shorten it, or load "
            "the model with a larger max_context"
        )


def _check_size(what: str, nbytes: int, way_out: str) -> None:
    if nbytes > MAX_BYTES:
        raise ValueError(
            f"the {what} are {nbytes / 1e9:.1f} GB, and one call returns at most {MAX_BYTES / 1e9:.1f} GB: {way_out}"
        )


def padded_count(count: int) -> int:
    """The next power of two: of arrays whose every size is a program, there are then few."""
    return 1 << (count - 1).bit_length()


def sequence_length(tokens: int, max_context: int) -> int:
    """Tokens that whole sequences are padded to for the plain path: 64, 128, 256 …, at most the context."""
    return min(max_context, max(64, padded_count(tokens)))


def pad(
    rows: Sequence[Sequence[int]], soft_tokens: int, max_context: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B"]]:
    """Rows of expanded tokens as one array, whose T is one of few, and their lengths.

    ValueError if they have not as many places for soft tokens as there are.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), sequence_length(int(lengths.max()), max_context)), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    if (places := int((tokens == SOFT_TOKEN).sum())) != soft_tokens:
        raise ValueError(f"the tokens have {places} places for soft tokens, and the images have {soft_tokens}")
    return tokens, lengths
