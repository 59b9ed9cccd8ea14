"""Attention between patches: the TPU's kernel and the split over devices, against plain softmax attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from gemma_tpu.config import CONFIGS
from gemma_tpu.ops.patch_attention import _in_tpu_kernel, full_attention, patch_attention
from gemma_tpu.sharding import make_mesh


def _patches(*shape: int, dtype: str = "float32") -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(2 * rng.standard_normal(shape), dtype) for _ in range(3)]


def _plain(query, key, value) -> np.ndarray:
    query, key, value = (np.asarray(x.astype(jnp.float32), np.float64) for x in (query, key, value))
    scores = np.einsum("itnh,ipnh->intp", query, key, optimize=True) * query.shape[-1] ** -0.5
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("intp,ipnh->itnh", weights / weights.sum(axis=-1, keepdims=True), value, optimize=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-5), ("bfloat16", 2e-2)])
def test_the_kernel_equals_plain_attention(dtype: str, tolerance: float) -> None:
    qkv = _patches(2, 1024, 2, 72, dtype=dtype)
    with pltpu.force_tpu_interpret_mode():
        found = _in_tpu_kernel(*qkv)
    np.testing.assert_allclose(np.asarray(found, "f4"), _plain(*qkv), atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 4), (8, 1)])
@pytest.mark.parametrize(("images", "patches", "heads"), [(4, 16, 8), (1, 16, 8), (2, 16, 3), (1, 2048, 8)])
def test_split_over_devices_equals_plain_attention(shape, images: int, patches: int, heads: int) -> None:
    """Images and heads that the mesh divides, and such that stay whole."""
    mesh = make_mesh(CONFIGS["gemma3-4b"], shape, jax.devices()[: shape[0] * shape[1]])
    qkv = _patches(images, patches, heads, 8)
    found = jax.jit(patch_attention, static_argnames="mesh")(*qkv, mesh=mesh)
    np.testing.assert_allclose(found, _plain(*qkv), atol=3e-5)


def test_the_mesh_decides_and_not_the_default_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU devices on a machine with a GPU take the plain path; cuDNN's is taken for the devices that have it."""
    mesh = make_mesh(CONFIGS["gemma3-4b"], (1, 1), jax.devices()[:1])
    qkv = _patches(1, 16, 2, 8, dtype="bfloat16")
    called = []

    def cudnn(query, key, value, implementation):
        called.append(implementation)
        return full_attention(query, key, value)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    np.testing.assert_allclose(np.asarray(patch_attention(*qkv, mesh=mesh), "f4"), _plain(*qkv), atol=2e-2)
    assert called == []
    monkeypatch.setattr("gemma_tpu.ops.patch_attention.attention_kernel", lambda *_: "cudnn")
    patch_attention(*qkv, mesh=mesh)
    assert called == ["cudnn"]
