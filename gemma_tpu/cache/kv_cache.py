"""KV cache: rings of W slots for layers with a sliding window, pages of one pool for the others.

A row's tokens always fill positions 0 … length-1. In a ring, position p lives in slot p % S, so the row's length alone
says which position each slot holds: no positions are stored, and nothing of an earlier occupant can be seen. A page
holds successive tokens of one row. Whose it is comes with each call (`Pages` of gemma_tpu.cache.layer), so that long
and short rows share the pool. What rings held when a prefix of a prompt ended can be stored, and brought back when that
prefix comes again; its pages stay where they are. Letters: see gemma_tpu.config; R: rows of the cache.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from gemma_tpu.cache.layer import LayerCache, slot_positions
from gemma_tpu.memory import shard_bytes, shard_size
from gemma_tpu.ops.int8 import Int8, along
from gemma_tpu.ops.masks import Queries
from gemma_tpu.ops.paged_attention import SHORTEST
from gemma_tpu.ops.slots import Layer
from gemma_tpu.sharding import partition

Change = Callable[[jax.Array], jax.Array]
Rings = tuple[tuple[Any, Any], ...]  # keys and values [R or places, K, S, H] of each layer with a window


@dataclasses.dataclass(frozen=True)
class CacheShape:
    """`rows` of up to `context` tokens, which share `pages` of `page` tokens; room for the rings of `stored` prefixes.

    `slack`: slots of a ring beyond its window, so that a row can go back by as many tokens and still see the window.
    The devices that share a cache divide the slots of a page evenly.
    """

    rows: int
    context: int
    pages: int
    page: int
    stored: int
    slack: int
    num_kv_heads: int
    head_dim: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer. A pytree: methods return another cache, whose buffers replace this one's.

    Another kind of cache is another class with these methods; nothing else knows how keys and values are stored.
    """

    # Keys, values: rings [R, K, S, H], pools [A, K, S, H], each an array or an `Int8`; or shapes, or shardings.
    layers: tuple[tuple[Any, Any], ...]
    stored: tuple[tuple[Any, Any], ...]  # for each ring, those of stored prefixes
    windows: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})  # None: the whole context
    longest: int = dataclasses.field(metadata={"static": True})  # pages of a row
    mesh: Mesh = dataclasses.field(metadata={"static": True})

    @classmethod
    def init(cls, windows: Sequence[int | None], shape: CacheShape, dtype: Any, mesh: Mesh) -> KVCache:
        """An empty cache for layers with these windows. With int8 for `dtype` its arrays are those of `Int8`."""
        longest = -(-shape.context // shape.page)

        def zeros(count: int, slots: int) -> Layer:
            layer = jnp.zeros((count, shape.num_kv_heads, slots, shape.head_dim), dtype)
            if dtype == jnp.int8:
                layer = Int8(layer, jnp.zeros(layer.shape[:-1], jnp.float32))
            return layer, jax.tree.map(jnp.copy, layer)

        most = longest * shape.page
        rings = [None if window is None else min(window + shape.slack, most) for window in windows]
        layers = [zeros(shape.pages, shape.page) if slots is None else zeros(shape.rows, slots) for slots in rings]
        stored = [zeros(shape.stored, slots) for slots in rings if slots is not None and shape.stored]
        return cls(tuple(layers), tuple(stored), tuple(windows), longest, mesh)

    def shardings(self) -> KVCache:
        """Split over rows or pages, kv heads and slots, as far as the mesh's axes divide them."""
        return jax.tree.map(lambda x: partition("RKSH"[: x.ndim], x.shape, self.mesh), self)

    def write(self, layer: int, *tokens: Any, **where: Any) -> KVCache:
        """`LayerCache.write`."""
        return self._with(layer, self._layer(layer).write(*tokens, **where))

    def append(self, layer: int, *tokens: Any, **where: Any) -> KVCache:
        """`LayerCache.append`."""
        return self._with(layer, self._layer(layer).append(*tokens, **where))

    def append_and_attend(self, layer: int, *tokens: Any, **where: Any) -> tuple[KVCache, Queries]:
        """`LayerCache.append_and_attend`."""
        stored, encoded = self._layer(layer).append_and_attend(*tokens, **where)
        return self._with(layer, stored), encoded

    def attend(self, layer: int, *queries: Any, **where: Any) -> Queries:
        """`LayerCache.attend`."""
        return self._layer(layer).attend(*queries, **where)

    def clear(self, row: Int[Array, ""], pages: Bool[Array, "A"]) -> KVCache:
        """Zeros in place of the keys and values of a row's rings and of pages: 0 times NaN would be NaN."""

        def emptied(x: jax.Array, gone: Bool[Array, "first"]) -> jax.Array:
            # No slice: a cache that is split over rows stays where it is.
            return jnp.where(along(gone, x), jnp.zeros((), x.dtype), x)

        return self._map(rings=lambda x: emptied(x, jnp.arange(x.shape[0]) == row), pools=lambda x: emptied(x, pages))

    def copy_pages(self, source: Int[Array, "count"], target: Int[Array, "count"], tokens: Int[Array, ""]) -> KVCache:
        """The first `tokens` of successive pages, to others; a target past the end is none.

        Zeros behind them: what a row writes there may not be finite, and is not the other's.
        """

        def copied(x: jax.Array) -> jax.Array:
            held = jnp.arange(len(source))[:, None] * x.shape[2] + jnp.arange(x.shape[2]) < tokens
            return x.at[target].set(jnp.where(along(held[:, None], x), x[source], 0), mode="drop")

        return self._map(pools=copied)

    def copy_rings(self, source: Int[Array, ""], target: Int[Array, ""], length: Int[Array, ""]) -> KVCache:
        """For a row, what the rings of another hold of the window before `length`, and zeros."""
        return self._with_rings(self._copied(self._rings(), source, self._rings(), target, length))

    def store_rings(self, row: Int[Array, ""], place: Int[Array, ""], length: Int[Array, ""]) -> KVCache:
        """The same, from a row to one of the places for stored prefixes."""
        return dataclasses.replace(self, stored=self._copied(self._rings(), row, self.stored, place, length))

    def restore_rings(self, place: Int[Array, ""], row: Int[Array, ""], length: Int[Array, ""]) -> KVCache:
        """The same, from such a place to a row."""
        return self._with_rings(self._copied(self.stored, place, self._rings(), row, length))

    def take(self, rows: Int[Array, "B"]) -> KVCache:
        """A cache of these rows alone, with all pages."""
        return self._map(rings=lambda x: x[rows])

    def put(self, rows: Int[Array, "B"], taken: KVCache) -> KVCache:
        """This cache with `rows` as they are in `taken`, and its pages."""
        rings = jax.tree.map(lambda x, some: x.at[rows].set(some), self._rings(), taken._rings())
        return taken._with_rings(rings)

    def nbytes(self, *, windowed: bool) -> int:
        """Bytes on each device of an abstract cache, of the layers with a window or of the others."""
        if windowed:
            return shard_bytes((self._rings(), self.stored))
        return shard_bytes([layer for layer, window in zip(self.layers, self.windows, strict=True) if window is None])

    def num_keys(self, *, one_row: bool = False) -> int:
        """Keys on each device of an abstract cache, by kv heads, summed over the layers: of all rows, or of one."""
        found = 0
        for (keys, _), window in zip(self.layers, self.windows, strict=True):
            keys = keys.values if isinstance(keys, Int8) else keys
            first, *_ = keys.sharding.shard_shape(keys.shape)
            share = min(first, self.longest if window is None else 1) if one_row else first
            found += shard_size(keys) // keys.shape[-1] // first * share
        return found

    def key_bytes(self) -> int:
        """Of a key of one token and kv head, with its scale if it has one; a value has as many."""
        keys, _ = self.layers[0]
        return sum(math.prod(x.shape[3:]) * x.dtype.itemsize for x in jax.tree.leaves(keys))

    def shortest_read(self) -> int:
        """Tokens of the pages that a decode step reads at least, however few are in use."""
        return SHORTEST * self.mesh.shape["slots"]

    def _rings(self) -> Rings:
        return tuple(layer for layer, window in zip(self.layers, self.windows, strict=True) if window is not None)

    def _with_rings(self, rings: Rings) -> KVCache:
        others, layers = iter(rings), zip(self.layers, self.windows, strict=True)
        changed = [layer if window is None else next(others) for layer, window in layers]
        return dataclasses.replace(self, layers=tuple(changed))

    def _copied(
        self, source: Rings, at: Int[Array, ""], target: Rings, to: Int[Array, ""], length: Int[Array, ""]
    ) -> Rings:
        """Rings `target` in which row `to` has what a row of `length` tokens needs of row `at` of `source`."""

        def copied(window: int, old: jax.Array, new: jax.Array) -> jax.Array:
            position = slot_positions(length[None], new.shape[2])[0]
            needed = (position >= 0) & (position > length - window)
            return old.at[to].set(jnp.where(along(needed[None], new[at]), new[at], 0), mode="drop")

        windows = [window for window in self.windows if window is not None]
        layers = zip(windows, target, source, strict=True)
        return tuple(jax.tree.map(functools.partial(copied, window), old, new) for window, old, new in layers)

    def _map(self, rings: Change = lambda x: x, pools: Change = lambda x: x) -> KVCache:
        """With every array of the layers changed."""
        layers = zip(self.layers, self.windows, strict=True)
        changed = [jax.tree.map(pools if window is None else rings, layer) for layer, window in layers]
        return dataclasses.replace(self, layers=tuple(changed))

    def _layer(self, layer: int) -> LayerCache:
        return LayerCache(*self.layers[layer], self.windows[layer], self.longest, self.mesh)

    def _with(self, layer: int, new: Layer) -> KVCache:
        return dataclasses.replace(self, layers=(*self.layers[:layer], new, *self.layers[layer + 1 :]))
