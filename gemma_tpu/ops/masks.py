"""The masks of Gemma 3, and softmax attention under a mask: the plain path. Letters: see gemma_tpu.config."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma_tpu.ops.einsum import einsum

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a row with nothing to attend to must not become NaN

Queries = Float[Array, "B T K G H"]
KeyValues = Float[Array, "B T K H"]


def attend(
    query: Queries,
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
) -> Queries:
    """Softmax attention; scores and softmax in float32. A query whose mask is empty gets the mean of all values."""
    B, T, K, G, H = query.shape
    encoded = einsum("bkqs,bksh->bkqh", attention_weights(query, key, mask).astype(value.dtype), value)
    return jnp.moveaxis(encoded.reshape(B, K, G, T, H), 3, 1)


def attention_weights(
    query: Queries, key: Float[Array, "B K S H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B K Q S"]:
    """Of each key for each query, in float32: the softmax of the scores of those that the mask lets through."""
    B, T, K, G, _ = query.shape
    scores = einsum("bkqh,bksh->bkqs", by_head(query), key, dtype=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores.reshape(B, K, G, T, -1), MASKED).reshape(scores.shape)
    return jax.nn.softmax(scores, axis=-1)


def by_head(query: Queries) -> Float[Array, "B K Q H"]:
    """The Q = G × T queries of a kv head as one dimension: with two, XLA lays scores out as is slow to read."""
    B, T, K, G, H = query.shape
    return jnp.moveaxis(query, 1, 3).reshape(B, K, G * T, H)


def attention_mask(
    query_pos: Int[Array, "B T"],
    key_pos: Int[Array, "B S"],
    *,
    query_image: Int[Array, "B T"] | None = None,
    key_image: Int[Array, "B S"] | None = None,
    window: int | None = None,
) -> Bool[Array, "B T S"]:
    """Which keys a query sees, from positions alone; key position -1 marks an empty slot.

    Causal, except that soft tokens of one image (equal id > 0) see each other in both directions. `window` W keeps
    |query_pos - key_pos| < W, on both sides as Google's implementation does (an image block longer than W is cut).

        two text tokens, an image of three, one text token:      with window=2:
            1 0 0 0 0 0                                               1 0 0 0 0 0
            1 1 0 0 0 0                                               1 1 0 0 0 0
            1 1 1 1 1 0                                               0 1 1 1 0 0
            1 1 1 1 1 0                                               0 0 1 1 1 0
            1 1 1 1 1 0                                               0 0 0 1 1 0
            1 1 1 1 1 1                                               0 0 0 0 1 1
    """
    if query_image is None or key_image is None:
        return sees(query_pos[:, :, None], key_pos[:, None], None, None, window)
    return sees(query_pos[:, :, None], key_pos[:, None], query_image[:, :, None], key_image[:, None], window)


def sees(
    query: jax.Array,
    key: jax.Array,
    query_image: jax.Array | None,
    key_image: jax.Array | None,
    window: int | None,
) -> jax.Array:
    """`attention_mask` of positions and image ids in any shapes that broadcast."""
    mask = key <= query
    if query_image is not None and key_image is not None:
        mask |= (query_image == key_image) & (query_image > 0)
    if window is not None:
        mask &= jnp.abs(query - key) < window
    return mask & (key >= 0)
