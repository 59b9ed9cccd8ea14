"""KV cache: rings of W slots for layers with a sliding window, pages of one pool for the others.

A row's tokens always fill positions 0 … length-1. In a ring, position p lives in slot p % S, so the row's length alone
says which position each slot holds: no positions are stored, and nothing of an earlier occupant can be seen. A page
holds successive tokens of one row. Whose it is comes with each call (`Pages`), so that long and short rows share the
pool. What rings held when a prefix of a prompt ended can be stored, and brought back when that prefix comes again; its
pages stay where they are. Letters: see gemma_tpu.config; R: rows of the cache.
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

from gemma_tpu.memory import shard_bytes, shard_size
from gemma_tpu.ops import append_attention
from gemma_tpu.ops.append_attention import append_to_pages, append_to_rings
from gemma_tpu.ops.attention import Keys, Part, attend_part, finish, join
from gemma_tpu.ops.int8 import Int8, Numbers, along, to_int8
from gemma_tpu.ops.masks import KeyValues, Queries
from gemma_tpu.ops.paged_attention import SHORTEST, paged_attention
from gemma_tpu.ops.slots import Layer, store, store_one
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
class Pages:
    """Whose tokens each page holds, as far as a call is concerned: the row in the call, -1 for none of them."""

    row: Any  # int32[A]
    start: Any  # int32[A], the position of its first token

    def table(self, rows: int, longest: int, size: int) -> Int[Array, "B pages"]:
        """Which page has each row's first `size` tokens, which those that follow, …; A where none has."""
        where = jnp.where(self.row < 0, rows, self.row), self.start // size
        return jnp.full((rows, longest), len(self.row)).at[where].set(jnp.arange(len(self.row)), mode="drop")


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

    def write(
        self,
        layer: int,
        rows: Int[Array, "B"],
        key: KeyValues,
        value: KeyValues,
        start: Int[Array, "B"],
        count: Int[Array, "B"],
        pages: Pages,
    ) -> KVCache:
        """Stores the first `count` tokens of each row at positions start, start + 1, …; a ring keeps the last S."""
        old, (B, T, *_) = self.layers[layer], key.shape
        key, value = self._kept(layer, key), self._kept(layer, value)
        first, _, slots, _ = old[0].shape
        token = jnp.arange(T)
        position, kept = start[:, None] + token, token < count[:, None]
        # Tokens that are not kept get indices past the end, each its own, so that the indices stay unique.
        if self.windows[layer] is None:
            page = jnp.take_along_axis(pages.table(B, self.longest, slots), position // slots, axis=1, mode="clip")
            page = jnp.where(kept, page, first + jnp.arange(B)[:, None] * T + token)
            return self._with(layer, store(old, page, position % slots, key, value))
        kept &= token >= count[:, None] - slots
        row = jnp.broadcast_to(rows[:, None], (B, T))
        return self._with(layer, store(old, row, jnp.where(kept, position % slots, slots + token), key, value))

    def append(self, layer: int, key: KeyValues, value: KeyValues, length: Int[Array, "R"], pages: Pages) -> KVCache:
        """Stores one more token of every row, at position `length`."""
        old, row = self.layers[layer], jnp.arange(len(length))
        key, value = self._kept(layer, key), self._kept(layer, value)
        first, _, slots, _ = old[0].shape
        if self.windows[layer] is None:
            table = pages.table(len(length), self.longest, slots)
            page = jnp.take_along_axis(table, (length // slots)[:, None], axis=1, mode="clip")[:, 0]
            row = jnp.where(page < first, page, first + row)
        where = {"split": self.mesh.shape["slots"] > 1, "inside": self.windows[layer] is not None}
        return self._with(layer, store_one(old, row, length % slots, key, value, **where))

    def append_and_attend(
        self,
        layer: int,
        query: Queries,
        key: KeyValues,
        value: KeyValues,
        *,
        length: Int[Array, "R"],
        held: Int[Array, "R"],
        pages: Pages,
    ) -> tuple[KVCache, Queries]:
        """Stores one more token of every row, at position `length`, and attends to the row with it: to `held` tokens.

        Rows at rest, which may hold fewer, are written to as well, in a ring or where they have a page: nothing reads
        the slot of the next position before that position is written. In a ring it held the token that is just leaving
        the window.
        """
        (keys, values), slots = self.layers[layer], self.layers[layer][0].shape[2]
        if not append_attention.fits(query, self.layers[layer], self.mesh):
            cache = self.append(layer, key, value, length, pages)
            return cache, cache.attend(layer, query, length[:, None], length=held, pages=pages)
        new = query, self._kept(layer, key), self._kept(layer, value), (keys, values), length
        if (window := self.windows[layer]) is None:
            whose, longest = (pages.row, pages.start), self.longest * slots
            stored, encoded = append_to_pages(*new, held - 1, *whose, longest=longest, mesh=self.mesh)
        else:
            before = slot_positions(held - 1, slots)
            stored, encoded = append_to_rings(*new, before, window=window, mesh=self.mesh)
        return self._with(layer, stored), encoded

    def attend(
        self,
        layer: int,
        query: Queries,
        position: Int[Array, "B T"],
        *,
        length: Int[Array, "B"] | None,
        pages: Pages,
        rows: Int[Array, "B"] | None = None,
        own: Keys | None = None,
    ) -> Queries:
        """Attention to the first `length` cached tokens (None: to none) of each row, and to the `own` tokens at hand.

        The queries belong to `rows` of the cache, None for all of them in order, and stand at `position`. Where several
        of them look at cached tokens, they are few, or of one row.
        """
        parts = []
        if own is not None:
            # As the cache is going to hold them, so that answers do not depend on where chunks and reused prefixes end.
            own = own._replace(key=self._kept(layer, own.key), value=self._kept(layer, own.value))
            window = self.windows[layer]
            parts.append(attend_part(query, position, own, window=window, mesh=self.mesh, length="T"))
        if length is not None:
            parts.append(self._cached(layer, query, position, length, pages, rows))
        return finish(functools.reduce(join, parts), query)

    def _cached(
        self,
        layer: int,
        query: Queries,
        position: Int[Array, "B T"],
        length: Int[Array, "B"],
        pages: Pages,
        rows: Int[Array, "B"] | None,
    ) -> Part:
        keys, values = self.layers[layer]
        slots = keys.shape[2]
        if (window := self.windows[layer]) is None:
            longest, whose = self.longest * slots, (pages.row, pages.start, length)
            return paged_attention(query, position, keys, values, *whose, longest=longest, mesh=self.mesh)
        if rows is not None:
            keys, values = jax.tree.map(lambda x: x[rows], (keys, values))
        ring = Keys(keys, values, slot_positions(length, slots))
        return attend_part(query, position, ring, window=window, mesh=self.mesh)

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

    def _kept(self, layer: int, x: jax.Array) -> Numbers:
        """Keys or values of tokens in the form in which the cache keeps them."""
        return to_int8(x) if isinstance(self.layers[layer][0], Int8) else x

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

    def _with(self, layer: int, new: Layer) -> KVCache:
        return dataclasses.replace(self, layers=(*self.layers[:layer], new, *self.layers[layer + 1 :]))


def slot_positions(length: Int[Array, "B"], slots: int) -> Int[Array, "B S"]:
    """The position each slot holds once a row has `length` tokens: the latest p < length with p % S = slot, or -1."""
    last = length[:, None] - 1
    position = last - (last - jnp.arange(slots)) % slots
    return jnp.where(position >= 0, position, -1)
