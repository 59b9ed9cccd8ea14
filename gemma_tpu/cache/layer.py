"""Keys and values of one layer: storing tokens of rows, and attention to them. Letters: see gemma_tpu.config.

R: rows of the cache; A: pages. The methods are compiled into the program that calls them: jax traces and lowers each
once for all the layers that are alike.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from gemma_tpu.ops import append_attention
from gemma_tpu.ops.append_attention import append_to_pages, append_to_rings
from gemma_tpu.ops.attention import Keys, Part, attend_part, finish, join
from gemma_tpu.ops.int8 import Int8, Numbers, to_int8
from gemma_tpu.ops.masks import KeyValues, Queries
from gemma_tpu.ops.paged_attention import paged_attention
from gemma_tpu.ops.slots import Layer, store, store_one


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
class LayerCache:
    """Rings [R, K, S, H] of a layer with a window, or the pool [A, K, S, H] of one without."""

    keys: Any  # an array or an `Int8`
    values: Any
    window: int | None = dataclasses.field(metadata={"static": True})
    longest: int = dataclasses.field(metadata={"static": True})  # pages of a row
    mesh: Mesh = dataclasses.field(metadata={"static": True})

    @jax.jit
    def write(
        self,
        rows: Int[Array, "B"],
        key: KeyValues,
        value: KeyValues,
        start: Int[Array, "B"],
        count: Int[Array, "B"],
        pages: Pages,
    ) -> Layer:
        """Stores the first `count` tokens of each row at positions start, start + 1, …; a ring keeps the last S."""
        (B, T, *_), (first, _, slots, _) = key.shape, self.keys.shape
        token = jnp.arange(T)
        position, kept = start[:, None] + token, token < count[:, None]
        # Tokens that are not kept get indices past the end, each its own, so that the indices stay unique.
        if self.window is None:
            page = jnp.take_along_axis(pages.table(B, self.longest, slots), position // slots, axis=1, mode="clip")
            row, slot = jnp.where(kept, page, first + jnp.arange(B)[:, None] * T + token), position % slots
        else:
            kept &= token >= count[:, None] - slots
            row, slot = jnp.broadcast_to(rows[:, None], (B, T)), jnp.where(kept, position % slots, slots + token)
        return store((self.keys, self.values), row, slot, self._kept(key), self._kept(value))

    @jax.jit
    def append(self, key: KeyValues, value: KeyValues, length: Int[Array, "R"], pages: Pages) -> Layer:
        """Stores one more token of every row, at position `length`."""
        row, (first, _, slots, _) = jnp.arange(len(length)), self.keys.shape
        if self.window is None:
            table = pages.table(len(length), self.longest, slots)
            page = jnp.take_along_axis(table, (length // slots)[:, None], axis=1, mode="clip")[:, 0]
            row = jnp.where(page < first, page, first + row)
        where = {"split": self.mesh.shape["slots"] > 1, "inside": self.window is not None}
        new = self._kept(key), self._kept(value)
        return store_one((self.keys, self.values), row, length % slots, *new, **where)

    @jax.jit
    def append_and_attend(
        self,
        query: Queries,
        key: KeyValues,
        value: KeyValues,
        *,
        length: Int[Array, "R"],
        held: Int[Array, "R"],
        pages: Pages,
    ) -> tuple[Layer, Queries]:
        """Stores one more token of every row, at position `length`, and attends to the row with it: to `held` tokens.

        Rows at rest, which may hold fewer, are written to as well, in a ring or where they have a page: nothing reads
        the slot of the next position before that position is written. In a ring it held the token that is just leaving
        the window.
        """
        layer, slots = (self.keys, self.values), self.keys.shape[2]
        if not append_attention.fits(query, layer, self.mesh):
            keys, values = stored = self.append(key, value, length, pages)
            appended = dataclasses.replace(self, keys=keys, values=values)
            return stored, appended.attend(query, length[:, None], length=held, pages=pages)
        new = query, self._kept(key), self._kept(value), layer, length
        if self.window is None:
            whose, longest = (pages.row, pages.start), self.longest * slots
            return append_to_pages(*new, held - 1, *whose, longest=longest, mesh=self.mesh)
        before = slot_positions(held - 1, slots)
        return append_to_rings(*new, before, window=self.window, mesh=self.mesh)

    @jax.jit
    def attend(
        self,
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
            own = own._replace(key=self._kept(own.key), value=self._kept(own.value))
            parts.append(attend_part(query, position, own, window=self.window, mesh=self.mesh, length="T"))
        if length is not None:
            parts.append(self._cached(query, position, length, pages, rows))
        return finish(functools.reduce(join, parts), query)

    def _cached(
        self,
        query: Queries,
        position: Int[Array, "B T"],
        length: Int[Array, "B"],
        pages: Pages,
        rows: Int[Array, "B"] | None,
    ) -> Part:
        keys, values, slots = self.keys, self.values, self.keys.shape[2]
        if self.window is None:
            longest, whose = self.longest * slots, (pages.row, pages.start, length)
            return paged_attention(query, position, keys, values, *whose, longest=longest, mesh=self.mesh)
        if rows is not None:
            keys, values = jax.tree.map(lambda x: x[rows], (keys, values))
        ring = Keys(keys, values, slot_positions(length, slots))
        return attend_part(query, position, ring, window=self.window, mesh=self.mesh)

    def _kept(self, x: jax.Array) -> Numbers:
        """Keys or values of tokens in the form in which the cache keeps them."""
        return to_int8(x) if isinstance(self.keys, Int8) else x


def slot_positions(length: Int[Array, "B"], slots: int) -> Int[Array, "B S"]:
    """The position each slot holds once a row has `length` tokens: the latest p < length with p % S = slot, or -1."""
    last = length[:, None] - 1
    position = last - (last - jnp.arange(slots)) % slots
    return jnp.where(position >= 0, position, -1)
