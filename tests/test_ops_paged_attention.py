"""Attention to pages, against attention to the same keys in order."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TEXT, mesh_of

from gemma_tpu.ops import paged_attention as paged_ops
from gemma_tpu.ops.attention import finish
from gemma_tpu.ops.masks import attend, attention_mask

B, K, G, H, PAGE, LONGEST = 4, 2, 2, 8, 4, 64
LENGTHS = [(1, 7, 0, 64), (8, 2, 3, 5), (64, 64, 64, 64), (33, 0, 0, 4), (0, 0, 1, 0)]
RNG = np.random.default_rng(0)
KEYS, VALUES = RNG.standard_normal((2, B, K, LONGEST, H)).astype(np.float32)


def _pool(lengths: tuple[int, ...], groups: int, spread: int) -> tuple[np.ndarray, ...]:
    """Keys, values, and whose each page is; NaN in pages that are nobody's. `spread`: pages for one that is used."""
    each = B * LONGEST // PAGE * spread // groups
    key, value = np.full((2, groups * each, K, PAGE, H), np.nan, np.float32)
    row, start = np.full(groups * each, -1, np.int32), np.zeros(groups * each, np.int32)
    rng = np.random.default_rng(1)
    for group in range(groups):
        free = list(rng.permutation(each)) if spread > 1 else list(range(each))
        for number in range(group * B // groups, (group + 1) * B // groups):
            for at in range(0, lengths[number], PAGE):
                page = group * each + free.pop(0)
                row[page], start[page] = number, at
                key[page], value[page] = KEYS[number, :, at : at + PAGE], VALUES[number, :, at : at + PAGE]
    return key, value, row, start


def _expected(query: jax.Array, position: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    slot = np.arange(LONGEST)
    key_pos = np.where(slot < np.array(lengths)[:, None], slot, -1)
    return np.asarray(
        attend(
            query, jnp.asarray(KEYS), jnp.asarray(VALUES), attention_mask(jnp.asarray(position), jnp.asarray(key_pos))
        )
    )


@pytest.mark.parametrize("sides", [(1, 1), (1, 8), (2, 2), (4, 2)])
@pytest.mark.parametrize("spread", [1, 4])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_one_query_a_row(lengths, spread, sides, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that lie at the pool's beginning are read in place, few among many are copied."""
    monkeypatch.setattr(paged_ops, "SHORTEST", 16)
    mesh = mesh_of(*sides, dataclasses.replace(TEXT, num_kv_heads=K))
    key, value, row, start = _pool(lengths, sides[0], spread)
    query = jnp.asarray(RNG.standard_normal((B, 1, K, G, H)), jnp.float32)
    position = np.maximum(np.array(lengths)[:, None] - 1, 0)
    arguments = (query, position, key, value, row, start, np.array(lengths, np.int32))
    look = jax.jit(lambda *args: paged_ops.paged_attention(*args, longest=LONGEST, mesh=mesh))
    found = np.asarray(finish(look(*arguments), query))
    seeing = np.array(lengths) > 0
    expected = _expected(query, position, lengths)
    np.testing.assert_allclose(found[seeing], expected[seeing], atol=1e-5)
    assert not found[~seeing].any()


@pytest.mark.parametrize(("count", "end", "copied"), [(4, 4, False), (40, 256, True), (200, 256, False)])
def test_the_cheaper_way_is_taken(count: int, end: int, copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place up to the last page in use, or a copy of those in use."""
    monkeypatch.setattr(paged_ops, "SHORTEST", 16)
    seen: list[int] = []
    real = paged_ops._by_page

    def by_page(query: jax.Array, position: jax.Array, key: jax.Array, *rest: jax.Array):
        jax.debug.callback(lambda n=len(key): seen.append(n))
        return real(query, position, key, *rest)

    monkeypatch.setattr(paged_ops, "_by_page", by_page)
    pages = 256
    row = np.full(pages, -1, np.int32)
    row[np.linspace(0, end - 1, count).astype(int)] = 0
    start = np.zeros(pages, np.int32)
    start[row == 0] = np.arange(count) * PAGE
    key = jnp.zeros((pages, K, PAGE, H))
    query = jnp.ones((1, 1, K, G, H))
    length = np.array([count * PAGE], np.int32)
    arguments = (query, jnp.asarray(length[:, None] - 1), key, key, *map(jnp.asarray, (row, start, length)))
    paged_ops.paged_attention(*arguments, longest=pages * PAGE, mesh=mesh_of(1, 1))
    jax.effects_barrier()
    read = 64 if copied else end
    assert seen == [read]


@pytest.mark.parametrize("sides", [(1, 1), (1, 8), (2, 2)])
@pytest.mark.parametrize("length", [0, 3, 4, 37, 60])
def test_a_chunk_of_a_row(length: int, sides: tuple[int, int]) -> None:
    """Wherever its pages lie, on any device; NaN in those of others is not seen."""
    mesh = mesh_of(*sides, dataclasses.replace(TEXT, num_kv_heads=K))
    lengths = (length, 0, 0, 0)
    key, value, row, start = _pool(lengths, 1, 2)
    order = np.random.default_rng(2).permutation(len(row))
    T = 8
    query = jnp.asarray(RNG.standard_normal((1, T, K, G, H)), jnp.float32)
    position = length + np.arange(T)[None]
    pages = [x[order] for x in (key, value, row, start)]
    arguments = (query, jnp.asarray(position), *pages, np.array([length], np.int32))
    look = jax.jit(lambda *args: paged_ops.paged_attention(*args, longest=LONGEST, mesh=mesh))
    part = look(*arguments)
    if length:
        slot = np.arange(LONGEST)
        mask = attention_mask(jnp.asarray(position), jnp.where(slot < length, slot, -1)[None])
        expected = attend(query, jnp.asarray(KEYS[:1]), jnp.asarray(VALUES[:1]), mask)
        np.testing.assert_allclose(finish(part, query), expected, atol=1e-5)
    else:
        assert np.isfinite(finish(part, query)).all()
