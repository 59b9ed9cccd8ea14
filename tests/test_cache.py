from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TEXT

from gemma_tpu.cache.kv_cache import append, cache_bytes, cache_slots, init_cache, slot_positions, write
from gemma_tpu.sharding import make_mesh, partition


def test_slots_hold_the_latest_positions() -> None:
    """Against a ring written one token at a time."""
    for slots in (4, 7):
        ring = np.full(slots, -1)
        for length in range(20):
            assert slot_positions(jnp.array([length]), slots)[0].tolist() == ring.tolist()
            ring[length % slots] = length


def test_write_equals_writing_one_by_one() -> None:
    rng = np.random.default_rng(0)
    slots, T = 6, 10
    for start, count in ((0, 10), (3, 10), (5, 2), (11, 0), (4, 6), (2, 7)):
        old = rng.standard_normal((3, 2, slots, 4)).astype(np.float32)
        new = rng.standard_normal((1, T, 2, 4)).astype(np.float32)
        expected = old.copy()
        for t in range(count):
            expected[1, :, (start + t) % slots] = new[0, t]
        arrays = (jnp.array([1]), jnp.asarray(new), -jnp.asarray(new), jnp.array([start]), jnp.array([count]))
        key, value = write((jnp.asarray(old), -jnp.asarray(old)), *arrays)
        np.testing.assert_array_equal(key, expected)
        np.testing.assert_array_equal(value, -expected)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_appending_equals_writing_into_a_ring(devices: int, rows: int) -> None:
    """Two times around, each row at a position of its own; with eight devices, each has some of the slots."""
    rng = np.random.default_rng(0)
    slots = 16
    mesh = make_mesh(TEXT, (1, devices), jax.devices()[:devices])
    split = mesh.shape["slots"] > 1
    assert split == (devices > 1)
    ring = rng.standard_normal((rows, TEXT.num_kv_heads, slots, 4)).astype(np.float32)
    cache = (jax.device_put(ring, partition("RKSH", ring.shape, mesh)),) * 2
    step = jax.jit(functools.partial(append, split=split))
    for length in range(2 * slots):
        lengths = length + 5 * np.arange(rows)
        key, value = rng.standard_normal((2, rows, 1, TEXT.num_kv_heads, 4)).astype(np.float32)
        expected = [np.array(one) for one in cache]
        for row in range(rows):
            expected[0][row, :, lengths[row] % slots] = key[row, 0]
            expected[1][row, :, lengths[row] % slots] = value[row, 0]
        cache = step(cache, key, value, lengths)
        for found, wanted in zip(cache, expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_sizes() -> None:
    cache = init_cache(TEXT, 3, 128, jnp.dtype("bfloat16"))
    assert [layer[0].shape[2] for layer in cache] == [8, 8, 8, 8, 8, 128, 8, 8]
    assert sum(x.nbytes for layer in cache for x in layer) == cache_bytes(TEXT, 3, 128, jnp.dtype("bfloat16"))
    assert cache_slots(TEXT, 0, 5) == 5  # a context shorter than the window
