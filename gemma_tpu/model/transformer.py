"""The Gemma 3 decoder. It knows nothing of caches: its caller says how to attend. Letters: see gemma_tpu.config."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gemma_tpu.config import GemmaConfig
from gemma_tpu.model.attention import Attention, KeyValues, Queries
from gemma_tpu.model.layers import MLP, Embedder, LookUp, RMSNorm, Rope, look_up, rope_angles

# (layer, queries, keys, values of the tokens at hand) → what the queries read.
AttendLayer = Callable[[int, Queries, KeyValues, KeyValues], Queries]
Tap = Callable[[str, jax.Array], None]
Place = Callable[[jax.Array, str], jax.Array]  # (x, its letters) → x, lying on the mesh as gemma_tpu.sharding says


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
        place: Place,
    ) -> Float[Array, "B T D"]:
        # D stays whole in all that is added to: where the attention's weights are split over it, XLA would split that
        # as well. Their product is split as they are before it is brought together, or XLA would send the weight.
        encoded = attend(*self.attention.project(place(self.pre_attention_norm(x), "BT."), rope))
        output = place(place(self.attention.output(encoded), "BTD"), "BT.")
        x = place(x + self.post_attention_norm(output), "BT.")
        return place(x + self.post_ffw_norm(place(self.mlp(self.pre_ffw_norm(x)), "BT.")), "BT.")


class Transformer(nnx.Module):
    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedder = Embedder(config.vocab_size, config.embed_dim, rngs=rngs)
        self.layers = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.embed_dim)

    def embed(
        self,
        tokens: Int[Array, "B T"],
        soft_tokens: Float[Array, "I soft D"] | None = None,
        soft_index: Int[Array, "B T"] | None = None,
        *,
        look_up: LookUp = look_up,
    ) -> Float[Array, "B T D"]:
        """Embeddings of tokens; where `soft_index` ≥ 0, that soft token (counted over all images) takes its place."""
        x = self.embedder.encode(tokens, look_up)
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
        place: Place = lambda x, _: x,
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
                x = layer(x, global_rope if config.is_global(i) else local_rope, functools.partial(attend, i), place)
            if tap:
                tap(f"layers.{i}", x)
        x = self.final_norm(x)
        if tap:
            tap("final_norm", x)
        return x
