"""The kernel for a few rows and int4 against float64, and when a model takes it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import mesh_of

from gemma_tpu.model.linear import QuantizedWeight, contract
from gemma_tpu.ops import int4_products
from gemma_tpu.ops.int4_products import int4_product, takes


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the kernel ran here, interpreted."""
    monkeypatch.setattr(int4_products, "runs_triton", lambda mesh: True)
    interpreted = functools.partial(int4_products._product, interpret=True)
    monkeypatch.setattr(int4_products, "_product", jax.jit(interpreted))


def _case(R: int, *shape: int, dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(R)
    x = rng.standard_normal((R, shape[-1])) * np.exp(3 * rng.standard_normal((R, 1)))
    return jnp.asarray(x, dtype), jnp.asarray(rng.integers(-8, 8, shape), jnp.int4)


def _distance(found: jax.Array, right: np.ndarray) -> float:
    return np.linalg.norm(np.asarray(found, "f8") - right, axis=-1).max() / np.linalg.norm(right, axis=-1).min()


# Of one block of K and several, of two shares of it, of blocks of 64 and 32 bytes, and of 16 outputs.
@pytest.mark.parametrize(("N", "K"), [(64, 256), (32, 768), (32, 2048), (96, 384), (48, 192)])
@pytest.mark.parametrize("R", [1, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_few_rows(hopper: None, R: int, N: int, K: int, dtype: str) -> None:
    x, values = _case(R, N, K, dtype=dtype)
    right = np.asarray(x, "f8") @ np.asarray(values, "f8").T
    for found, exact in zip(int4_product("rk,nk->rn", x, values), right, strict=True):
        assert found.dtype == jnp.float32
        assert _distance(found[None], exact[None]) < 1e-4


def test_shares_of_a_long_sum() -> None:
    """The products of the released models are split so that there are enough programs, and none does too little."""
    for N, K in ((5376, 21504), (2560, 10240), (43008, 5376), (4096, 2560), (1152, 6912)):
        block = int4_products._block(N, K)
        assert block is not None
        steps = K // 2 // block.bytes
        assert steps % block.shares == 0
        assert block.shares == 1 or steps // block.shares >= 4
    assert int4_products._block(43008, 5376).shares == 1 < int4_products._block(5376, 21504).shares
    assert int4_products._block(32, 2048).shares == 2


def test_the_letters_of_a_gated_mlp(hopper: None) -> None:
    x, values = _case(6, 2, 32, 256)
    x = x.reshape(3, 2, 256)
    right = np.einsum("btd,cfd->cfbt", np.asarray(x, "f8"), np.asarray(values, "f8"))
    np.testing.assert_allclose(int4_product("btd,cfd->cfbt", x, values), right, rtol=1e-3, atol=1e-3 * right.std())


def test_what_is_not_finite_spoils_its_own_row_alone(hopper: None) -> None:
    x, values = _case(4, 32, 512)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        found = int4_product("rk,nk->rn", x.at[2, 300].set(bad), values)
        np.testing.assert_array_equal(np.isfinite(found).all(axis=1), [True, True, False, True])
    zeros = int4_product("rk,nk->rn", jnp.zeros_like(x), values)
    np.testing.assert_array_equal(zeros, 0)


def test_when_it_is_taken(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, values = _case(8, 64, 256, dtype="bfloat16")
    one = mesh_of(1, 1)
    fine: dict[str, Any] = {"spec": "rk,nk->rn", "x": x, "values": values, "mesh": one}
    assert takes(**fine)
    others = {
        "nine rows": {"x": jnp.zeros((9, 256), "bfloat16")},
        "float32": {"x": x.astype("float32")},
        "int8": {"values": values.astype(jnp.int8)},
        "outputs last": {"spec": "rk,kn->rn", "values": jnp.zeros((256, 64), jnp.int4)},
        "two dimensions summed": {"spec": "rnk,nk->r", "x": jnp.zeros((1, 64, 256), "bfloat16")},
        "an odd number of outputs": {"values": values[:63]},
        "blocks too small": {"x": jnp.zeros((8, 40), "bfloat16"), "values": values[:, :40]},
        "two devices": {"mesh": mesh_of(1, 2)},
        "no mesh": {"mesh": None},
    }
    assert {name: takes(**(fine | other)) for name, other in others.items()} == dict.fromkeys(others, False)
    monkeypatch.undo()
    assert not takes(**fine)  # no GPU


def test_a_weight_with_scales(hopper: None) -> None:
    x, values = _case(2, 64, 256, dtype="bfloat16")
    weight = QuantizedWeight(values, jnp.linspace(0.1, 2, 64)[:, None], jnp.dtype("bfloat16"))
    by_kernel, by_xla = (contract("rk,nk->rn", x, weight, mesh) for mesh in (mesh_of(1, 1), None))
    assert by_kernel.dtype == by_xla.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(by_kernel, "f4"), np.asarray(by_xla, "f4"), rtol=2**-6, atol=0.5)
    traced = str(jax.make_jaxpr(lambda x: contract("rk,nk->rn", x, weight, mesh_of(1, 1)))(x))
    assert traced.count("pallas_call") == 2
