"""A row's settings and history as numpy arrays, from the lists in a step. V: vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int16, UInt8

from gemma_tpu.cache.state import RowParams
from gemma_tpu.engine.step import Activate, History
from gemma_tpu.ops.logits import Adjustments, packed_bytes
from gemma_tpu.ops.sampling import Sampling
from gemma_tpu.options import MAX_BAD_WORD_LENGTH, MAX_BAD_WORDS, MAX_LOGIT_BIAS, MAX_STOP_TOKENS, NO_TOKEN


def row_params(activate: Activate, vocab_size: int) -> RowParams:
    """What the decode program knows of one row."""
    numbers = activate.numbers
    sampling = Sampling(**{field.name: numbers[field.name] for field in dataclasses.fields(Sampling)})
    lists = {
        "bias_tokens": _filled(activate.bias_tokens, MAX_LOGIT_BIAS),
        "bias": _filled(activate.bias, MAX_LOGIT_BIAS, 0),
        "bad_words": np.full((1, MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH), NO_TOKEN, np.int32),
        "allowed": allowed_bits(vocab_size, activate.allowed, activate.forbidden)[None],
    }
    for i, word in enumerate(activate.bad_words):
        lists["bad_words"][0, i, -len(word) :] = word
    single = {field.name: numbers[field.name] for field in dataclasses.fields(Adjustments) if field.name in numbers}
    stop, adjustments = _filled(activate.stop, MAX_STOP_TOKENS), Adjustments(**single, **lists)
    return RowParams(sampling, stop, adjustments, numbers["logprobs"], numbers["more"], numbers["ahead"])


def recent_tokens(activate: Activate) -> Int[np.ndarray, "recent"]:
    """The last tokens of an answer that was begun, after as many NO_TOKEN as it lacks."""
    size = MAX_BAD_WORD_LENGTH - 1
    return np.concatenate([np.full(size - len(activate.recent), NO_TOKEN, np.int32), activate.recent])


def token_counts(history: History, vocab_size: int) -> Int16[np.ndarray, "V"]:
    """`counts` of `gemma_tpu.ops.logits.History`."""
    counts = 2 * np.bincount(history.answer, minlength=vocab_size).clip(max=np.iinfo(np.int16).max // 2 - 1)
    counts[history.prompt] += 1
    return counts.astype(np.int16)


def allowed_bits(
    vocab_size: int, allowed: Sequence[int] | np.ndarray | None, forbidden: Sequence[int] | np.ndarray
) -> UInt8[np.ndarray, "bytes"]:
    """A bit for each token that may be drawn, see `gemma_tpu.ops.logits.unpack`; `allowed` None is all."""
    mask = np.zeros(packed_bytes(vocab_size) * 8, bool)
    mask[:vocab_size] = allowed is None
    if allowed is not None:
        mask[np.asarray(allowed, np.int64)] = True
    mask[np.asarray(forbidden, np.int64)] = False
    return np.packbits(mask, bitorder="little")


def mask_arrays(
    masks: Mapping[int, UInt8[np.ndarray, "bytes"]], rows: int, vocab_size: int
) -> tuple[Bool[np.ndarray, "R"], UInt8[np.ndarray, "R bytes"]]:
    """Which rows have new bits, and those of all rows."""
    given, bits = np.zeros(rows, bool), np.zeros((rows, packed_bytes(vocab_size)), np.uint8)
    for row, mask in masks.items():
        given[row], bits[row] = True, mask
    return given, bits


def _filled(values: np.ndarray, size: int, empty: int = NO_TOKEN) -> np.ndarray:
    """[1, size] with `empty` after the values."""
    return np.concatenate([values, np.full(size - len(values), empty, values.dtype)])[None]
