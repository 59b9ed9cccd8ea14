"""Padding of a batch to the rows that a platform multiplies at no extra cost."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

# A TPU multiplies fewer than 8 rows on its vector unit, which is slower than 8 on the matrix unit; on a GPU, XLA writes
# the products of a single row out to memory before it sums them.
_MIN_ROWS = {"tpu": 8, "gpu": 2}


def min_rows(mesh: Mesh) -> int:
    """Rows that a decode step is padded to on each device."""
    return _MIN_ROWS.get(mesh.devices.flat[0].platform, 1)


def row_padding(
    rows: int, mesh: Mesh, tokens: int = 1
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Adds rows of `tokens` up to `min_rows` tokens on each device of the data axis, and removes them.

    No row changes devices.
    """
    groups = mesh.shape["data"] if rows % mesh.shape["data"] == 0 else 1
    own = rows // groups
    added = max(0, -(-min_rows(mesh) // tokens) - own)

    def pad(x: jax.Array) -> jax.Array:
        grouped = x.reshape(groups, own, *x.shape[1:])
        if own == 1:  # copies of it, which XLA makes where they are read
            return jnp.broadcast_to(grouped, (groups, 1 + added, *x.shape[1:])).reshape(-1, *x.shape[1:])
        return jnp.pad(grouped, ((0, 0), (0, added), *((0, 0),) * (x.ndim - 1))).reshape(-1, *x.shape[1:])

    def unpad(x: jax.Array) -> jax.Array:
        return x.reshape(groups, own + added, *x.shape[1:])[:, :own].reshape(rows, *x.shape[1:])

    return pad, unpad
