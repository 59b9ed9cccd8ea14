from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_models import TEXT, mesh_of

from gemma_tpu.cache.kv_cache import CacheShape, KVCache
from gemma_tpu.cache.layer import Pages, slot_positions
from gemma_tpu.config import GemmaConfig, gemma3_layers
from gemma_tpu.sharding import make_mesh

LOCAL, GLOBAL = 0, 1  # layers of TEXT
PAGE = 8


def _empty(config: GemmaConfig, mesh: Mesh, rows: int, context: int, dtype: str) -> KVCache:
    sizes = CacheShape(rows, context, rows * context // PAGE, PAGE, 2, 0, config.num_kv_heads, config.head_dim)
    return KVCache.init([layer.window for layer in config.layers], sizes, jnp.dtype(dtype), mesh)


def _pages(rows: int, context: int) -> Pages:
    """A page of each row in turn."""
    count = rows * context // PAGE
    return Pages(jnp.arange(count) % rows, jnp.arange(count) // rows * PAGE)


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
        for layer in (LOCAL, GLOBAL):
            key, value = rng.standard_normal((2, 1, T, K, H)).astype(np.float32)
            expected = _arrays(cache, layer)
            for t in range(count):
                at = start + t
                # A call with row 1 alone, which has every third page.
                where = (1, at % 6) if layer == LOCAL else (at // PAGE * 3 + 1, at % PAGE)
                for array, new in zip(expected, (key, value), strict=True):
                    array[where[0], :, where[1]] = new[0, t]
            pages = _pages(3, 24)
            mine = Pages(jnp.where(pages.row == 1, 0, -1), pages.start)
            given = jnp.array([1]), jnp.asarray(key), jnp.asarray(value), jnp.array([start]), jnp.array([count]), mine
            found = cache.write(layer, *given)
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
        cache = step(cache, LOCAL, key, value, lengths, _pages(rows, 64))
        np.testing.assert_array_equal(_arrays(cache, LOCAL), expected)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_appending_to_pages(devices: int, rows: int) -> None:
    """Over the end of a page, each row at a position of its own; a row without a page there writes nothing."""
    rng = np.random.default_rng(2)
    config = dataclasses.replace(TEXT, layers=gemma3_layers(6, window=4))
    cache, pages = _filled(config, rows, 64, devices), _pages(rows, 64)
    if rows > 1:
        pages = Pages(jnp.where(pages.row == 2, -1, pages.row), pages.start)
    step = jax.jit(KVCache.append, static_argnums=1)
    for length in (0, PAGE - 1, PAGE, 3 * PAGE):
        lengths = length + 5 * np.arange(rows)
        key, value = rng.standard_normal((2, rows, 1, config.num_kv_heads, config.head_dim)).astype(np.float32)
        expected = _arrays(cache, 5)
        for row in range(min(rows, 2)):
            at = lengths[row] // PAGE * rows + row, slice(None), lengths[row] % PAGE
            expected[0][at], expected[1][at] = key[row, 0], value[row, 0]
        cache = step(cache, 5, key, value, lengths, pages)
        np.testing.assert_array_equal(_arrays(cache, 5), expected)


def test_rows_are_taken_put_back_and_cleared() -> None:
    cache = _filled(TEXT, rows=4, context=32)
    taken = cache.take(jnp.array([2, 0]))
    doubled = cache.put(jnp.array([2, 0]), jax.tree.map(lambda x: 2 * x, taken))
    pages = np.arange(16) % 5 == 0
    cleared = cache.clear(jnp.int32(1), jnp.asarray(pages))
    for layer in (LOCAL, GLOBAL):
        for old, some, new, rest in zip(*(_arrays(x, layer) for x in (cache, taken, doubled, cleared)), strict=True):
            np.testing.assert_array_equal(some, old[[2, 0]] if layer == LOCAL else old)
            factor = np.array([2, 1, 2, 1]) if layer == LOCAL else np.full(16, 2)
            kept = np.array([1, 0, 1, 1]) if layer == LOCAL else ~pages
            np.testing.assert_array_equal(new, old * factor[:, None, None, None])
            np.testing.assert_array_equal(rest, old * kept[:, None, None, None])


@pytest.mark.parametrize("devices", [1, 8])
def test_prefixes_are_copied_stored_and_brought_back_without_what_comes_after(devices: int) -> None:
    """The rings' part against slots written by hand, before and after they are full; NaN behind it stays behind."""
    cache, window = _filled(TEXT, 3, 32, devices), TEXT.layers[LOCAL].window
    assert window == 8
    for length in (5, 8, 21):
        held = {at % window for at in range(max(0, length - window + 1), length)}  # what the next token sees
        behind = [slot not in held for slot in range(window)]
        spoilt = cache._map(rings=lambda x, behind=behind: jnp.where(jnp.array(behind)[:, None], jnp.nan, x))
        copied = spoilt.copy_rings(jnp.int32(1), jnp.int32(0), jnp.int32(length))
        stored = spoilt.store_rings(jnp.int32(1), jnp.int32(1), jnp.int32(length))
        restored = stored.restore_rings(jnp.int32(1), jnp.int32(2), jnp.int32(length))
        for old, a, b in zip(*(_arrays(x, LOCAL) for x in (cache, copied, restored)), strict=True):
            expected = np.where(np.array(behind)[:, None], 0, old[1])
            np.testing.assert_array_equal(a[0], expected)
            np.testing.assert_array_equal(b[2], expected)
            np.testing.assert_array_equal(b[:2, :, sorted(held)], old[:2, :, sorted(held)])
    source, target = jnp.array([3, 7, 0]), jnp.array([2, 5, 12])  # the last target is none
    found = cache.copy_pages(source, target, jnp.int32(PAGE + 3))
    for old, new in zip(_arrays(cache, GLOBAL), _arrays(found, GLOBAL), strict=True):
        expected = old.copy()
        expected[2], expected[5] = old[3], np.where(np.arange(PAGE)[:, None] < 3, old[7], 0)
        np.testing.assert_array_equal(new, expected)


@pytest.mark.parametrize("sides", [(1, 1), (2, 4)])
def test_bytes_are_those_of_the_arrays_on_a_device(sides: tuple[int, int]) -> None:
    mesh = mesh_of(*sides)
    cache = _empty(TEXT, mesh, 4, 128, "bfloat16")
    assert [keys.shape for keys, _ in cache.layers] == [(4, 4, 8, 8), (64, 4, PAGE, 8)]
    placed = jax.device_put(cache, cache.shardings())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed)
    sizes = [sum(x.addressable_shards[0].data.nbytes for x in layer) for layer in placed.layers]
    assert abstract.nbytes(windowed=False) == sizes[GLOBAL]
    stored = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(placed.stored))
    assert abstract.nbytes(windowed=True) == sizes[LOCAL] + stored
    assert abstract.num_keys() == sum(sizes) / 2 / (2 * TEXT.head_dim)


def test_a_context_shorter_than_the_window_is_stored_whole() -> None:
    cache = _empty(dataclasses.replace(TEXT, layers=gemma3_layers(6, window=50)), mesh_of(1, 1), 3, 16, "bfloat16")
    assert {keys.shape[2] for keys, _ in cache.layers} == {16, PAGE}
