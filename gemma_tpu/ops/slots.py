"""Writing to the slots of a cache in place: what XLA needs on each platform so as not to copy the cache.

Letters: see gemma_tpu.config.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Int

from gemma_tpu.ops.int8 import Numbers

_TILE = 32  # successive slots of int8 that share a register of a TPU

Layer = tuple[Numbers, Numbers]  # keys, values [first, K, S, H]; first: rows or pages


def store(
    layer: Layer,
    first: Int[Array, "B T"],
    slot: Int[Array, "B T"],
    key: Numbers,
    value: Numbers,
) -> Layer:
    """Tokens [B, T, K, H] in unique slots of `first` (rows or pages); those past the end of either are dropped."""
    # An index for each head too: the TPU compiler copies a cache to another layout at each call if the windows of a
    # scatter hold several heads (jax 0.10 to 0.12).
    where = (first[:, None], jnp.arange(layer[0].shape[1])[:, None], slot[:, None])

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        new = jnp.moveaxis(new, 1, 2).astype(old.dtype)
        return old.at[where].set(new, mode="drop", unique_indices=True)

    return jax.tree.map(put, layer, (key, value))


def store_one(
    layer: Layer,
    first: Int[Array, "B"],
    slot: Int[Array, "B"],
    key: Numbers,
    value: Numbers,
    *,
    split: bool,
    inside: bool,
) -> Layer:
    """One token [B, 1, K, H] of every row in a slot of `first`, its row or page, no two of them the same.

    `split`: the slots lie on several devices. `inside`: none is past the end; otherwise these are dropped, but a single
    one is to be inside.
    """
    mode = "promise_in_bounds" if inside else "drop"
    _, heads, slots, _ = layer[0].shape

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        new = jnp.moveaxis(new, 1, 2).astype(old.dtype)
        if len(first) > 1:
            if old.ndim == 3:  # scales: a TPU writes all of a row's or page's at once, or copies all there are
                here = old.at[first].get(mode="fill" if mode == "drop" else mode)
                new = jnp.where((jnp.arange(slots) == slot[:, None])[:, None], new, here)
                return old.at[first].set(new, mode=mode, unique_indices=True)
            where = (first[:, None, None], jnp.arange(heads)[:, None], slot[:, None, None])
            return old.at[where].set(new, mode=mode, unique_indices=True)
        # XLA rewrites a scatter of a single row to an update of a slice, and may copy the cache to another layout for
        # it. On one device an update written as such prevents that, on several a second row, here one past the end.
        # TPUs no longer need either (libtpu 0.0.50), though steps take 1.6% fewer cycles with the first; GPUs may.
        if not split:
            if old.dtype == jnp.int8 and slots % _TILE == 0:
                return _update_tile(old, new, first[0], slot[0])
            return jax.lax.dynamic_update_slice(old, new, (first[0], 0, slot[0], 0)[: old.ndim])
        where = (first[0], jnp.arange(heads)[:, None], jnp.stack([slot, jnp.full(1, slots)])[:, None])
        return old.at[where].set(jnp.concatenate([new, new]), mode="drop", unique_indices=True)

    def both(layer: Layer) -> Layer:
        return jax.tree.map(put, layer, (key, value))

    def in_branch(layer: Layer) -> Layer:
        # XLA's CPU backend fuses the update of a single row into each of its readers, on a copy of the cache for each
        # (jax 0.10 to 0.12). A branch, always taken, which it cannot know, keeps the update in place.
        return jax.lax.cond(jnp.all(slot >= 0), both, lambda same: same, layer)

    def in_layout(layer: Layer) -> Layer:
        # Where slices of a cache are read, the TPU compiler otherwise copies all of it to another layout with jax 0.10.
        # jax 0.12 does without: this can go once it is the oldest that is supported.
        return jax.tree.map(lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim)))), both(layer))

    return jax.lax.platform_dependent(layer, cpu=in_branch, tpu=in_layout, default=both)


def _update_tile(old: jax.Array, new: jax.Array, first: Int[Array, ""], slot: Int[Array, ""]) -> jax.Array:
    """Writes whole registers of a TPU, which copies an int8 cache to another layout before it writes a part of one."""
    _, heads, _, head_dim = old.shape
    tiles = old.reshape(len(old), heads, -1, _TILE, head_dim)
    where = first, 0, slot // _TILE, 0, 0
    tile = jax.lax.dynamic_slice(tiles, where, (1, heads, 1, _TILE, head_dim))
    tile = jnp.where((jnp.arange(_TILE) == slot % _TILE)[:, None], new[:, :, None], tile)
    return jax.lax.dynamic_update_slice(tiles, tile, where).reshape(old.shape)
