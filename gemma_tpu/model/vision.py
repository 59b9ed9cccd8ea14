"""SigLIP vision tower and the projection to soft tokens. Letters: see gemma_tpu.config."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gemma_tpu.config import VisionConfig
from gemma_tpu.model.layers import RMSNorm
from gemma_tpu.model.linear import as_matrix, contract
from gemma_tpu.ops.norms import NORM_EPS
from gemma_tpu.ops.patch_attention import PatchHeads, full_attention

AttendPatches = Callable[[PatchHeads, PatchHeads, PatchHeads], PatchHeads]


class LayerNorm(nnx.Module):
    """Standard layer normalisation over the last axis, in float32."""

    def __init__(self, dim: int) -> None:
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + NORM_EPS)
        return (normed * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs) -> None:
        E, n, h = config.width, config.num_heads, config.head_dim
        init = nnx.initializers.normal(E**-0.5)
        self.qkv = nnx.Param(init(rngs.params(), (3, n, h, E)))
        self.qkv_bias = nnx.Param(jnp.zeros((3, n, h)))
        self.out = nnx.Param(init(rngs.params(), (n, h, E)))
        self.out_bias = nnx.Param(jnp.zeros(E))

    def __call__(self, x: Float[Array, "I P E"], attend: AttendPatches) -> Float[Array, "I P E"]:
        qkv = contract("ipe,cnhe->cipnh", x, self.qkv.get_value()) + self.qkv_bias[...][:, None, None]
        return contract("ipnh,nhe->ipe", attend(*qkv), self.out.get_value()) + self.out_bias[...]


class VisionMLP(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.lecun_normal()
        self.up = nnx.Param(init(rngs.params(), (config.width, config.mlp_dim)))
        self.up_bias = nnx.Param(jnp.zeros(config.mlp_dim))
        self.down = nnx.Param(init(rngs.params(), (config.mlp_dim, config.width)))
        self.down_bias = nnx.Param(jnp.zeros(config.width))

    def __call__(self, x: Float[Array, "I P E"]) -> Float[Array, "I P E"]:
        hidden = jax.nn.gelu(contract("ipe,em->ipm", x, self.up.get_value()) + self.up_bias[...], approximate=True)
        return contract("ipm,me->ipe", hidden, self.down.get_value()) + self.down_bias[...]


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = LayerNorm(config.width)
        self.attention = VisionAttention(config, rngs=rngs)
        self.mlp_norm = LayerNorm(config.width)
        self.mlp = VisionMLP(config, rngs=rngs)

    def __call__(self, x: Float[Array, "I P E"], attend: AttendPatches) -> Float[Array, "I P E"]:
        return _block(*nnx.split(self), x, attend)


@functools.partial(jax.jit, static_argnames=("definition", "attend"))
def _block(
    definition: nnx.GraphDef, weights: nnx.State, x: Float[Array, "I P E"], attend: AttendPatches
) -> Float[Array, "I P E"]:
    """Traced and lowered once for all blocks, as those of the decoder."""
    block = nnx.merge(definition, weights)
    x = x + block.attention(block.attention_norm(x), attend)
    return x + block.mlp(block.mlp_norm(x))


class PatchEmbedding(nnx.Module):
    """Each p×p patch times one matrix (SigLIP's convolution with stride p)."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs) -> None:
        p = config.patch_size
        self.kernel = nnx.Param(nnx.initializers.normal((3 * p * p) ** -0.5)(rngs.params(), (p, p, 3, config.width)))
        self.bias = nnx.Param(jnp.zeros(config.width))

    def __call__(self, pixels: Float[Array, "I side side 3"]) -> Float[Array, "I P E"]:
        I, p = pixels.shape[0], self.kernel.shape[0]
        grid = pixels.shape[1] // p
        patches = pixels.reshape(I, grid, p, grid, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(I, grid * grid, -1)
        return contract("ipc,ce->ipe", patches, as_matrix(self.kernel.get_value())) + self.bias[...]


class VisionTower(nnx.Module):
    """Pixels → patches → blocks → norm → average pool → RMSNorm → projection: `num_soft_tokens` per image."""

    def __init__(self, config: VisionConfig, embed_dim: int, *, rngs: nnx.Rngs) -> None:
        E = config.width
        self.patch = PatchEmbedding(config, rngs=rngs)
        self.positions = nnx.Param(nnx.initializers.normal(E**-0.5)(rngs.params(), (config.num_patches, E)))
        self.blocks = nnx.List([VisionBlock(config, rngs=rngs) for _ in range(config.depth)])
        self.norm = LayerNorm(E)
        self.soft_token_norm = RMSNorm(E)
        self.projection = nnx.Param(nnx.initializers.normal(E**-0.5)(rngs.params(), (E, embed_dim)))
        self.pooled_grid = math.isqrt(config.num_soft_tokens)

    def __call__(
        self, pixels: Float[Array, "I side side 3"], capture=None, attend: AttendPatches = full_attention
    ) -> Float[Array, "I soft D"]:
        """`pixels` in [-1, 1]. Soft tokens are not multiplied by √D, unlike text embeddings."""
        capture = capture or (lambda name, value: None)
        x = self.patch(pixels.astype(self.projection.dtype)) + self.positions[...]
        capture("vision.patch", x)
        for i, block in enumerate(self.blocks):
            with jax.named_scope(f"vision_block_{i}"):
                x = block(x, attend)
            capture(f"vision.blocks.{i}", x)
        x = self.norm(x)
        capture("vision.norm", x)
        (I, P, E), out = x.shape, self.pooled_grid
        side = math.isqrt(P) // out
        pooled = x.reshape(I, out, side, out, side, E).astype(jnp.float32).mean(axis=(2, 4)).astype(x.dtype)
        normed = self.soft_token_norm(pooled.reshape(I, out * out, E))
        soft = contract("ipe,ed->ipd", normed, self.projection.get_value())
        capture("vision.soft_tokens", soft)
        return soft
