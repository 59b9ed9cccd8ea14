from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_models import TEXT, mesh_of

from gemma_tpu.cache.kv_cache import KVCache, slot_positions
from gemma_tpu.config import GemmaConfig, gemma3_layers
from gemma_tpu.sharding import make_mesh

LOCAL, GLOBAL = 0, 1  # layers of TEXT


def _empty(config: GemmaConfig, mesh: Mesh, rows: int, context: int, dtype: str) -> KVCache:
    whole = jax.ShapeDtypeStruct((rows, config.num_kv_heads, context, config.head_dim), jnp.dtype(dtype))
    return KVCache.init([layer.window for layer in config.layers], whole, mesh)


def _filled(config: GemmaConfig, rows: int, context: int, devices: int = 1) -> KVCache:
    """Random keys and values, and another cache's arrays alike."""
    rng = np.random.default_rng(0)
    mesh = make_mesh(config, (1, devices), jax.devices()[:devices])
    cache = _empty(config, mesh, rows, context, "float32")
    filled = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), cache)
    return jax.device_put(filled, cache.shardings())


def _arrays(cache: KVCache, layer: int) -> list[np.ndarray]:
    return [np.array(x) for x in cache.layers[layer]]


def test_slots_hold_the_latest_positions() -> None:
    """Against a ring written one token at a time."""
    for slots in (4, 7):
        ring = np.full(slots, -1)
        for length in range(20):
            assert slot_positions(jnp.array([length]), slots)[0].tolist() == ring.tolist()
            ring[length % slots] = length


def test_write_equals_writing_one_by_one() -> None:
    rng = np.random.default_rng(1)
    config, T = dataclasses.replace(TEXT, layers=gemma3_layers(7, window=6)[4:]), 10
    cache = _filled(config, rows=3, context=24)
    K, H = config.num_kv_heads, config.head_dim
    for start, count in ((0, 10), (3, 10), (5, 2), (11, 0), (4, 6), (2, 7)):
        for layer, slots in ((LOCAL, 6), (GLOBAL, 24)):
            key, value = rng.standard_normal((2, 1, T, K, H)).astype(np.float32)
            expected = _arrays(cache, layer)
            for t in range(count):
                for array, new in zip(expected, (key, value), strict=True):
                    array[1, :, (start + t) % slots] = new[0, t]
            where = jnp.array([1]), jnp.asarray(key), jnp.asarray(value), jnp.array([start]), jnp.array([count])
            found = cache.write(layer, *where)
            np.testing.assert_array_equal(_arrays(found, layer), expected)
            assert all(found.layers[i] is cache.layers[i] for i in range(config.num_layers) if i != layer)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_appending_equals_writing_into_a_ring(devices: int, rows: int) -> None:
    """Two times around, each row at a position of its own; with eight devices, each has some of the slots."""
    rng = np.random.default_rng(1)
    slots = 16
    config = dataclasses.replace(TEXT, layers=gemma3_layers(1, window=slots))
    cache = _filled(config, rows, 64, devices)
    assert (cache.mesh.shape["slots"] > 1) == (devices > 1)
    step = jax.jit(KVCache.append, static_argnums=1)
    for length in range(2 * slots):
        lengths = length + 5 * np.arange(rows)
        key, value = rng.standard_normal((2, rows, 1, config.num_kv_heads, config.head_dim)).astype(np.float32)
        expected = _arrays(cache, LOCAL)
        for row in range(rows):
            expected[0][row, :, lengths[row] % slots] = key[row, 0]
            expected[1][row, :, lengths[row] % slots] = value[row, 0]
        cache = step(cache, LOCAL, key, value, lengths)
        np.testing.assert_array_equal(_arrays(cache, LOCAL), expected)


def test_rows_are_taken_put_back_and_cleared() -> None:
    cache = _filled(TEXT, rows=4, context=32)
    taken = cache.take(jnp.array([2, 0]))
    doubled = cache.put(jnp.array([2, 0]), jax.tree.map(lambda x: 2 * x, taken))
    cleared = cache.clear(jnp.int32(1))
    for layer in (LOCAL, GLOBAL):
        for old, some, new, rest in zip(*(_arrays(x, layer) for x in (cache, taken, doubled, cleared)), strict=True):
            np.testing.assert_array_equal(some, old[[2, 0]])
            np.testing.assert_array_equal(new, old * np.array([2, 1, 2, 1])[:, None, None, None])
            np.testing.assert_array_equal(rest, old * np.array([1, 0, 1, 1])[:, None, None, None])


@pytest.mark.parametrize("sides", [(1, 1), (2, 4)])
def test_bytes_are_those_of_the_arrays_on_a_device(sides: tuple[int, int]) -> None:
    mesh = mesh_of(*sides)
    cache = _empty(TEXT, mesh, 4, 128, "bfloat16")
    assert [keys.shape[2] for keys, _ in cache.layers] == [8, 128]
    placed = jax.device_put(cache, cache.shardings())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed)
    sizes = [sum(x.addressable_shards[0].data.nbytes for x in layer) for layer in placed.layers]
    assert abstract.nbytes(windowed=False) == sizes[GLOBAL]
    assert abstract.nbytes(windowed=True) == sum(sizes) - sizes[GLOBAL]
    assert abstract.num_keys() == sum(sizes) / 2 / (2 * TEXT.head_dim)


def test_a_context_shorter_than_the_window_is_stored_whole() -> None:
    cache = _empty(TEXT, mesh_of(1, 1), 3, 5, "bfloat16")
    assert {keys.shape[2] for keys, _ in cache.layers} == {5}
