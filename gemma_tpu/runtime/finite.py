"""Logits that are NaN or infinity: an error instead of tokens that mean nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


class NotFiniteError(RuntimeError):
    """Logits that are NaN or infinity. `where` is in a request; `dtype` that of the weights."""

    def __init__(self, where: str, dtype: np.dtype) -> None:
        said = f"the model's logits are NaN or infinity {where}: its weights are damaged"
        super().__init__(
            said + ("" if dtype == np.float32 else f', or overflow in {dtype} (load with dtype="float32")')
        )


@jax.jit
def finite(logits: Float[Array, "*batch V"]) -> Bool[Array, "*batch"]:
    """False where logits hold NaN or positive infinity, or negative infinity alone: by their largest."""
    return jnp.isfinite(jnp.max(logits, axis=-1))


def require_finite(logits: Float[Array, "B K V"], dtype: np.dtype) -> Float[Array, "B K V"]:
    """The same logits; `NotFiniteError` naming the first row that has others."""
    bad = np.flatnonzero(~np.asarray(finite(logits)).all(axis=1))
    if bad.size:
        raise NotFiniteError(f"in row {bad[0]}", dtype)
    return logits
