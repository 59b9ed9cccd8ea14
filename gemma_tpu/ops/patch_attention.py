"""Unmasked attention between the patches of an image: JAX's kernel on TPUs, cuDNN's on GPUs that have it, plain JAX.

Letters: see gemma_tpu.config; n, h: heads and their size in the vision tower.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention
from jax.sharding import Mesh
from jaxtyping import Array, Float

from gemma_tpu.devices import attention_kernel
from gemma_tpu.ops.einsum import einsum, precision
from gemma_tpu.sharding import partition

PatchHeads = Float[Array, "I P n h"]

_QUERY_BLOCK = 1024  # scores of a 4,096-patch image are made 1,024 queries at a time: 256 MB instead of 1 GB
_HEAD_BLOCK = 512  # queries of one head at a time on a CPU
_KERNEL_BLOCK = 512  # queries and keys at a time in the TPU's kernel


def full_attention(query: PatchHeads, key: PatchHeads, value: PatchHeads) -> PatchHeads:
    """Unmasked attention between all patches in plain JAX, softmax in float32."""
    return jax.lax.platform_dependent(query, key, value, cpu=_head_by_head, default=_all_heads)


def _all_heads(query: PatchHeads, key: PatchHeads, value: PatchHeads) -> PatchHeads:
    def block(q: Float[Array, "I T n h"]) -> Float[Array, "I T n h"]:
        scores = einsum("itnh,ipnh->intp", q, key, dtype=jnp.float32)
        probs = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
        return einsum("intp,ipnh->itnh", probs, value)

    I, P, n, h = query.shape
    if P <= _QUERY_BLOCK or P % _QUERY_BLOCK:
        return block(query)
    blocks = jnp.moveaxis(query.reshape(I, P // _QUERY_BLOCK, _QUERY_BLOCK, n, h), 1, 0)
    return jnp.moveaxis(jax.lax.map(block, blocks), 0, 1).reshape(I, P, n, h)


def _head_by_head(query: PatchHeads, key: PatchHeads, value: PatchHeads) -> PatchHeads:
    """A head and a block of its queries at a time: scores stay in a processor's cache, which makes it three times as
    fast, and XLA for CPUs has a kernel for products of two matrices, in bfloat16 too, but not of many at once."""
    I, P, n, h = query.shape
    size = _HEAD_BLOCK if P % _HEAD_BLOCK == 0 else P

    def attend(head: tuple[Float[Array, "P h"], Float[Array, "P h"], Float[Array, "P h"]]) -> Float[Array, "P h"]:
        q, k, v = head

        def block(q: Float[Array, "T h"]) -> Float[Array, "T h"]:
            scores = einsum("th,ph->tp", q, k, dtype=jnp.float32) * h**-0.5
            exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
            total = jnp.sum(exponentials, axis=-1, keepdims=True)
            return (einsum("tp,ph->th", exponentials.astype(v.dtype), v, dtype=jnp.float32) / total).astype(v.dtype)

        return jax.lax.map(block, q.reshape(-1, size, h)).reshape(P, h)

    heads = tuple(jnp.moveaxis(x, 2, 1).reshape(I * n, P, h) for x in (query, key, value))
    return jnp.moveaxis(jax.lax.map(attend, heads).reshape(I, n, P, h), 1, 2)


def patch_attention(query: PatchHeads, key: PatchHeads, value: PatchHeads, *, mesh: Mesh) -> PatchHeads:
    """`full_attention` of each device's own images and heads, in a kernel where the mesh's devices have one."""
    kernel = attention_kernel(mesh, query.dtype, query.shape[-1])
    if kernel == "tpu" and query.shape[1] % _KERNEL_BLOCK:
        kernel = "plain"
    local = {"tpu": _in_tpu_kernel, "cudnn": _in_cudnn, "plain": full_attention}[kernel]
    if mesh.size == 1:
        return local(query, key, value)
    spec = partition("IPnh", query.shape, mesh).spec
    return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(query, key, value)


def _in_tpu_kernel(query: PatchHeads, key: PatchHeads, value: PatchHeads) -> PatchHeads:
    """JAX's Pallas kernel, which keeps the scores on the chip."""
    blocks = BlockSizes(block_q=_KERNEL_BLOCK, block_k_major=_KERNEL_BLOCK, block_k=_KERNEL_BLOCK, block_b=1)
    by_head = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    with jax.default_matmul_precision(precision(query)):
        return jnp.swapaxes(flash_attention(*by_head, sm_scale=query.shape[-1] ** -0.5, block_sizes=blocks), 1, 2)


def _in_cudnn(query: PatchHeads, key: PatchHeads, value: PatchHeads) -> PatchHeads:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
