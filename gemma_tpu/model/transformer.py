"""The Gemma 3 decoder. It knows nothing of caches: its caller says how to attend. Letters: see gemma_tpu.config."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gemma_tpu.config import GemmaConfig
from gemma_tpu.model.attention import Attention
from gemma_tpu.model.layers import MLP, Embedder, RMSNorm, Rope, rope_angles
from gemma_tpu.model.placement import Placement
from gemma_tpu.ops.masks import KeyValues, Queries

# (layer, queries, keys, values of the tokens at hand) → what the queries read.
AttendLayer = Callable[[int, Queries, KeyValues, KeyValues], Queries]
Tap = Callable[[str, jax.Array], None]
ANYWHERE = Placement()


class Block(nnx.Module):
    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs) -> None:
        D = config.embed_dim
        self.pre_attention_norm = RMSNorm(D)
        self.attention = Attention(config, rngs=rngs)
        self.post_attention_norm = RMSNorm(D)
        self.pre_ffw_norm = RMSNorm(D)
        self.mlp = MLP(D, config.hidden_dim, rngs=rngs)
        self.post_ffw_norm = RMSNorm(D)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: Rope,
        attend: Callable[[Queries, KeyValues, KeyValues], Queries],
        placement: Placement,
    ) -> Float[Array, "B T D"]:
        def whole(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
            # Where the attention's weights are split over D, XLA would split all that is added to as well.
            return placement.place(x, "BT.")

        encoded = attend(*self.attention.project(whole(self.pre_attention_norm(x)), rope))
        x = whole(x + self.post_attention_norm(whole(self.attention.output(encoded, placement))))
        return whole(x + self.post_ffw_norm(whole(self.mlp(self.pre_ffw_norm(x)))))


class Transformer(nnx.Module):
    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedder = Embedder(config.vocab_size, config.embed_dim, tied_head=config.tied_head, rngs=rngs)
        self.layers = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.embed_dim)

    def embed(
        self,
        tokens: Int[Array, "B T"],
        soft_tokens: Float[Array, "I soft D"] | None = None,
        soft_index: Int[Array, "B T"] | None = None,
        *,
        placement: Placement = ANYWHERE,
    ) -> Float[Array, "B T D"]:
        """Embeddings of tokens; where `soft_index` ≥ 0, that soft token (counted over all images) takes its place."""
        x = self.embedder.encode(tokens, placement)
        if soft_tokens is None or soft_index is None:
            return x
        soft = soft_tokens.reshape(-1, x.shape[-1]).astype(x.dtype)[jnp.maximum(soft_index, 0)]
        return jnp.where(soft_index[..., None] >= 0, soft, x)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        attend: AttendLayer,
        *,
        placement: Placement = ANYWHERE,
        tap: Tap | None = None,
    ) -> Float[Array, "B T D"]:
        """Embeddings → final hidden states. `tap(name, value)` sees the output of every layer."""
        config = self.config
        local_rope = rope_angles(positions, config.head_dim, config.local_rope_base, 1.0)
        global_rope = rope_angles(positions, config.head_dim, config.global_rope_base, config.global_rope_scale)
        if tap:
            tap("embed", x)
        for i, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{i}"):
                rope = global_rope if config.is_global(i) else local_rope
                x = layer(x, rope, functools.partial(attend, i), placement)
            if tap:
                tap(f"layers.{i}", x)
        x = self.final_norm(x)
        if tap:
            tap("final_norm", x)
        return x
