"""Einsum at the precision that the dtype of its factors asks for."""

from __future__ import annotations

import re
from typing import Any, Literal

import jax
import jax.numpy as jnp


def letters(spec: str) -> list[str]:
    """Of the first factor, the second and the result."""
    return re.split(",|->", spec)


def precision(*factors: Any) -> Literal["highest", "default"]:
    """float32 factors are multiplied as such: TPUs and GPUs would otherwise round them to bfloat16 or TF32."""
    return "highest" if any(factor.dtype == jnp.float32 for factor in factors) else "default"


def einsum(spec: str, a: jax.Array, b: jax.Array, *, dtype: jax.typing.DTypeLike | None = None) -> jax.Array:
    """`jnp.einsum(spec, a, b)`, accumulated and returned in `dtype` (default: that of the factors)."""
    return jnp.einsum(spec, a, b, precision=precision(a, b), preferred_element_type=dtype)
