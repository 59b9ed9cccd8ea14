"""Attention of the decoder, in parts that are joined afterwards: no matrix of all queries × all keys is ever made.

`attend_part` is the entry; it chooses by platform between a kernel and plain JAX. A part holds what softmax needs of
the keys it has seen: their weighted values, the sum of their weights, and the largest score, against which the weights
are taken (online softmax: Milakov and Gimelshein, arXiv 1805.02867; in attention: FlashAttention, arXiv 2205.14135).
Letters: see gemma_tpu.config; Q: the G × T queries of a kv head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from gemma_tpu.ops import triton_attention
from gemma_tpu.ops.einsum import einsum
from gemma_tpu.ops.flash_attention import fits, flash
from gemma_tpu.ops.int8 import Numbers, split
from gemma_tpu.ops.masks import MASKED, KeyValues, Queries, by_head, sees
from gemma_tpu.sharding import partition

BLOCK = 1024  # keys looked at in one go
FEW = 16  # queries of a row, at most, whose scores are small


class Keys(NamedTuple):
    """Keys and values to attend to. Position -1 marks an empty slot or padding.

    `image` is 0 for text, else an id, of the queries' own tokens; None: all are text.
    """

    key: Numbers  # [B, K, S, H]
    value: Numbers
    position: Int[Array, "B S"]
    image: Int[Array, "B S"] | None = None


def own_keys(key: KeyValues, value: KeyValues, position: Int[Array, "B T"], image: jax.Array | None = None) -> Keys:
    """Those of the tokens at hand. What is not finite is to spoil only tokens that see it, and 0 times NaN is NaN."""
    good = jnp.isfinite(value)
    key, value = jnp.where(good, key, jnp.nan), jnp.where(good, value, 0)
    return Keys(jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2), position, image)


class Part(NamedTuple):
    """Attention to some of the keys. `peak` is their largest score; `weighted` and `total` are relative to it.

    A query that may see none of them has a part of no meaning, which counts nothing once joined with one where it does.
    """

    weighted: Float[Array, "B K Q H"]
    total: Float[Array, "B K Q"]
    peak: Float[Array, "B K Q"]


def join(a: Part, b: Part) -> Part:
    peak = jnp.maximum(a.peak, b.peak)
    left, right = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
    weighted = a.weighted * left[..., None] + b.weighted * right[..., None]
    return Part(weighted, a.total * left + b.total * right, peak)


def finish(part: Part, query: Queries) -> Queries:
    """What the queries read, from parts that together hold all the keys."""
    B, T, K, G, H = query.shape
    encoded = (part.weighted / part.total[..., None]).astype(query.dtype)
    return jnp.moveaxis(encoded.reshape(B, K, G, T, H), 3, 1)


def attend_part(
    query: Queries, position: Int[Array, "B T"], keys: Keys, *, window: int | None, mesh: Mesh, length: str = "S"
) -> Part:
    """Softmax attention under the mask of `attention_mask`, to one set of keys.

    `length`, the letter of their dimension, says whether it is split over devices: "S" is, "T" is not.
    Each device looks at its own heads and slots; what those that share a cache's slots found is then joined.
    """
    key, value, key_pos, image = keys
    few = key.shape[2] < triton_attention.BLOCK  # at once
    by_block = not few and by_kernel(mesh, query.dtype, query.shape[-1], query.shape[1])
    look = _by_block if by_block else look_at
    images = (image, image) if image is not None else (jnp.zeros_like(position), jnp.zeros_like(key_pos))
    if image is None and by_block:
        images = ()
    arguments = (query, key, value, position, key_pos, *images)
    whole, positions = f"BK{length}H", f"B{length}"
    dims = ("BTK.H", whole, whole, "BT", positions, "BT", positions)  # all query heads of a kv head, whatever splits G
    return on_devices(functools.partial(look, window=window), arguments, dims[: len(arguments)], mesh)


def on_devices(look: Callable[..., Part], arguments: Sequence[Numbers], dims: Sequence[str], mesh: Mesh) -> Part:
    """What `look` gives of each device's share of the arguments, joined over devices with other keys.

    The first argument is the queries, the second the keys; `dims` are the letters of the arguments' dimensions.
    """
    if mesh.size == 1:
        return look(*arguments)
    specs = tuple(specs_of(letters, x, mesh) for letters, x in zip(dims, arguments, strict=True))
    split = tuple(sorted(axes_of(specs[1]) - axes_of(specs[0])))

    def local(*arguments: Any) -> Part:
        part = look(*arguments)
        if not split:
            return part
        peak = jax.lax.pmax(part.peak, split)
        scale = jnp.exp(part.peak - peak)
        weighted, total = jax.lax.psum((part.weighted * scale[..., None], part.total * scale), split)
        return Part(weighted, total, peak)

    sums = PartitionSpec(specs[0][0], specs[0][2])  # each of them has B and K first
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=sums, check_vma=False)(*arguments)


def specs_of(dims: str, x: Numbers, mesh: Mesh) -> Any:
    """How an array lies on a mesh; scales, which have all dimensions but the last, as their values do."""
    return jax.tree.map(lambda part: partition(dims[: part.ndim], part.shape, mesh).spec, x)


def axes_of(specs: Any) -> set[str]:
    """The axes of a mesh over which an array is split, by what `specs_of` says of it."""
    spec, *_ = jax.tree.leaves(specs)
    return set(jax.tree.leaves(tuple(spec)))


def look_at(query: Queries, key: Numbers, *rest: Any, window: int | None) -> Part:
    """Attention to the keys at hand. The arguments as of `attend_part`."""
    rows = by_head(query)
    if query.shape[1] <= FEW:
        return look_at_all(rows, key, *rest, window=window)
    blocks = functools.partial(_blocks, window=window)
    if not fits(rows.shape[2], key.shape[2]):
        return blocks(rows, key, *rest)
    kernel = functools.partial(_in_kernel, window=window)
    return jax.lax.platform_dependent(rows, key, *rest, tpu=kernel, default=blocks)


def by_kernel(mesh: Mesh, dtype: Any, head_dim: int, queries: int = FEW + 1) -> bool:
    """Whether a GPU's kernel looks at the keys, for so many queries of a row: not for many in float32, untried."""
    return (queries <= FEW or dtype != jnp.float32) and triton_attention.fits(mesh, head_dim)


def _by_block(query: Queries, key: Numbers, value: Numbers, *ids: jax.Array, window: int | None) -> Part:
    """`look_at` in a GPU's kernel."""
    position, key_pos, *images = ids
    blocks = triton_attention.blocks_of(used(key_pos))
    of_images = (images[0], images[1]) if images else None
    rows = by_head(query)
    sums, *_ = triton_attention.look_by_block(
        rows, key, value, position, key_pos, blocks, images=of_images, window=window
    )
    return Part(*sums)


def _per_query(x: Int[Array, "B T"], queries: int) -> Int[Array, "B Q"]:
    return jnp.tile(x, (1, queries // x.shape[1]))


def _in_kernel(query: jax.Array, key: Numbers, value: Numbers, *ids: jax.Array, window: int | None) -> Part:
    query_pos, key_pos, query_image, key_image = ids
    position, image = (_per_query(x, query.shape[2]) for x in (query_pos, query_image))
    return Part(*flash(query, key, value, position, key_pos, image, key_image, window=window))


def _blocks(query: jax.Array, *keys: Any, window: int | None) -> Part:
    """The same in plain JAX, a block of keys at a time, as far as there are any."""
    B, K, Q, H = query.shape
    key, _, _, key_pos, *_ = keys
    S, longest = key.shape[2], jnp.max(used(key_pos))
    block = min(BLOCK, S)
    if block == S:
        return look_at_all(query, *keys, window=window)
    nothing = Part(jnp.zeros((B, K, Q, H)), jnp.zeros((B, K, Q)), jnp.full((B, K, Q), MASKED))

    def step(i: jax.Array, part: Part) -> Part:
        start = jnp.minimum(i * block, S - block)  # the last block may reach back, over keys that have been seen
        key, value, query_pos, key_pos, *images = _cut(keys, start, block)
        key_pos = jnp.where(start + jnp.arange(block) >= i * block, key_pos, -1)
        return join(part, look_at_all(query, key, value, query_pos, key_pos, *images, window=window))

    return jax.lax.fori_loop(0, (longest + block - 1) // block, step, nothing)


def _cut(keys: Sequence[Any], start: jax.Array | int, size: int) -> tuple[Any, ...]:
    """The arguments of `_look` for `size` keys from `start`."""
    key, value, query_pos, key_pos, query_image, key_image = keys
    key, value = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=2), (key, value))
    key_pos, key_image = (jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in (key_pos, key_image))
    return key, value, query_pos, key_pos, query_image, key_image


def used(key_pos: Int[Array, "B S"]) -> Int[Array, "B"]:
    """The number of each row's keys without the empty ones at its end."""
    return jnp.max(jnp.where(key_pos >= 0, jnp.arange(1, key_pos.shape[1] + 1), 0), axis=1)


def look_at_all(
    query: jax.Array,
    key: Numbers,
    value: Numbers,
    query_pos: jax.Array,
    key_pos: jax.Array,
    query_image: jax.Array,
    key_image: jax.Array,
    *,
    window: int | None,
) -> Part:
    """At all keys at once."""
    B, K, *_ = query.shape
    mask = sees(query_pos[:, :, None], key_pos[:, None], query_image[:, :, None], key_image[:, None], window)
    (key, key_scale), (value, value_scale) = (split(x, query.dtype) for x in (key, value))
    found = einsum("bkqh,bksh->bkqs", query, key, dtype=jnp.float32)
    if key_scale is not None:
        found *= key_scale[:, :, None]
    scores = jnp.where(mask[:, None, None], found.reshape(B, K, -1, *mask.shape[1:]), MASKED).reshape(found.shape)
    peak = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - peak[..., None])
    scaled = weights if value_scale is None else weights * value_scale[:, :, None]
    weighted = einsum("bkqs,bksh->bkqh", scaled.astype(value.dtype), value, dtype=jnp.float32)
    return Part(weighted, jnp.sum(weights, axis=-1), peak)
