"""The projections of grouped-query attention. Letters: see gemma_tpu.config."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from gemma_tpu.config import GemmaConfig
from gemma_tpu.model.layers import RMSNorm, Rope, apply_rope
from gemma_tpu.model.linear import as_matrix, contract
from gemma_tpu.ops.attention import FEW
from gemma_tpu.ops.masks import KeyValues, Queries
from gemma_tpu.ops.norms import rms_norm
from gemma_tpu.sharding import constrain


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

    def project(
        self, x: Float[Array, "B T D"], rope: Rope, mesh: Mesh | None = None
    ) -> tuple[Queries, KeyValues, KeyValues]:
        """Queries (normed, rotated, scaled), keys (normed, rotated) and values."""
        flat = contract("btd,od->bto", x, as_matrix(self.qkv.get_value()), mesh)
        qkv = flat.reshape(*x.shape[:2], *self.qkv.shape[:-1])
        G, value = qkv.shape[3] - 2, qkv[:, :, :, -1]
        if x.shape[1] > FEW:
            query = apply_rope(self.query_norm(qkv[:, :, :, :G]), rope) * self.query_scale
            key = apply_rope(self.key_norm(qkv[:, :, :, G]), rope)
            return query.astype(x.dtype), key.astype(x.dtype), value
        # All together, in one kernel. Of a chunk of a prompt, XLA for TPUs would then bring the pages of two layers
        # together at a time.
        head = jnp.arange(G + 2)[:, None]
        scales = jnp.where(head < G, self.query_norm.scale[...], self.key_norm.scale[...])
        normed = apply_rope(rms_norm(qkv, scales), rope) * jnp.where(head < G, self.query_scale, 1.0)
        qkv = jnp.where(head > G, qkv, normed.astype(x.dtype))
        return qkv[:, :, :, :G], qkv[:, :, :, G], qkv[:, :, :, G + 1]

    def output(self, encoded: Queries, mesh: Mesh | None) -> Float[Array, "B T D"]:
        flat = encoded.reshape(*encoded.shape[:2], -1)
        out = contract("bto,od->btd", flat, as_matrix(self.out.get_value()))
        # D is split as the weight's is, or XLA may send each device the whole weight.
        return constrain(out, "BTD", mesh, summed=("KGH", self.out.shape[:-1]))
