"""KV cache: rings of W slots for local layers, the whole context for global ones. Letters: see gemma_tpu.config.

A row's tokens always fill positions 0 … length-1, and position p lives in slot p % S. So the row's length alone says
which position each slot holds, for a ring and for a full-length cache alike; a row is emptied by setting its length
to 0. Nothing else is stored, and nothing of an earlier occupant can be seen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int

from gemma_tpu.config import GemmaConfig

LayerCache = tuple[Float[Array, "R K S H"], Float[Array, "R K S H"]]  # keys, values; R: rows of the cache
Cache = tuple[LayerCache, ...]


def cache_slots(config: GemmaConfig, layer: int, context: int) -> int:
    """S of a layer for a context of so many tokens."""
    return min(config.layers[layer].window or context, context)


def init_cache(config: GemmaConfig, rows: int, context: int, dtype: jax.typing.DTypeLike) -> Cache:
    def zeros(layer: int) -> jax.Array:
        shape = (rows, config.num_kv_heads, cache_slots(config, layer, context), config.head_dim)
        return jnp.zeros(shape, dtype)

    return tuple((zeros(layer), zeros(layer)) for layer in range(config.num_layers))


def cache_bytes(config: GemmaConfig, rows: int, context: int, dtype: jax.typing.DTypeLike) -> int:
    """Bytes of the whole cache over all devices."""
    slots = sum(cache_slots(config, layer, context) for layer in range(config.num_layers))
    return 2 * rows * slots * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize


def slot_positions(length: Int[Array, "B"], slots: int) -> Int[Array, "B S"]:
    """The position each slot holds once a row has `length` tokens: the latest p < length with p % S = slot, or -1."""
    last = length[:, None] - 1
    position = last - (last - jnp.arange(slots)) % slots
    return jnp.where(position >= 0, position, -1)


def write(
    cache: LayerCache,
    rows: Int[Array, "B"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    start: Int[Array, "B"],
    count: Int[Array, "B"],
) -> LayerCache:
    """Stores the first `count` tokens of each row at positions start, start + 1, …; a ring keeps the last S of them."""
    heads, slots = cache[0].shape[1:3]
    token = jnp.arange(key.shape[1])
    kept = (token < count[:, None]) & (token >= count[:, None] - slots)
    # Tokens that are not kept get indices past the end, each its own, so that the indices stay unique.
    slot = jnp.where(kept, (start[:, None] + token) % slots, slots + token)
    # An index for each head too: the TPU compiler lays a cache whose windows hold several heads out anew at each call.
    where = (rows[:, None, None], jnp.arange(heads)[:, None], slot[:, None])

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        new = jnp.moveaxis(new, 1, 2).astype(old.dtype)
        return old.at[where].set(new, mode="drop", unique_indices=True)

    return put(cache[0], key), put(cache[1], value)


def append(
    cache: LayerCache,
    key: Float[Array, "B one K H"],
    value: Float[Array, "B one K H"],
    length: Int[Array, "B"],
    *,
    split: bool = False,
) -> LayerCache:
    """Stores one more token of every row, at position `length`; B = R. `split`: the slots lie on several devices.

    A row that rests may be written to as well, which saves asking: nothing is read from the slot of the next position
    before that position is written. In a ring it held the token that is just leaving the window, elsewhere none.
    """
    rows, heads, slots, _ = cache[0].shape
    slot = length % slots

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        new = jnp.moveaxis(new, 1, 2).astype(old.dtype)
        if rows > 1:
            where = (jnp.arange(rows)[:, None, None], jnp.arange(heads)[:, None], slot[:, None, None])
            return old.at[where].set(new, mode="promise_in_bounds", unique_indices=True)
        # XLA rewrites a scatter of a single row to an update of a slice, and lays the cache out anew for it. On one
        # device it does not if the update is written as such; on several only a second row to scatter helps, which is
        # here one past the end.
        if not split:
            return jax.lax.dynamic_update_slice(old, new, (0, 0, slot[0], 0))
        where = (0, jnp.arange(heads)[:, None], jnp.stack([slot, jnp.full(1, slots)])[:, None])
        return old.at[where].set(jnp.concatenate([new, new]), mode="drop", unique_indices=True)

    def both(cache: LayerCache) -> LayerCache:
        return put(cache[0], key), put(cache[1], value)

    def apart(cache: LayerCache) -> LayerCache:
        # XLA's CPU backend fuses the update of a single row into each of its readers, on a copy of the cache for each;
        # a branch (always taken, which it cannot know) keeps it by itself, and in place.
        return jax.lax.cond(jnp.all(length >= 0), both, lambda same: same, cache)

    def as_it_lies(cache: LayerCache) -> LayerCache:
        # Where slices of a cache are read, the TPU compiler would otherwise lay all of it out anew.
        keys, values = (with_layout_constraint(x, Layout((0, 1, 2, 3))) for x in both(cache))
        return keys, values

    return jax.lax.platform_dependent(cache, cpu=apart, tpu=as_it_lies, default=both)
