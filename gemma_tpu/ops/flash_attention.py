"""Attention to a block of keys at a time inside the TPU's own memory: the kernel behind gemma_tpu.ops.attention.

The masks come from positions and image ids, which are data: a ring holds its positions in any order, and a chunk begins
anywhere. (The masks of jax.experimental.pallas's splash attention are fixed when a program is traced, or given as a
whole T × S matrix.) Letters: see gemma_tpu.config; Q: the G × T queries of a kv head, those of one head together.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from gemma_tpu.ops.einsum import precision
from gemma_tpu.ops.int8 import Int8, Numbers
from gemma_tpu.ops.masks import MASKED, sees

QUERY_BLOCK, KEY_BLOCK = 512, 512
_LANES = 128  # a TPU register is 8 × 128; numbers that are one to a query stand in all of a row's lanes

Sums = tuple[Float[Array, "B K Q H"], Float[Array, "B K Q"], Float[Array, "B K Q"]]  # weighted values, total, peak


def fits(queries: int, keys: int) -> bool:
    """Whether the kernel takes so many of them: whole registers."""
    return queries % 8 == 0 and keys % _LANES == 0


def flash(
    query: Float[Array, "B K Q H"],
    key: Numbers,
    value: Numbers,
    query_pos: Int[Array, "B Q"],
    key_pos: Int[Array, "B S"],
    query_image: Int[Array, "B Q"],
    key_image: Int[Array, "B S"],
    *,
    window: int | None,
    interpret: bool = False,
) -> Sums:
    """The three sums of a `Part`. Keys behind the last that is not empty (position -1) are not even read."""
    B, K, Q, H = query.shape
    S = key.shape[2]
    queries, keys = math.gcd(Q, QUERY_BLOCK), math.gcd(S, KEY_BLOCK)
    used = jnp.max(jnp.where(key_pos >= 0, jnp.arange(1, S + 1), 0), axis=1)
    last = jnp.maximum((used - 1) // keys, 0).astype(jnp.int32)  # block of the last key, per row

    # Grid: row, kv head, block of queries, block of keys; where a row's keys end, its last block is not read again.
    per_query = pl.BlockSpec((None, None, queries, H), lambda b, k, i, j, last: (b, k, i, 0))
    per_key = pl.BlockSpec((None, None, keys, H), lambda b, k, i, j, last: (b, k, jnp.minimum(j, last[b]), 0))
    query_ids = pl.BlockSpec((None, queries, 1), lambda b, k, i, j, last: (b, i, 0))
    key_ids = pl.BlockSpec((None, 1, keys), lambda b, k, i, j, last: (b, 0, jnp.minimum(j, last[b])))
    one_each = pl.BlockSpec((None, None, queries, 1), lambda b, k, i, j, last: (b, k, i, 0))

    def keys_and_scales(x: Numbers) -> tuple[list[jax.Array], list[pl.BlockSpec]]:
        """Inputs of the kernel: a scale to each key stands in a row of lanes."""
        if not isinstance(x, Int8):
            return [x], [per_key]
        per_scale = pl.BlockSpec((None, None, 1, keys), lambda b, k, i, j, last: (b, k, 0, jnp.minimum(j, last[b])))
        return [x.values, x.scales[:, :, None]], [per_key, per_scale]

    (key_inputs, key_specs), (value_inputs, value_specs) = keys_and_scales(key), keys_and_scales(value)
    weighted, total, peak = pl.pallas_call(
        functools.partial(_kernel, window=window, key_inputs=len(key_inputs)),
        out_shape=(
            jax.ShapeDtypeStruct((B, K, Q, H), jnp.float32),
            jax.ShapeDtypeStruct((B, K, Q, 1), jnp.float32),
            jax.ShapeDtypeStruct((B, K, Q, 1), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, K, Q // queries, S // keys),
            in_specs=[per_query, *key_specs, *value_specs, query_ids, key_ids, query_ids, key_ids],
            out_specs=(per_query, one_each, one_each),
            scratch_shapes=[
                pltpu.VMEM((queries, H), jnp.float32),
                pltpu.VMEM((queries, _LANES), jnp.float32),
                pltpu.VMEM((queries, _LANES), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(
        last,
        query,
        *key_inputs,
        *value_inputs,
        query_pos[:, :, None],
        key_pos[:, None],
        query_image[:, :, None],
        key_image[:, None],
    )
    return weighted, total[..., 0], peak[..., 0]


def _kernel(
    last_ref,
    query_ref,
    *refs,
    window: int | None,
    key_inputs: int,
) -> None:
    """One block of queries and one of keys; the sums stay in scratch memory over all the blocks of keys.

    `key_inputs`: keys alone, or with their scales behind them; so are the values.
    """
    (key_ref, *key_scale_ref), refs = refs[:key_inputs], refs[key_inputs:]
    (value_ref, *value_scale_ref), refs = refs[:key_inputs], refs[key_inputs:]
    query_pos_ref, key_pos_ref, query_image_ref, key_image_ref, *outputs, weighted, total, peak = refs
    weighted_ref, total_ref, peak_ref = outputs
    j = pl.program_id(3)
    dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32, precision=precision(query_ref))

    @pl.when(j == 0)
    def _begin() -> None:
        weighted[...] = jnp.zeros_like(weighted)
        total[...] = jnp.zeros_like(total)
        peak[...] = jnp.full_like(peak, MASKED)

    @pl.when(j <= last_ref[pl.program_id(0)])
    def _look() -> None:
        scores = dot(query_ref[...], key_ref[...].astype(query_ref.dtype), (((1,), (1,)), ((), ())))
        if key_scale_ref:
            scores *= key_scale_ref[0][...]
        mask = sees(query_pos_ref[...], key_pos_ref[...], query_image_ref[...], key_image_ref[...], window)
        scores = jnp.where(mask, scores, MASKED)
        before = peak[...]
        now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        weights, shrunk = jnp.exp(scores - now[:, :1]), jnp.exp(before - now)
        peak[...] = now
        total[...] = total[...] * shrunk + jnp.sum(weights, axis=1, keepdims=True)
        if value_scale_ref:
            weights *= value_scale_ref[0][...]
        found = dot(weights.astype(query_ref.dtype), value_ref[...].astype(query_ref.dtype), (((1,), (0,)), ((), ())))
        weighted[...] = weighted[...] * shrunk[:, :1] + found

    @pl.when(j == pl.num_programs(3) - 1)
    def _end() -> None:
        weighted_ref[...] = weighted[...]
        total_ref[...] = total[:, :1]
        peak_ref[...] = peak[:, :1]
