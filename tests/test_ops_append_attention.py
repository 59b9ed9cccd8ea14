"""Storing and attending in one kernel, interpreted, against storing first and attending then, in plain JAX."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TEXT, mesh_of
from test_ops_triton_attention import in_kernels  # noqa: F401

from gemma_tpu.cache.kv_cache import CacheShape, KVCache
from gemma_tpu.cache.layer import Pages
from gemma_tpu.ops import append_attention, triton_attention

K, G, H, PAGE, PAGES = 4, 2, 8, 8, 16
WINDOWS = [8, None]
LENGTHS = [0, 1, 7, 8, 21, 40]  # nothing yet; the ring full, and long past it; a page begun
HELD = [1, 2, 1, 9, 22, 1]  # the third rests, and the last


@functools.cache
def _cache(dtype: Any, mesh: jax.sharding.Mesh) -> tuple[KVCache, Pages]:
    """With LENGTHS tokens of each row, on pages in no order, NaN in those of nobody. The last row has no page."""
    rng, lengths = np.random.default_rng(0), np.array(LENGTHS)
    shape = CacheShape(len(lengths), PAGES * PAGE, PAGES * len(lengths), PAGE, 0, 0, K, H)
    cache = KVCache.init(WINDOWS, shape, dtype, mesh)
    groups = mesh.shape["data"]
    row, start = np.full((2, PAGES * len(lengths)), -1)
    own = len(row) // groups
    for b, length in enumerate(lengths[:-1]):
        part = b * groups // len(lengths)
        free = [page for page in range(part * own, (part + 1) * own) if row[page] < 0]
        used = rng.permutation(free)[: length // PAGE + 1]
        row[used], start[used] = b, np.arange(len(used)) * PAGE
    pages = Pages(jnp.asarray(row), jnp.asarray(start))
    T = int(lengths.max())
    key, value = jnp.asarray(rng.standard_normal((2, len(lengths), T, K, H)), jnp.float32)
    none = jnp.zeros(len(lengths), jnp.int32)
    for layer in range(len(WINDOWS)):
        cache = cache.write(layer, jnp.arange(len(lengths)), key, value, none, jnp.asarray(lengths), pages)
    if dtype != jnp.int8:
        cache = cache._map(pools=lambda x: jnp.where((pages.row < 0)[:, None, None, None], jnp.nan, x))
    return cache, pages


def _step(dtype: Any, mesh: jax.sharding.Mesh, layer: int) -> tuple[KVCache, Any]:
    rng, (cache, pages), lengths = np.random.default_rng(1), _cache(dtype, mesh), np.array(LENGTHS)
    query = jnp.asarray(rng.standard_normal((len(lengths), 1, K, G, H)), jnp.float32)
    key, value = jnp.asarray(rng.standard_normal((2, len(lengths), 1, K, H)), jnp.float32)
    step = jax.jit(lambda cache, *given, **more: cache.append_and_attend(layer, *given, **more))
    return step(cache, query, key, value, length=jnp.asarray(lengths), held=jnp.asarray(HELD), pages=pages)


@functools.cache
def _plain_step(dtype: Any, mesh: jax.sharding.Mesh, layer: int) -> tuple[KVCache, Any]:
    with mock.patch.object(triton_attention, "fits", return_value=False):
        jax.clear_caches()
        return _step(dtype, mesh, layer)


@pytest.mark.usefixtures("in_kernels")
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
@pytest.mark.parametrize(
    ("programs", "shape", "fused"), [(1, (1, 1), True), (16, (1, 1), True), (16, (2, 4), True), (16, (1, 8), False)]
)
def test_it_equals_append_then_attend(
    layer: int, dtype: Any, programs: int, shape: tuple[int, int], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that have nothing yet, are at the end of their ring or page, or rest; one has no page to store it in.

    Each is looked at by one program of the kernel, or by several.
    """
    monkeypatch.setattr(triton_attention, "_PROGRAMS", programs)
    mesh = mesh_of(*shape, dataclasses.replace(TEXT, num_kv_heads=K))
    cache, _ = _cache(dtype, mesh)
    assert append_attention.fits(jnp.zeros((6, 1, K, G, H)), cache.layers[layer], mesh) is fused
    found, encoded = _step(dtype, mesh, layer)
    expected, plain = _plain_step(dtype, mesh, layer)
    active = np.array(HELD) > 1
    active[0] = True
    np.testing.assert_allclose(encoded[active], plain[active], atol=2e-5)
    assert np.isfinite(np.asarray(encoded)).all()
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.usefixtures("in_kernels")
@pytest.mark.parametrize("layer", [0, 1])
def test_what_is_not_finite_spoils_its_own_row_alone(layer: int) -> None:
    mesh, lengths = mesh_of(1, 1), np.array(LENGTHS)
    cache, pages = _cache(jnp.float32, mesh)
    query, key, value = jnp.ones((6, 1, K, G, H)), jnp.ones((6, 1, K, H)), jnp.ones((6, 1, K, H)).at[3].set(jnp.nan)
    more = {"length": jnp.asarray(lengths), "held": jnp.asarray(lengths + 1), "pages": pages}
    _, encoded = cache.append_and_attend(layer, query, key, value, **more)
    good = np.isfinite(np.asarray(encoded)).all(axis=(1, 2, 3, 4))
    assert good.tolist() == [True, True, True, False, True, True]
