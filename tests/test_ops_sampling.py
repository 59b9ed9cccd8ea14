"""Filters against a sort; draws against the distribution they should follow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_tpu.ops.sampling import Sampling, filter_logits, sample

V = 97


def settings(B: int, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0) -> Sampling:
    def full(value, dtype) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(value, dtype), (B,))

    return Sampling(
        full(temperature, jnp.float32),
        full(top_k, jnp.int32),
        full(top_p, jnp.float32),
        full(min_p, jnp.float32),
        full(seed, jnp.uint32),
    )


def by_sorting(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The kept tokens of one row, filter after filter, in float64."""
    scaled = logits.astype(np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    kept = order[: top_k or V]
    probs = np.exp(scaled[kept] - scaled.max())
    probs /= probs.sum()
    kept = kept[: int(np.searchsorted(np.cumsum(probs), top_p - 1e-12)) + 1] if top_p < 1 else kept
    return {int(i) for i in kept if scaled[i] >= scaled.max() + np.log(max(min_p, 1e-300))}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1, 0, 1, 0), (1, 5, 1, 0), (1, 0, 0.7, 0), (0.3, 20, 0.9, 0), (2, 0, 1, 0.1), (1.5, 40, 0.6, 0.05), (1, 1, 1, 0)],
)
def test_filters_keep_what_a_sort_keeps(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = np.random.default_rng(3).standard_normal((16, V)).astype(np.float32) * 3
    logits[:, 7] = -np.inf  # a forbidden token
    result = np.asarray(filter_logits(jnp.asarray(logits), settings(16, temperature, top_k, top_p, min_p)))
    for row in range(16):
        kept = {int(i) for i in np.flatnonzero(np.isfinite(result[row]))}
        assert kept == by_sorting(logits[row], temperature, top_k, top_p, min_p) - {7}
        np.testing.assert_allclose(result[row, sorted(kept)], logits[row, sorted(kept)] / temperature, rtol=1e-6)


def test_ties_at_the_threshold_are_kept() -> None:
    logits = jnp.array([[3.0, 2.0, 2.0, 2.0, 1.0, -0.0, 0.0]])
    kept = lambda **k: np.isfinite(np.asarray(filter_logits(logits, settings(1, **k))))[0].tolist()  # noqa: E731
    assert kept(top_k=2) == [True, True, True, True, False, False, False]
    assert kept(top_p=0.5) == [True, True, True, True, False, False, False]


@pytest.mark.parametrize("off", [{}, {"top_k": 5}, {"min_p": 1e-50}])
@pytest.mark.parametrize("least", [{"top_p": 1e-50}, {"top_p": 1e-40}, {"min_p": 1.0}, {"temperature": 2e-38}])
def test_the_likeliest_token_is_always_kept(least: dict[str, float], off: dict[str, float]) -> None:
    logits = np.random.default_rng(5).standard_normal((8, V)).astype(np.float32) * 9
    kept = np.asarray(filter_logits(jnp.asarray(logits), settings(8, **(off | least))))
    assert np.isfinite(kept).any(axis=1).all()
    tokens = sample(jnp.asarray(logits), jnp.arange(8), settings(8, **(off | least)))
    assert tokens.tolist() == logits.argmax(axis=1).tolist()


def test_rows_keep_their_own_settings() -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, V)), jnp.float32)
    mixed = settings(3, temperature=[0.0, 1.0, 1.0], top_k=[3, 3, 0], seed=[1, 2, 3])
    result = np.asarray(filter_logits(logits, mixed))
    assert np.isfinite(result).sum(axis=1).tolist() == [V, 3, V]
    token = np.asarray(sample(logits, jnp.array([5, 6, 7]), mixed))
    assert token[0] == int(logits[0].argmax())
    for row in (1, 2):  # a row alone draws what it draws in company
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], mixed)
        assert sample(logits[row : row + 1], jnp.array([5 + row]), alone)[0] == token[row]


def test_draws_follow_the_distribution() -> None:
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    draws = 4000
    many = jnp.broadcast_to(logits, (draws, 4))
    by_seed = sample(many, jnp.zeros(draws, jnp.int32), settings(draws, seed=np.arange(draws)))
    by_position = sample(many, jnp.arange(draws), settings(draws, seed=7))
    for tokens in (by_seed, by_position):
        share = np.bincount(np.asarray(tokens), minlength=4) / draws
        np.testing.assert_allclose(share, [0.5, 0.3, 0.15, 0.05], atol=0.03)  # three standard deviations


def by_drawing(logits: np.ndarray, one: Sampling, position: int) -> int:
    """The token of one row, from a sort of all its logits and the noise of the whole vocabulary."""
    temperature, top_k, top_p, min_p, seed = (np.asarray(x)[0].item() for x in jax.tree.leaves(one))
    scaled = logits / np.float32(temperature)
    down = np.sort(scaled)[::-1].astype(np.float64)
    least = down[top_k - 1] if top_k else -np.inf
    probs = np.exp(down[down >= least] - down[0])
    if top_p < 1:
        least = max(least, down[np.searchsorted(np.cumsum(probs / probs.sum()), top_p)])
    least = max(least, down[0] + np.log(max(min_p, 1e-300)))
    noise = jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), logits.shape)
    return int(np.argmax(np.where(scaled >= least, scaled + np.asarray(noise), -np.inf)))


WHOLE = 20_011  # a vocabulary of which small top-ks look at a part; the last group of neighbours is not whole


def wide(rows: int) -> np.ndarray:
    return np.random.default_rng(11).standard_normal((rows, WHOLE)).astype(np.float32) * 3


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.3])
@pytest.mark.parametrize("top_k", [0, 1, 5, 64, 65, 500])
def test_a_part_of_the_vocabulary_draws_as_the_whole(top_k: int, top_p: float) -> None:
    rows = 24
    logits = wide(rows)
    logits[0, : WHOLE - 10] = -np.inf  # fewer tokens than top-k keeps
    logits[1, 100:200] = 30  # one group holds most of what is kept
    logits[2, -1] = 40
    asked = settings(rows, 0.8, top_k, top_p, min_p=[0.0, 0.1] * (rows // 2), seed=np.arange(rows))
    tokens = sample(jnp.asarray(logits), 7 + jnp.arange(rows), asked)
    for row in range(rows):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], asked)
        assert tokens[row] == by_drawing(logits[row], one, 7 + row)


def test_ties_of_more_groups_than_are_looked_at_are_kept() -> None:
    """Every group has the largest logit once, and each of these is drawn."""
    logits = np.full((1, WHOLE), -5, np.float32)
    logits[:, ::128] = 1.5
    draws = 500
    asked = settings(draws, top_k=3, seed=np.arange(draws))
    tokens = np.asarray(sample(jnp.asarray(np.repeat(logits, draws, axis=0)), jnp.arange(draws), asked))
    assert (tokens % 128 == 0).all()
    assert len(set(tokens.tolist())) > 100
    for row in range(20):
        assert tokens[row] == by_drawing(logits[0], jax.tree.map(lambda x, row=row: x[row : row + 1], asked), row)


@pytest.mark.parametrize("top_p", [1.0, 1 - 2**-24, 0.6, 0.0])
@pytest.mark.parametrize("top_k", [1, 3, 63, 64])
def test_ties_of_more_tokens_than_are_sorted_are_kept(top_k: int, top_p: float) -> None:
    """A group of 128 is all the same, behind one token that is likelier."""
    logits = np.full((1, WHOLE), -5, np.float32) - np.arange(WHOLE, dtype=np.float32) / WHOLE
    logits[:, 256:384], logits[:, 9000] = 1.5, 2
    draws = 300
    asked = settings(draws, top_k=top_k, top_p=top_p, seed=np.arange(draws))
    tokens = np.asarray(sample(jnp.asarray(np.repeat(logits, draws, axis=0)), jnp.arange(draws), asked))
    alone = top_k == 1 or top_p == 0
    assert set(tokens.tolist()) <= ({9000} if alone else {9000, *range(256, 384)})
    assert len(set(tokens.tolist())) == 1 if alone else len(set(tokens.tolist())) > 80


def test_ties_that_the_temperature_makes_are_kept() -> None:
    """Of logits that differ by a rounding: as many groups as are looked at have the larger one, six the smaller."""
    one = np.float32(1.9)
    logits = np.zeros((1, WHOLE), np.float32)
    logits[0, 128 * np.arange(70)] = [one] * 64 + [np.nextafter(one, np.float32(0))] * 6
    temperatures = np.linspace(1.3, 1.9, 100, dtype=np.float32)
    whole = filter_logits(jnp.asarray(np.repeat(logits, 100, axis=0)), settings(100, temperatures, top_k=64))
    tied = temperatures[np.isfinite(whole).sum(axis=1) == 70]
    assert len(tied) > 10
    temperature = np.repeat(tied[:10], 100)
    asked = settings(1000, temperature, top_k=64, seed=np.arange(1000))
    tokens = np.asarray(sample(jnp.asarray(np.repeat(logits, 1000, axis=0)), jnp.zeros(1000, jnp.int32), asked))
    assert (tokens % 128 == 0).all()
    assert (tokens >= 64 * 128).sum() > 40  # of 1,000 that draw from 70, 86 are expected


@pytest.mark.parametrize("width", [100, WHOLE])
def test_zeros_of_either_sign_are_the_same(width: int) -> None:
    logits = np.full((1, width), -1, np.float32)
    logits[:, :40], logits[:, 10:20] = 0.0, -0.0
    asked = settings(400, top_k=1, top_p=0.5, seed=np.arange(400))
    tokens = sample(jnp.asarray(np.repeat(logits, 400, axis=0)), jnp.arange(400), asked)
    assert set(np.asarray(tokens).tolist()) == set(range(40))


def test_a_row_draws_the_same_whichever_way_the_others_go() -> None:
    logits = wide(4)
    logits[3, ::128] = 50  # ties that need the whole vocabulary
    asked = settings(4, temperature=[0.0, 1.0, 1.0, 1.0], top_k=[64, 64, 0, 2], top_p=0.95, seed=[1, 2, 3, 4])
    together = sample(jnp.asarray(logits), jnp.arange(4), asked)
    assert together[0] == logits[0].argmax()
    for row in range(4):
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], asked)
        assert sample(jnp.asarray(logits[row : row + 1]), jnp.array([row]), alone)[0] == together[row]
