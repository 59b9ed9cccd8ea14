"""Attention in parts that are joined afterwards, so that no matrix of all queries × all keys is ever made.

A part holds what softmax needs of the keys it has seen: their weighted values, the sum of their weights, and the
largest score, against which the weights are taken (online softmax: Milakov and Gimelshein, arXiv 1805.02867; in
attention: FlashAttention, arXiv 2205.14135). Letters: see gemma_tpu.config; Q: the G × T queries of a kv head.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from gemma_tpu.model.attention import MASKED, Queries, attention_mask, scores
from gemma_tpu.sharding import partition

BLOCK = 1024  # keys looked at in one go


class Part(NamedTuple):
    """Attention to some of the keys. `peak` is their largest score; `weighted` and `total` are relative to it."""

    weighted: Float[Array, "B K Q H"]
    total: Float[Array, "B K Q"]
    peak: Float[Array, "B K Q"]


def attend_part(
    query: Queries, key: Float[Array, "B K S H"], value: Float[Array, "B K S H"], mask: Bool[Array, "B T S"]
) -> Part:
    """A query with an empty mask counts nothing once its part is joined with one where it sees a key."""
    all_scores = scores(query, key, mask)
    peak = jnp.max(all_scores, axis=-1)
    weights = jnp.exp(all_scores - peak[..., None])
    weighted = jnp.einsum("bkqs,bksh->bkqh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return Part(weighted, jnp.sum(weights, axis=-1), peak)


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


def attend_cache(
    query: Queries,
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    query_pos: Int[Array, "B T"],
    key_pos: Int[Array, "B S"],
    *,
    window: int | None,
    mesh: Mesh,
) -> Part:
    """Attention of text and image tokens to what came before them; `key_pos` is -1 where a slot is empty.

    Each device looks at its own heads and slots; what the slots' devices found is then joined.
    """
    if mesh.size == 1:
        return _attend_blocks(query, key, value, query_pos, key_pos, window=window)
    specs = {dims: partition(dims, x.shape, mesh).spec for dims, x in (("BKSH", key), ("BS", key_pos))}
    split = "slots" in specs["BS"]
    queries, positions = (partition(dims, x.shape, mesh).spec for dims, x in (("BTKGH", query), ("BT", query_pos)))

    def local(query: jax.Array, *keys: jax.Array) -> Part:
        part = _attend_blocks(query, *keys, window=window)
        if not split:
            return part
        peak = jax.lax.pmax(part.peak, "slots")
        scale = jnp.exp(part.peak - peak)
        weighted, total = jax.lax.psum((part.weighted * scale[..., None], part.total * scale), "slots")
        return Part(weighted, total, peak)

    B, K = key.shape[:2]
    result = partition("BK", (B, K), mesh).spec
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(queries, specs["BKSH"], specs["BKSH"], positions, specs["BS"]),
        out_specs=Part(result, result, result),
        check_vma=False,
    )(query, key, value, query_pos, key_pos)


def _attend_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_pos: jax.Array,
    key_pos: jax.Array,
    *,
    window: int | None,
) -> Part:
    B, T, K, G, H = query.shape
    S, block = key.shape[2], BLOCK
    if block >= S:
        return attend_part(query, key, value, attention_mask(query_pos, key_pos, window=window))

    def look(i: jax.Array, part: Part) -> Part:
        start = jnp.minimum(i * block, S - block)  # the last block may reach back into the one before it
        keys, values = (jax.lax.dynamic_slice_in_dim(x, start, block, axis=2) for x in (key, value))
        positions = jax.lax.dynamic_slice_in_dim(key_pos, start, block, axis=1)
        mask = attention_mask(query_pos, positions, window=window) & (start + jnp.arange(block) >= i * block)
        return join(part, attend_part(query, keys, values, mask))

    used = jnp.max(jnp.where(key_pos >= 0, jnp.arange(S) + 1, 0))  # what lies behind is empty in every row
    nothing = Part(jnp.zeros((B, K, G * T, H)), jnp.zeros((B, K, G * T)), jnp.full((B, K, G * T), MASKED))
    return jax.lax.fori_loop(0, (used + block - 1) // block, look, nothing)
