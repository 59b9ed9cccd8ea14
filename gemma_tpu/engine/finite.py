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


def require_finite(rows: Bool[np.ndarray, "B"], dtype: np.dtype) -> None:
    """`NotFiniteError` naming the first row whose logits are not."""
    if bad := np.flatnonzero(~rows).tolist():
        raise NotFiniteError(f"in row {bad[0]}", dtype)
