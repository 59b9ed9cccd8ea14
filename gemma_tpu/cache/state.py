"""What the device keeps between calls: the cache, and for each batch row its length and row_params.

R: rows of the cache; V: vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from gemma_tpu.ops.sampling import Leaf, Sampling
from gemma_tpu.options import MAX_STOP_TOKENS, NO_TOKEN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowParams:
    """What the caller of a row asked for. `stop` is padded with NO_TOKEN."""

    sampling: Sampling
    stop: Leaf  # int32[R, MAX_STOP_TOKENS]
    forbidden: Leaf  # bool[R, V]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The one value that every program takes and returns.

    `length`: tokens in the cache. `last`: the token to feed next, at position `length`. `remaining`: tokens a row may
    still produce; a row with 0 rests.
    """

    cache: Any  # a KVCache, or another class with its methods
    length: Leaf  # int32[R]
    last: Leaf  # int32[R]
    remaining: Leaf  # int32[R]
    row_params: RowParams

    @classmethod
    def empty(cls, cache: Any, rows: int, vocab_size: int) -> State:
        """All rows at rest beside an empty `cache`."""

        def zeros(dtype: str) -> jax.Array:
            return jnp.zeros(rows, dtype)

        sampling = Sampling(zeros("f4"), zeros("i4"), zeros("f4"), zeros("f4"), zeros("u4"))
        stop = jnp.full((rows, MAX_STOP_TOKENS), NO_TOKEN, jnp.int32)
        row_params = RowParams(sampling, stop, jnp.zeros((rows, vocab_size), bool))
        return cls(cache, zeros("i4"), zeros("i4"), zeros("i4"), row_params)

    def shardings(self, mesh: Mesh) -> State:
        """The cache's own; the few numbers per row are on every device."""
        shardings = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), self)
        return dataclasses.replace(shardings, cache=self.cache.shardings())

    def take(self, rows: Int[Array, "B"]) -> State:
        """The state of these rows alone."""
        taken = jax.tree.map(lambda x: x[rows], dataclasses.replace(self, cache=None))
        return dataclasses.replace(taken, cache=self.cache.take(rows))

    def put(self, rows: Int[Array, "B"], taken: State) -> State:
        """This state with `rows` as they are in `taken`."""
        mine, theirs = (dataclasses.replace(state, cache=None) for state in (self, taken))
        state = jax.tree.map(lambda x, some: x.at[rows].set(some), mine, theirs)
        return dataclasses.replace(state, cache=self.cache.put(rows, taken.cache))
