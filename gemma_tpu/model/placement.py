"""How the decoder's arrays lie on a mesh, where XLA's own choice would be dear. Letters: see gemma_tpu.config."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from gemma_tpu.sharding import partition


class Placement:
    """Leaves it to XLA, as is right for one device."""

    def look_up(self, table: Float[Array, "V D"], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The rows of a table; 0 ≤ ids < V."""
        return table[ids]

    def place(self, x: jax.Array, dims: str, summed: tuple[str, Sequence[int]] = ("", ())) -> jax.Array:
        """`x`, lying as the letters of its dimensions say.

        `summed`: letters and sizes of the dimensions that a product which gave `x` has summed over. What they are split
        over, `x` is not.
        """
        return x


class OnMesh(Placement):
    """As gemma_tpu.sharding says."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def look_up(self, table: Float[Array, "V D"], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Each device finds those rows it has, and one sum brings them together.

        Left to itself, XLA may instead send the whole table to every device for each token (jax 0.11.2 on GPUs).
        """
        spec, where = (partition(dims, x.shape, self._mesh).spec for dims, x in (("VD", table), ("BT", ids)))
        axes, columns = spec
        if axes is None:
            return super().look_up(table, ids)

        def local(own: Float[Array, "part D"], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
            index = ids - jax.lax.axis_index(axes) * own.shape[0]
            here = (index >= 0) & (index < own.shape[0])
            return jax.lax.psum(jnp.where(here[..., None], own[jnp.where(here, index, 0)], 0), axes)

        found = PartitionSpec(*where, columns)
        return jax.shard_map(local, mesh=self._mesh, in_specs=(spec, where), out_specs=found)(table, ids)

    def place(self, x: jax.Array, dims: str, summed: tuple[str, Sequence[int]] = ("", ())) -> jax.Array:
        letters, sizes = summed
        spec = partition(letters + dims, (*sizes, *x.shape), self._mesh).spec[len(letters) :]
        return jax.lax.with_sharding_constraint(x, NamedSharding(self._mesh, PartitionSpec(*spec)))
