"""Log-probabilities and the likeliest tokens against NumPy, for vocabularies of any size."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from gemma_tpu.ops.logprobs import likeliest, log_probs


@pytest.mark.parametrize("V", [5, 64, 300, 64 * 20, 64 * 99])
def test_log_probabilities_are_those_of_a_softmax(V: int) -> None:
    logits = np.random.default_rng(V).standard_normal((3, V)).astype(np.float32) * 5
    logits[1] += 80  # exp overflows
    token = np.array([V - 1, 0, V // 2])
    chosen, tokens, top = map(np.asarray, log_probs(jnp.asarray(logits), jnp.asarray(token)))
    wide = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logs = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    order = np.argsort(-logs, axis=1)[:, : min(20, V)]
    np.testing.assert_allclose(chosen, logs[np.arange(3), token], atol=1e-4)
    np.testing.assert_array_equal(tokens, order)
    np.testing.assert_allclose(top, np.take_along_axis(logs, order, axis=1), atol=1e-4)


@pytest.mark.parametrize("V", [96, 64 * 40])
def test_equals_are_all_found_and_the_first_comes_first(V: int) -> None:
    logits = np.zeros((1, V), np.float32)
    logits[0, [V - 1, 40, 41]] = 1
    tokens, top = likeliest(jnp.asarray(logits), 5)
    assert tokens[0, 0] == 40
    assert sorted(tokens[0, :3].tolist()) == [40, 41, V - 1]
    assert top.tolist() == [[1, 1, 1, 0, 0]]
