"""Changes of logits against NumPy, row by row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_answers import adjusted

from gemma_tpu.engine.row_params import allowed_bits, recent_tokens, row_params, token_counts
from gemma_tpu.engine.step import activate
from gemma_tpu.ops.logits import Adjustments, History, adjust, unpack
from gemma_tpu.options import SamplingParams

V = 300
STOP = (7, 9)


def changed(logits: np.ndarray, rows: list[tuple[list[int], list[int], SamplingParams]], drawn: int = 3) -> np.ndarray:
    """By the device's arrays of each row; the last `drawn` tokens of an answer are of the decode call under way."""
    activated, asked, counts, recent = [], [], [], []
    new = np.full((8, len(rows)), -1)
    for i, (prompt, answer, params) in enumerate(rows):
        begun = answer[: len(answer) - drawn]
        one = activate(0, 0, 0, 0, params, STOP, prompt, begun)
        activated.append(one)
        asked.append(row_params(one, V).adjustments)
        counts.append(token_counts(one.history, V) if one.history else np.full(V, 3, np.int16))
        recent.append(recent_tokens(one))
        new[: len(answer) - len(begun), i] = answer[len(begun) :]
    names = [field.name for field in dataclasses.fields(Adjustments)]
    arrays = {name: np.concatenate([getattr(one, name) for one in asked]) for name in names}
    arrays["allowed"] = np.asarray(unpack(jnp.asarray(arrays["allowed"]), V))
    position = np.array([len(prompt) + len(answer) for prompt, answer, _ in rows])
    stop = np.tile([*STOP, -1], (len(rows), 1))
    history = History(np.stack(counts), np.array(recent))
    given = (logits, np.ones(len(rows), bool), position, stop, new, Adjustments(**arrays), history)
    changed = np.asarray(_adjust(*jax.tree.map(jnp.asarray, given)))
    more = np.concatenate([row_params(one, V).more for one in activated])
    np.testing.assert_array_equal(changed[~more], logits[~more])
    return np.where(arrays["allowed"], changed, -np.inf)


_adjust = jax.jit(adjust)


PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": -0.4, "repetition_penalty": 1.7}
ASKED = {
    "nothing": {},
    "presence": {"presence_penalty": 1.3},
    "frequency": {"frequency_penalty": 1.1},
    "repetition": {"repetition_penalty": 1.4},
    "less repetition": {"repetition_penalty": 0.6},
    "bias": {"logit_bias": {3: 5.5, 11: -100, 299: 2}},
    "allowed": {"allowed_token_ids": [3, 7, 8, 299]},
    "forbidden": {"forbidden_tokens": [0, 299]},
    "min_tokens": {"min_tokens": 9},
    "enough tokens": {"min_tokens": 8},
    "bad words": {"bad_words": [[5], [1, 2, 3], [2, 3], [4, 3], [9] * 7 + [1], [4, 4, 1, 2, 6]]},
    "all": PENALTIES
    | {"logit_bias": {2: 3.0, 7: 9.0}, "min_tokens": 20, "bad_words": [[2, 4], [8]], "forbidden_tokens": [1]},
    "no token left but those": {"allowed_token_ids": [7, 3], "bad_words": [[1, 2, 3]], "min_tokens": 20},
}


@pytest.mark.parametrize("asked", [*ASKED.values(), None], ids=[*ASKED, "a mixed batch"])
def test_logits_are_changed_as_numpy_changes_them(asked: dict | None) -> None:
    rng = np.random.default_rng(4)
    prompt, answer = [1, 1, 4, -1, -1, 200], [4, 9, 9, 4, 4, 4, 1, 2]  # soft tokens of an image in the prompt
    params = [SamplingParams(**one) for one in (ASKED.values() if asked is None else [asked])]
    logits = rng.standard_normal((len(params), V)).astype(np.float32) * 4
    found = changed(logits, [(prompt, answer, one) for one in params])
    for row, one in enumerate(params):
        np.testing.assert_allclose(found[row], adjusted(logits[row], prompt, answer, one, STOP), rtol=1e-5)


def test_an_answer_has_few_tokens_at_first() -> None:
    params = SamplingParams(**PENALTIES, bad_words=[[4, 5, 6]], min_tokens=1)
    logits = np.linspace(-3, 3, V, dtype=np.float32)[None]
    for answer in ([], [4], [4, 5]):
        found = changed(logits, [([1, 2], answer, params)], drawn=len(answer))
        np.testing.assert_allclose(found[0], adjusted(logits[0], [1, 2], answer, params, STOP), rtol=1e-5)


@pytest.mark.parametrize("vocab_size", [1, 64, 129, 262_144])
def test_bits_come_back_as_they_were_packed(vocab_size: int) -> None:
    mask = np.random.default_rng(vocab_size).integers(0, 2, (2, vocab_size)).astype(bool)
    bits = [
        allowed_bits(vocab_size, np.flatnonzero(mask[0]), ()),
        allowed_bits(vocab_size, None, np.flatnonzero(~mask[1])),
    ]
    np.testing.assert_array_equal(unpack(jnp.asarray(np.stack(bits)), vocab_size), mask)
