"""The projections of grouped-query attention. Letters: see gemma_tpu.config."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gemma_tpu.config import GemmaConfig
from gemma_tpu.model.layers import RMSNorm, Rope, apply_rope
from gemma_tpu.model.placement import Placement
from gemma_tpu.ops.masks import KeyValues, Queries


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
        # One contracted dimension and one output dimension: given more, XLA may reorder a weight to suit an activation.
        weight = self.qkv[...]
        flat = jnp.einsum("btd,od->bto", x, weight.reshape(-1, weight.shape[-1]))
        qkv = flat.reshape(*x.shape[:2], *weight.shape[:-1])
        query = apply_rope(self.query_norm(qkv[:, :, :, :-2]), rope) * self.query_scale
        key = apply_rope(self.key_norm(qkv[:, :, :, -2]), rope)
        return query.astype(x.dtype), key.astype(x.dtype), qkv[:, :, :, -1]

    def output(self, encoded: Queries, placement: Placement) -> Float[Array, "B T D"]:
        weight = self.out[...]
        flat, rows = encoded.reshape(*encoded.shape[:2], -1), weight.reshape(-1, weight.shape[-1])
        # D lies as the weight's does, or XLA may send each device the whole weight.
        return placement.place(jnp.einsum("bto,od->btd", flat, rows), "BTD", ("KGH", weight.shape[:-1]))
