"""Storing and attending in one kernel, interpreted, against storing first and attending then, in plain JAX."""

from __future__ import annotations

import dataclasses
from typing import Any

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


def _cache(dtype: Any, mesh: jax.sharding.Mesh, lengths: np.ndarray, seed: int = 0) -> tuple[KVCache, Pages]:
    """With `lengths` tokens of each row, on pages in no order, NaN in those of nobody. The last row has no page."""
    rng = np.random.default_rng(seed)
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


def _step(cache: KVCache, pages: Pages, lengths: np.ndarray, held: np.ndarray, layer: int) -> tuple[KVCache, Any]:
    rng = np.random.default_rng(1)
    query = jnp.asarray(rng.standard_normal((len(lengths), 1, K, G, H)), jnp.float32)
    key, value = jnp.asarray(rng.standard_normal((2, len(lengths), 1, K, H)), jnp.float32)
    step = jax.jit(lambda cache, *given, **more: cache.append_and_attend(layer, *given, **more))
    return step(cache, query, key, value, length=jnp.asarray(lengths), held=jnp.asarray(held), pages=pages)


@pytest.mark.usefixtures("in_kernels")
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
@pytest.mark.parametrize("programs", [1, 16])
@pytest.mark.parametrize(("shape", "fused"), [((1, 1), True), ((2, 4), True), ((1, 8), False)])
def test_it_equals_append_then_attend(
    layer: int, dtype: Any, programs: int, shape: tuple[int, int], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that have nothing yet, are at the end of their ring or page, or rest; one has no page to store it in.

    Each is looked at by one program of the kernel, or by several.
    """
    monkeypatch.setattr(triton_attention, "_PROGRAMS", programs)
    mesh = mesh_of(*shape, dataclasses.replace(TEXT, num_kv_heads=K))
    lengths = np.array(LENGTHS)
    held = lengths + 1
    held[[2, -1]] = 1  # rest
    cache, pages = _cache(dtype, mesh, lengths)
    assert append_attention.fits(jnp.zeros((6, 1, K, G, H)), cache.layers[layer], mesh) is fused
    found, encoded = _step(cache, pages, lengths, held, layer)
    monkeypatch.setattr(triton_attention, "fits", lambda mesh, head_dim: False)
    jax.clear_caches()
    expected, plain = _step(cache, pages, lengths, held, layer)
    active = held > 1
    active[0] = True
    np.testing.assert_allclose(encoded[active], plain[active], atol=2e-5)
    assert np.isfinite(np.asarray(encoded)).all()
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.usefixtures("in_kernels")
@pytest.mark.parametrize("layer", [0, 1])
def test_what_is_not_finite_spoils_its_own_row_alone(layer: int) -> None:
    mesh, lengths = mesh_of(1, 1), np.array(LENGTHS)
    cache, pages = _cache(jnp.float32, mesh, lengths)
    query, key, value = jnp.ones((6, 1, K, G, H)), jnp.ones((6, 1, K, H)), jnp.ones((6, 1, K, H)).at[3].set(jnp.nan)
    more = {"length": jnp.asarray(lengths), "held": jnp.asarray(lengths + 1), "pages": pages}
    _, encoded = cache.append_and_attend(layer, query, key, value, **more)
    good = np.isfinite(np.asarray(encoded)).all(axis=(1, 2, 3, 4))
    assert good.tolist() == [True, True, True, False, True, True]
