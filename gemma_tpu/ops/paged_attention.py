"""Attention to keys that lie in pages of one pool, any page being any row's.

`row` and `start` say of each page whose tokens it holds (-1: nobody's at hand) and the position of the first. A part of
attention is found for each page, as if pages were batch rows, and those of a row are then joined: a call reads the
pages that are in use, whatever the longest row's length. Letters: see gemma_tpu.config; A: pages.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gemma_tpu.ops import triton_attention
from gemma_tpu.ops.attention import FEW, Part, by_kernel, look_at, look_at_all, on_devices, specs_of
from gemma_tpu.ops.einsum import einsum
from gemma_tpu.ops.int8 import Numbers, along
from gemma_tpu.ops.masks import Queries, by_head

SHORTEST = 8192  # tokens of the pool that a decode step reads at least on each device, but for the kernel of GPUs
_COPY = 3  # what a page costs that is copied before it is read: it is read, written and read again
Pool = Numbers  # [A, K, S, H]


def paged_attention(
    query: Queries,
    position: Int[Array, "B T"],
    key: Pool,
    value: Pool,
    row: Int[Array, "A"],
    start: Int[Array, "A"],
    length: Int[Array, "B"],
    *,
    longest: int,
    mesh: Mesh,
) -> Part:
    """Of the first `length` tokens of each row, at most `longest`; a row of length 0 reads zeros if this is all.

    With more than FEW queries a row there is one row. The devices of the mesh's slots axis each have some of a page's
    slots.
    """
    arguments = (query, key, value, position, row, start, length)
    dims = ("BTK.H", "AKSH", "AKSH", "BT", "A", "A", "B")
    specs = [jax.tree.leaves(specs_of(letters, x, mesh))[0] for letters, x in zip(dims, arguments, strict=True)]
    by_block = by_kernel(mesh, query.dtype, query.shape[-1], query.shape[1])
    rows_split, slots_split, page = bool(specs[0][0]), bool(specs[1][2]), key.shape[2]

    def look(query: jax.Array, key: Pool, value: Pool, position: jax.Array, row: jax.Array, *rest: jax.Array) -> Part:
        start, length = rest
        slot = jnp.arange(key.shape[2])
        if slots_split:
            slot += jax.lax.axis_index("slots") * key.shape[2]
        here, key_pos = held_tokens(row, start, length, slot, rows_split)
        if by_block:
            blocks, place = pages_of_rows(here, key_pos, query.shape[0], -(-longest // page))
            whose = position, key_pos, blocks, place
            sums, *_ = triton_attention.look_by_block(by_head(query), key, value, *whose, window=None)
            return Part(*sums)
        if query.shape[1] <= FEW:
            return _few_queries(by_head(query), key, value, position, here, key_pos)
        return _one_row(query, key, value, position, here, start, key_pos, longest=longest)

    part = on_devices(look, arguments, dims, mesh)
    return part._replace(total=jnp.where(part.total == 0, 1, part.total))


def held_tokens(
    row: Int[Array, "A"], start: Int[Array, "A"], length: Int[Array, "B"], slot: Int[Array, "S"], rows_split: bool
) -> tuple[Int[Array, "A"], Int[Array, "A S"]]:
    """Whose each page is of this device's rows, and the positions of what it holds of their first `length` tokens.

    `slot` are those of a page that are here; `rows_split`: whether rows lie on several devices.
    """
    if rows_split:
        row = jnp.where(row >= 0, row - jax.lax.axis_index("data") * len(length), -1)
    position = start[:, None] + slot
    held = jnp.where(row >= 0, length[jnp.maximum(row, 0)], 0)
    return row, jnp.where(position < held[:, None], position, -1)


def _one_row(
    query: Queries,
    key: Pool,
    value: Pool,
    position: jax.Array,
    row: jax.Array,
    start: jax.Array,
    key_pos: jax.Array,
    *,
    longest: int,
) -> Part:
    """Its pages are brought together, those of earlier positions first."""
    pages = min(len(start), -(-longest // key.shape[2]))
    order = jnp.argsort(jnp.where(row >= 0, start, jnp.iinfo(jnp.int32).max))[:pages]
    # Or all layers bring theirs together before the first of them looks at its own.
    query, order = jax.lax.optimization_barrier((query, order))
    mine = (row >= 0)[order]

    def together(x: jax.Array) -> jax.Array:
        # Zeros for the pages of others, which may not be finite: 0 times NaN is NaN.
        own = jnp.where(along(mine, x), x[order], 0)
        return jnp.moveaxis(own, 1, 0).reshape(1, x.shape[1], -1, *x.shape[3:])

    key, value = jax.tree.map(together, (key, value))
    key_pos = key_pos[order].reshape(1, -1)
    return look_at(query, key, value, position, key_pos, jnp.zeros_like(position), jnp.zeros_like(key_pos), window=None)


def pages_of_rows(
    row: Int[Array, "A"], position: Int[Array, "A S"], rows: int, longest: int
) -> tuple[Int[Array, "B"], Int[Array, "B pages"]]:
    """How many blocks of `triton_attention` each row has in its pages that hold tokens, and which pages these are."""
    number = jnp.arange(rows)
    mine = (row == number[:, None]) & jnp.any(position >= 0, axis=1)
    count = jnp.cumsum(mine, axis=1)
    place = jnp.zeros((rows, longest), jnp.int32)
    place = place.at[number[:, None], jnp.where(mine, count - 1, longest)].set(jnp.arange(len(row)), mode="drop")
    return count[:, -1] * triton_attention.blocks_of(position.shape[1]), place


def _few_queries(
    query: Float[Array, "B K Q H"],
    key: Pool,
    value: Pool,
    position: Int[Array, "B T"],
    row: jax.Array,
    key_pos: jax.Array,
) -> Part:
    """The pool is read where it lies, up to its last page in use; if few pages are, these are copied instead."""
    pages, slots = key.shape[0], key.shape[2]
    used = row >= 0
    count, end = jnp.sum(used), jnp.max(jnp.where(used, jnp.arange(1, pages + 1), 0))
    shortest = max(1, SHORTEST // slots)
    sizes = [size for i in range(pages.bit_length()) if (size := shortest << i) < pages] + [pages]
    few = [size for size in sizes[::2] if size * _COPY < pages]
    look = functools.partial(_by_page, query, position)
    operands = (key, value, row, key_pos)
    order = jnp.argsort(~used)  # stable: pages in use first

    def copied(size: int, operands: Sequence[Any]) -> Part:
        return look(*jax.tree.map(lambda x: x[order[:size]], operands))

    in_place = [lambda operands, size=size: look(*jax.tree.map(lambda x: x[:size], operands)) for size in sizes]
    branches = [*in_place, *(functools.partial(copied, size) for size in few)]
    index = jnp.sum(end > jnp.array(sizes[:-1]), dtype=jnp.int32)
    if few:
        smaller = jnp.sum(count > jnp.array(few[:-1]), dtype=jnp.int32)
        cost = jnp.array(few)[smaller] * _COPY
        copy = (count <= few[-1]) & (cost < jnp.array(sizes)[index])
        index = jnp.where(copy, len(sizes) + smaller, index)
    return jax.lax.switch(index, branches, operands)


def _by_page(query: jax.Array, position: jax.Array, key: Pool, value: Pool, row: jax.Array, key_pos: jax.Array) -> Part:
    """Attention of each row to its pages among these, all at once."""
    whose = jnp.maximum(row, 0)
    none = jnp.zeros_like(row)[:, None]
    found = look_at_all(query[whose], key, value, position[whose], key_pos, none, jnp.zeros_like(key_pos), window=None)
    mine = row == jnp.arange(query.shape[0])[:, None]  # [B, A]
    lowest = jnp.finfo(found.peak.dtype).min
    peak = jnp.max(jnp.where(mine[:, :, None, None], found.peak, lowest), axis=1)
    scale = jnp.exp(found.peak - peak[whose])
    weighted, total = found.weighted * scale[..., None], found.total * scale
    # 0 times NaN is NaN: what is not finite is left out of the sums, and spoils its own row alone.
    used = (row >= 0)[:, None, None]
    good = used & jnp.isfinite(total) & jnp.all(jnp.isfinite(weighted), axis=-1)
    weights = mine.astype(weighted.dtype)
    total = einsum("ba,akq->bkq", weights, jnp.where(good, total, 0))
    weighted = einsum("ba,akqh->bkqh", weights, jnp.where(good[..., None], weighted, 0))
    spoilt = jnp.any(mine[:, :, None, None] & (used & ~good), axis=1)
    return Part(weighted, jnp.where(spoilt, jnp.nan, total), peak)
