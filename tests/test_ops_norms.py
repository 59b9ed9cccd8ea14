"""A residual stream, what a branch adds to it, and the two norms between them: against float64, and as one kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import mesh_of

from gemma_tpu.ops import norms
from gemma_tpu.ops.norms import add_and_norm

plain = jax.jit(add_and_norm, static_argnums=4)
kernel = jax.jit(functools.partial(norms._in_kernel, interpret=True))


def _case(B: int, T: int, D: int, dtype: str) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(D)
    x, branch = 3 * rng.standard_normal((2, B, T, D))
    branch[0, 0] = 0  # the square of whose root is the epsilon alone
    return tuple(jnp.asarray(array, dtype) for array in (x, branch, *rng.standard_normal((2, D))))


def _expected(x: np.ndarray, branch: np.ndarray, post: np.ndarray, pre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (1 + scale)

    x = x + norm(branch, post)
    return x, norm(x, pre)


@pytest.mark.parametrize("form", ["plain", "split over devices", "kernel"])
@pytest.mark.parametrize(("B", "T", "D"), [(2, 1, 640), (1, 5, 96), (8, 1, 256), (2, 3, 1152)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_both_norms(form: str, B: int, T: int, D: int, dtype: str, tolerance: float) -> None:
    case = _case(B, T, D, dtype)
    found = kernel(*case) if form == "kernel" else plain(*case, mesh_of(2, 4) if form != "plain" else None)
    for mine, right in zip(found, _expected(*(np.asarray(x, "f8") for x in case)), strict=True):
        assert mine.dtype == dtype
        np.testing.assert_allclose(np.asarray(mine, "f8"), right, rtol=tolerance / 5, atol=tolerance)


def test_the_kernel_rounds_as_the_plain_form_does() -> None:
    case = _case(4, 2, 2560, "bfloat16")
    for mine, right in zip(kernel(*case), plain(*case, None), strict=True):
        mine, right = (np.asarray(x, "f8") for x in (mine, right))
        assert np.all(np.abs(mine - right) <= 2**-7 * np.maximum(np.abs(right), 1))
        assert np.mean(mine != right) < 0.01


def test_what_is_not_finite_spoils_its_own_token_alone() -> None:
    x, *rest = _case(2, 2, 96, "float32")
    for mine in kernel(x.at[1, 0, 5].set(jnp.nan), *rest):
        finite = np.isfinite(np.asarray(mine)).all(axis=-1)
        np.testing.assert_array_equal(finite, [[True, True], [False, True]])


def test_many_devices_and_other_chips_take_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(2, 1, 96, "float32")
    assert "pallas_call" not in str(jax.make_jaxpr(add_and_norm, static_argnums=4)(*case, mesh_of(1, 1)))
    monkeypatch.setattr(norms, "runs_triton", lambda mesh: True)
    for mesh, calls in ((mesh_of(1, 1), 1), (mesh_of(1, 2), 0), (None, 0)):
        traced = jax.make_jaxpr(functools.partial(add_and_norm, mesh=mesh))(*case)
        assert str(traced).count("pallas_call") == calls
