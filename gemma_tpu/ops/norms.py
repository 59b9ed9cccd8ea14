"""RMS norms, by themselves and as a residual stream meets them.

Between two products of the decoder lie two norms: of what a branch gives, before it joins the stream, and of the stream
for the next branch. XLA for GPUs makes each of them a kernel, which takes longer to start than to run; here the two are
one. Letters: see gemma_tpu.config.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import Mesh
from jaxtyping import Array, Float

from gemma_tpu.ops.hopper import runs_triton
from gemma_tpu.sharding import constrain

NORM_EPS = 1e-6
Stream = Float[Array, "B T D"]


def rms_norm(x: Float[Array, "*batch dim"], scale: Float[Array, "*some dim"]) -> Float[Array, "*batch dim"]:
    """x / rms(x) * (1 + scale) over the last axis, in float32 (gemma: gm/nn/_layers.py).

    Scales may differ along the last few axes.
    """
    x32 = x.astype(jnp.float32)
    return _scaled(x32, jnp.mean(jnp.square(x32), axis=-1, keepdims=True), scale).astype(x.dtype)


def _scaled(x: jax.Array, mean_square: jax.Array, scale: jax.Array) -> jax.Array:
    normed = x * jax.lax.rsqrt(mean_square + NORM_EPS)
    # Not (1 + scale), which XLA for TPUs would add in a kernel of its own.
    return normed + normed * scale.astype(jnp.float32)


def add_and_norm(
    x: Stream, branch: Stream, post: Float[Array, "D"], pre: Float[Array, "D"], mesh: Mesh | None
) -> tuple[Stream, Stream]:
    """The stream with `rms_norm(branch, post)` added, and the `rms_norm` of that with `pre`."""
    if mesh is not None and mesh.size == 1 and runs_triton(mesh):
        return _in_kernel(x, branch, post, pre)
    x = constrain(x + rms_norm(constrain(branch, "BT.", mesh), post), "BT.", mesh)
    return x, rms_norm(x, pre)


def _in_kernel(
    x: Stream, branch: Stream, post: Float[Array, "D"], pre: Float[Array, "D"], *, interpret: bool = False
) -> tuple[Stream, Stream]:
    from jax.experimental.pallas import triton  # takes 0.1 s, which only GPUs need

    B, T, D = x.shape
    width = pl.next_power_of_2(D)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(
        functools.partial(_kernel, width=width),
        out_shape=(like, like),
        grid=(B, T),
        compiler_params=triton.CompilerParams(num_warps=max(1, min(8, width // 256)), num_stages=1),
        interpret=interpret,
        name="add_and_norm",
    )(x, branch, post, pre)


def _kernel(
    x_ref: Any, branch_ref: Any, post_ref: Any, pre_ref: Any, sum_ref: Any, normed_ref: Any, *, width: int
) -> None:
    """Of one token."""
    from jax.experimental.pallas import triton

    D, token = post_ref.shape[0], (pl.program_id(0), pl.program_id(1))
    nth = jnp.arange(width)
    inside = nth < D
    load = functools.partial(triton.load, mask=inside, other=0)
    # All at first, so that none of them waits for what is computed.
    x, branch, post, pre = (
        load(ref.at[*at, nth]) for ref, at in ((x_ref, token), (branch_ref, token), (post_ref, ()), (pre_ref, ()))
    )

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        return _scaled(x32, jnp.sum(x32 * x32) / D, scale).astype(x.dtype)

    x += norm(branch, post)
    triton.store(sum_ref.at[*token, nth], x, mask=inside)
    triton.store(normed_ref.at[*token, nth], norm(x, pre), mask=inside)
