"""Whether logits are finite, on the device; `NotFiniteError` is in gemma_tpu.engine.errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.jit
def finite(logits: Float[Array, "*batch V"]) -> Bool[Array, "*batch"]:
    """False where logits hold NaN or positive infinity, or negative infinity alone: by their largest."""
    return jnp.isfinite(jnp.max(logits, axis=-1))
