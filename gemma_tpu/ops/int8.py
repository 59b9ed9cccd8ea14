"""Keys and values as 8-bit integers, with one scale for each token and kv head.

Attention multiplies by the scales after its product with the keys, and before that with the values: neither is ever
written out as floating-point numbers. Letters: see gemma_tpu.config.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LEVELS = 127  # symmetric: -128 is left out
FINER = 254  # how many of the next part make one of a part, where a number is a sum of int8 numbers


class Int8(NamedTuple):
    """`values` times `scales`, which have all its dimensions but the last.

    Scales are float32: one more byte in 64 of the released models' heads of 256, and what bfloat16 would save of that
    its rounding would cost in error, as much again as that of the integers. Tokens are their last dimension, so that on
    a TPU they fill whole registers; with a last dimension of 1 they would take up 128 times the room.
    """

    values: Any  # int8[..., H]
    scales: Any  # float32[...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Numbers = Any  # an array [..., H], or its Int8


def to_int8(x: Float[Array, "*batch H"]) -> Int8:
    """The nearest that there is. Where a number is not finite, the scale is not."""
    x = x.astype(jnp.float32)
    # A vector of zeros may have any scale; that of one of subnormal numbers is not 0.
    scales = jnp.maximum(jnp.max(jnp.abs(x), axis=-1) / LEVELS, jnp.finfo(jnp.float32).tiny)
    values = jnp.clip(jnp.round(x / scales[..., None]), -LEVELS, LEVELS)
    return Int8(jnp.where(jnp.isfinite(values), values, 0).astype(jnp.int8), scales)


def split(x: Numbers, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """What to multiply by, in `dtype`, and the scales if there are any."""
    return (x.values.astype(dtype), x.scales) if isinstance(x, Int8) else (x, None)


def dequantized(x: Numbers) -> jax.Array:
    """The numbers that are meant, in float32."""
    numbers, scales = split(x, jnp.float32)
    return numbers.astype(jnp.float32) if scales is None else numbers * scales[..., None]


def along(mask: jax.Array, x: jax.Array) -> jax.Array:
    """`mask` with dimensions of 1 behind its own, to stand beside values or scales."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
