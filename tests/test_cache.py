from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from small_models import TEXT

from gemma_tpu.cache import cache_bytes, cache_slots, init_cache, slot_positions, write


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


def test_sizes() -> None:
    cache = init_cache(TEXT, 3, 128, jnp.dtype("bfloat16"))
    assert [layer[0].shape[2] for layer in cache] == [8, 8, 8, 8, 8, 128, 8, 8]
    assert sum(x.nbytes for layer in cache for x in layer) == cache_bytes(TEXT, 3, 128, jnp.dtype("bfloat16"))
    assert cache_slots(TEXT, 0, 5) == 5  # a context shorter than the window
