"""The small parts of the decoder: norms, embedding, gated MLP, rotary embedding. Letters: see gemma_tpu.config."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gemma_tpu.model.linear import contract, lookup
from gemma_tpu.ops.norms import rms_norm

_ROPE_BLOCK = 256  # positions are split as block * 256 + offset, so that the tables stay small
_ROPE_BLOCKS = 512  # 512 * 256 = 131,072 positions, the longest context of any Gemma 3


class RMSNorm(nnx.Module):
    """The scale of an `rms_norm`."""

    def __init__(self, dim: int) -> None:
        self.scale = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return rms_norm(x, self.scale[...])


class Embedder(nnx.Module):
    """Token embedding, and the output head that is tied to it or has weights of its own."""

    def __init__(self, vocab_size: int, embed_dim: int, *, tied_head: bool = True, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.normal(embed_dim**-0.5)
        self.table = nnx.Param(init(rngs.params(), (vocab_size, embed_dim)))
        self.head = None if tied_head else nnx.Param(init(rngs.params(), (vocab_size, embed_dim)))

    def encode(self, tokens: Int[Array, "B T"], mesh: Mesh | None) -> Float[Array, "B T D"]:
        """Embeddings times √D. Ids outside the vocabulary (placeholders of soft tokens) give the row of id 0."""
        table = self.table.get_value()
        scale = jnp.sqrt(table.shape[1]).astype(table.dtype)  # rounded to the weights' dtype, as both references do
        return lookup(table, jnp.where(tokens < 0, 0, tokens), mesh) * scale

    def decode(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """float32 logits."""
        head = self.table if self.head is None else self.head
        return contract("btd,vd->btv", x, head.get_value(), dtype=jnp.float32)


class MLP(nnx.Module):
    """(gelu_tanh(x·gate) × (x·up))·down, with gate and up as one product."""

    def __init__(self, embed_dim: int, hidden_dim: int, *, rngs: nnx.Rngs) -> None:
        init = functools.partial(nnx.initializers.lecun_normal, in_axis=-1, out_axis=-2)
        self.gate_up = nnx.Param(init(batch_axis=0)(rngs.params(), (2, hidden_dim, embed_dim)))
        self.down = nnx.Param(init()(rngs.params(), (embed_dim, hidden_dim)))

    def __call__(self, x: Float[Array, "B T D"], mesh: Mesh | None = None) -> Float[Array, "B T D"]:
        # Outputs first, as XLA for GPUs computes the product of a few rows: it would transpose one with scales.
        gate, up = contract("btd,cfd->cfbt", x, self.gate_up.get_value(), mesh)
        hidden = jnp.moveaxis(jax.nn.gelu(gate, approximate=True) * up, 0, -1)
        return contract("btf,df->btd", hidden, self.down.get_value(), mesh)


@functools.lru_cache
def _rope_tables(head_dim: int, base: float, scale: float) -> tuple[np.ndarray, ...]:
    """cos and sin of the angles of whole blocks and of offsets within one, from float64 angles.

    Returns: (cos, sin) of the blocks float32[512, H/2], (cos, sin) of the offsets float32[256, H/2].
    """
    frequency = base ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim) / scale
    blocks = np.arange(_ROPE_BLOCKS)[:, None] * _ROPE_BLOCK * frequency
    offsets = np.arange(_ROPE_BLOCK)[:, None] * frequency
    return tuple(f(angles).astype(np.float32) for angles in (blocks, offsets) for f in (np.cos, np.sin))


MAX_POSITIONS = _ROPE_BLOCK * _ROPE_BLOCKS

Rope = tuple[Float[Array, "B T half"], Float[Array, "B T half"]]


def rope_angles(positions: Int[Array, "B T"], head_dim: int, base: float, scale: float) -> Rope:
    """cos and sin of the rotary angles `positions / scale * base^(-2i/H)`, float32[B, T, H/2] each.

    A float32 angle of 131,071 radians is off by up to 0.004, which moves logits by 0.1. The angle of a position is
    here the sum of two angles whose cosines come from float64 tables, joined by the addition theorem, so the error
    stays near 1e-7 at any position and scores depend on the distance alone. Valid for 0 ≤ position < 131,072.
    """
    block_cos, block_sin, offset_cos, offset_sin = (jnp.asarray(t) for t in _rope_tables(head_dim, base, scale))
    positions = jnp.clip(positions, 0, MAX_POSITIONS - 1)  # padding may carry any position; it is masked elsewhere
    block, offset = positions // _ROPE_BLOCK, positions % _ROPE_BLOCK
    cos_b, sin_b, cos_o, sin_o = block_cos[block], block_sin[block], offset_cos[offset], offset_sin[offset]
    return cos_b * cos_o - sin_b * sin_o, sin_b * cos_o + cos_b * sin_o


def apply_rope(x: Float[Array, "B T *heads H"], rope: Rope) -> Float[Array, "B T *heads H"]:
    """Rotates the two halves of the last axis; computed and returned in float32."""
    heads = range(2, x.ndim - 1)
    cos, sin = (jnp.expand_dims(angle, tuple(heads)) for angle in rope)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
