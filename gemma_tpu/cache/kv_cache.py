"""KV cache: rings of W slots for layers with a sliding window, the whole context for the others.

A row's tokens always fill positions 0 … length-1, and position p lives in slot p % S. So the row's length alone says
which position each slot holds, for a ring and for a full-length cache alike; a row is emptied by setting its length to
0. No positions are stored, and nothing of an earlier occupant can be seen. Letters: see gemma_tpu.config; R: rows of
the cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from gemma_tpu.memory import shard_bytes, shard_size
from gemma_tpu.ops.attention import PREFIX, Keys, attention
from gemma_tpu.ops.masks import KeyValues, Queries
from gemma_tpu.ops.slots import Layer, store, store_one
from gemma_tpu.sharding import partition

_REGISTER = 128  # slots in a TPU's register: a multiple of them on every device suits the attention kernel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer. A pytree: methods return another cache, whose buffers replace this one's.

    Another kind of cache is another class with these methods; nothing else knows how keys and values are stored.
    """

    layers: tuple[tuple[Any, Any], ...]  # keys, values [R, K, S, H]; or their shapes, or shardings
    windows: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})  # None: the whole context
    mesh: Mesh = dataclasses.field(metadata={"static": True})

    @classmethod
    def init(cls, windows: Sequence[int | None], whole: jax.ShapeDtypeStruct, mesh: Mesh) -> KVCache:
        """An empty cache for layers with these windows. The devices that share it divide its slots evenly.

        `whole`: shape [R, K, context, H] and dtype of the keys of a layer without a window.
        """
        R, K, context, H = whole.shape
        unit = mesh.shape["slots"] * (_REGISTER if mesh.devices.flat[0].platform == "tpu" else 1)
        most = -(-context // unit) * unit

        def zeros(window: int | None) -> jax.Array:
            return jnp.zeros((R, K, most if window is None else min(window, most), H), whole.dtype)

        return cls(tuple((zeros(window), zeros(window)) for window in windows), tuple(windows), mesh)

    def shardings(self) -> KVCache:
        """Split over rows, kv heads and slots, as far as the mesh's axes divide them."""
        return jax.tree.map(lambda x: partition("RKSH", x.shape, self.mesh), self)

    def write(
        self,
        layer: int,
        rows: Int[Array, "B"],
        key: KeyValues,
        value: KeyValues,
        start: Int[Array, "B"],
        count: Int[Array, "B"],
    ) -> KVCache:
        """Stores the first `count` tokens of each row at positions start, start + 1, …; a ring keeps the last S."""
        keys, values = self.layers[layer]
        slots = keys.shape[2]
        token = jnp.arange(key.shape[1])
        kept = (token < count[:, None]) & (token >= count[:, None] - slots)
        # Tokens that are not kept get indices past the end, each its own, so that the indices stay unique.
        slot = jnp.where(kept, (start[:, None] + token) % slots, slots + token)
        return self._with(layer, store((keys, values), rows, slot, key, value))

    def append(self, layer: int, key: KeyValues, value: KeyValues, length: Int[Array, "R"]) -> KVCache:
        """Stores one more token of every row, at position `length`.

        Rows at rest are written to as well: nothing reads the slot of the next position before that position is
        written. In a ring it held the token that is just leaving the window, elsewhere none.
        """
        old = self.layers[layer]
        slot = length % old[0].shape[2]
        return self._with(layer, store_one(old, slot, key, value, split=self.mesh.shape["slots"] > 1))

    def attend(
        self,
        layer: int,
        query: Queries,
        position: Int[Array, "B T"],
        *,
        length: Int[Array, "B"] | None,
        rows: Int[Array, "B"] | None = None,
        own: Keys | None = None,
    ) -> Queries:
        """Attention to the first `length` cached tokens (None: to none) of each row, and to the `own` tokens at hand.

        The queries belong to `rows` of the cache, None for all of them in order, and stand at `position`.
        """
        cached = None
        if length is not None:
            keys, values = self.layers[layer]
            if rows is not None:
                keys, values = keys[rows], values[rows]
            cached = Keys(keys, values, slot_positions(length, keys.shape[2]))
        return attention(query, position, own=own, cached=cached, window=self.windows[layer], mesh=self.mesh)

    def clear(self, row: Int[Array, ""]) -> KVCache:
        """Zeros in place of a row's keys and values, since a weight of 0 times NaN is NaN."""

        def emptied(x: jax.Array) -> jax.Array:
            here = jnp.arange(x.shape[0]) == row  # no slice: a cache that is split over rows stays where it is
            return jnp.where(here[:, None, None, None], jnp.zeros((), x.dtype), x)

        return jax.tree.map(emptied, self)

    def take(self, rows: Int[Array, "B"]) -> KVCache:
        """A cache of these rows alone."""
        return jax.tree.map(lambda x: x[rows], self)

    def put(self, rows: Int[Array, "B"], taken: KVCache) -> KVCache:
        """This cache with `rows` as they are in `taken`."""
        return jax.tree.map(lambda x, some: x.at[rows].set(some), self, taken)

    def nbytes(self, *, windowed: bool) -> int:
        """Bytes on each device of an abstract cache, of the layers with a window or of the others."""
        layers = zip(self.layers, self.windows, strict=True)
        return shard_bytes([layer for layer, window in layers if (window is None) != windowed])

    def num_keys(self) -> int:
        """Keys on each device of an abstract cache: rows × kv heads × slots, summed over the layers."""
        return sum(shard_size(keys) // keys.shape[-1] for keys, _ in self.layers)

    def shortest_read(self) -> int:
        """Tokens of a context that a decode step reads at least, however few are cached: a prefix on each device."""
        return PREFIX * self.mesh.shape["slots"]

    def _with(self, layer: int, new: Layer) -> KVCache:
        return dataclasses.replace(self, layers=(*self.layers[:layer], new, *self.layers[layer + 1 :]))


def slot_positions(length: Int[Array, "B"], slots: int) -> Int[Array, "B S"]:
    """The position each slot holds once a row has `length` tokens: the latest p < length with p % S = slot, or -1."""
    last = length[:, None] - 1
    position = last - (last - jnp.arange(slots)) % slots
    return jnp.where(position >= 0, position, -1)
