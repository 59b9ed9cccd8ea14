"""Grouped-query attention: projections, the masks of Gemma 3, and softmax attention. Letters: see gemma_tpu.config."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from gemma_tpu.config import GemmaConfig
from gemma_tpu.model.layers import RMSNorm, Rope, apply_rope
from gemma_tpu.model.linear import as_matrix, contract
from gemma_tpu.ops.product import product
from gemma_tpu.sharding import constrain

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a row with nothing to attend to must not become NaN

Queries = Float[Array, "B T K G H"]
KeyValues = Float[Array, "B T K H"]


class Attention(nnx.Module):
    """The projections of a layer. q, k and v are one product: kv head k holds its G query heads, its key, its value."""

    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs) -> None:
        K, G, H, D = config.num_kv_heads, config.group_size, config.head_dim, config.embed_dim
        init = nnx.initializers.normal(D**-0.5)
        self.qkv = nnx.Param(init(rngs.params(), (K, G + 2, H, D)))
        self.out = nnx.Param(nnx.initializers.normal((K * G * H) ** -0.5)(rngs.params(), (K, G, H, D)))
        self.query_norm = RMSNorm(H)
        self.key_norm = RMSNorm(H)
        self.query_scale = config.query_scale

    def project(self, x: Float[Array, "B T D"], rope: Rope) -> tuple[Queries, KeyValues, KeyValues]:
        """Queries (normed, rotated, scaled), keys (normed, rotated) and values."""
        flat = contract("btd,od->bto", x, as_matrix(self.qkv.get_value()))
        qkv = flat.reshape(*x.shape[:2], *self.qkv.shape[:-1])
        query = apply_rope(self.query_norm(qkv[:, :, :, :-2]), rope) * self.query_scale
        key = apply_rope(self.key_norm(qkv[:, :, :, -2]), rope)
        return query.astype(x.dtype), key.astype(x.dtype), qkv[:, :, :, -1]

    def output(self, encoded: Queries, mesh: Mesh | None) -> Float[Array, "B T D"]:
        flat = encoded.reshape(*encoded.shape[:2], -1)
        out = contract("bto,od->btd", flat, as_matrix(self.out.get_value()))
        # D is split as the weight's is, or XLA may send each device the whole weight.
        return constrain(out, "BTD", mesh, summed=("KGH", self.out.shape[:-1]))


def attend(
    query: Queries,
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
) -> Queries:
    """Softmax attention; scores and softmax in float32. A query whose mask is empty gets the mean of all values."""
    B, T, K, G, H = query.shape
    scores = product("bkqh,bksh->bkqs", by_head(query), key, dtype=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores.reshape(B, K, G, T, -1), MASKED).reshape(scores.shape)
    probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    encoded = product("bkqs,bksh->bkqh", probs, value)
    return jnp.moveaxis(encoded.reshape(B, K, G, T, H), 3, 1)


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
