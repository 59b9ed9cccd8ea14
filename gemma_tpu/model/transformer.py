"""The Gemma 3 decoder, without a cache: the caller gives it the attention. Letters: see gemma_tpu.config."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gemma_tpu.config import GemmaConfig
from gemma_tpu.model.attention import Attention
from gemma_tpu.model.layers import MLP, Embedder, RMSNorm, Rope, rope_angles
from gemma_tpu.ops.masks import KeyValues, Queries
from gemma_tpu.ops.norms import add_and_norm
from gemma_tpu.sharding import constrain

# (layer, queries, keys and values of the given tokens) → attended values.
AttendLayer = Callable[[int, Queries, KeyValues, KeyValues], Queries]
Capture = Callable[[str, jax.Array], None]


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
        normed: Float[Array, "B T D"],
        next_norm: RMSNorm,
        rope: Rope,
        attend: Callable[[Queries, KeyValues, KeyValues], Queries],
        mesh: Mesh | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        """The residual stream after this block, and its `next_norm`; `normed` is its `pre_attention_norm`."""
        parts = nnx.split(self)
        encoded = self.attention.output(attend(*_project(*parts, normed, rope, mesh)), mesh)
        return _feed_forward(*parts, next_norm.scale[...], x, encoded, mesh)


# JAX traces and lowers each of these once for all layers of a program. The attention's output is in none: with it, a
# step of 1B for one row takes XLA's program for TPUs 1.5% more cycles.


@functools.partial(jax.jit, static_argnames=("definition", "mesh"))
def _project(
    definition: nnx.GraphDef, weights: nnx.State, normed: Float[Array, "B T D"], rope: Rope, mesh: Mesh | None
) -> tuple[Queries, KeyValues, KeyValues]:
    """Queries, keys and values of a block for its normed input."""
    # Where the attention's weights are split over D, XLA would split the residual stream as well.
    return nnx.merge(definition, weights).attention.project(constrain(normed, "BT.", mesh), rope, mesh)


@functools.partial(jax.jit, static_argnames=("definition", "mesh"))
def _feed_forward(
    definition: nnx.GraphDef,
    weights: nnx.State,
    next_scale: Float[Array, "D"],
    x: Float[Array, "B T D"],
    encoded: Float[Array, "B T D"],
    mesh: Mesh | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """What a block gives, from the residual stream before it and what its attention adds."""
    block = nnx.merge(definition, weights)
    x, normed = add_and_norm(x, encoded, block.post_attention_norm.scale[...], block.pre_ffw_norm.scale[...], mesh)
    return add_and_norm(x, block.mlp(normed, mesh), block.post_ffw_norm.scale[...], next_scale, mesh)


class Transformer(nnx.Module):
    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedder = Embedder(config.vocab_size, config.embed_dim, tied_head=config.tied_head, rngs=rngs)
        self.layers = nnx.List([Block(config, rngs=rngs) for _ in config.layers])
        self.final_norm = RMSNorm(config.embed_dim)

    def embed(
        self,
        tokens: Int[Array, "B T"],
        soft_tokens: Float[Array, "I soft D"] | None = None,
        soft_index: Int[Array, "B T"] | None = None,
        *,
        mesh: Mesh | None = None,
    ) -> Float[Array, "B T D"]:
        """Embeddings of tokens; where `soft_index` ≥ 0, that soft token (counted over all images) takes its place."""
        x = self.embedder.encode(tokens, mesh)
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
        mesh: Mesh | None = None,
        capture: Capture | None = None,
    ) -> Float[Array, "B T D"]:
        """Embeddings → final hidden states. `capture(name, value)` is called with the output of every layer.

        `mesh`: where the parameters are split over devices, so that activations can be split to suit.
        """
        kinds = [(layer.rope_base, layer.rope_scale) for layer in self.config.layers]
        ropes = {kind: rope_angles(positions, self.config.head_dim, *kind) for kind in dict.fromkeys(kinds)}
        if capture:
            capture("embed", x)
        norms = [*(layer.pre_attention_norm for layer in self.layers), self.final_norm]
        normed = norms[0](x)
        for i, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{i}"):
                x, normed = layer(x, normed, norms[i + 1], ropes[kinds[i]], functools.partial(attend, i), mesh)
            if capture:
                capture(f"layers.{i}", x)
        if capture:
            capture("final_norm", normed)
        return normed
