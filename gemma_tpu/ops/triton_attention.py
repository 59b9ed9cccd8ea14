"""Attention to each row's own blocks of keys, read where they lie: kernels for GPUs, behind gemma_tpu.ops.attention.

The plain path writes scores to memory between its products, and looks at the slots of rows that rest. Here the blocks
of all rows together are shared out evenly over as many programs as keep a GPU busy, whether they are those of one long
row or of many short ones (flash decoding: Dao et al. 2023; its even shares: Sanovar et al. 2024, arXiv 2405.10480).
What they found is then joined. Letters: see gemma_tpu.config; A: rows of a ring, or pages of a pool; Q: the G × T
queries of a kv head; P: shares.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gemma_tpu.ops.einsum import precision
from gemma_tpu.ops.int8 import Int8, Numbers
from gemma_tpu.ops.masks import MASKED, sees

BLOCK = 64  # keys that a program looks at in one go
_PROGRAMS = 512  # that are wanted at a time, of _LEAST queries: a few for each multiprocessor
_JOINED = 16  # shares of a row that are joined in one go
_LEAST, _MOST = 16, 64  # queries of a program: a GPU multiplies no fewer, and its registers hold no more

Sums = tuple[Float[Array, "B K Q H"], Float[Array, "B K Q"], Float[Array, "B K Q"]]  # weighted values, total, peak
_Running = tuple[jax.Array, jax.Array, jax.Array]  # the same, of a program


def fits(mesh: Mesh, head_dim: int) -> bool:
    """Whether the devices run these kernels: NVIDIA's Hopper, on which they were tried."""
    device = mesh.devices.flat[0]
    hopper = device.platform == "gpu" and str(getattr(device, "compute_capability", "")).startswith("9.")
    return hopper and _LEAST <= head_dim == pl.next_power_of_2(head_dim)


def blocks_of(slots: Any) -> Any:
    """Blocks of arrays of so many slots."""
    return -(-slots // BLOCK)


def look_by_block(
    query: Float[Array, "B K Q H"],
    key: Numbers,
    value: Numbers,
    query_pos: Int[Array, "B T"],
    key_pos: Int[Array, "A S"],
    blocks: Int[Array, "B"],
    place: Int[Array, "B N"] | None = None,
    images: tuple[Int[Array, "B T"], Int[Array, "A S"]] | None = None,
    *,
    window: int | None,
    interpret: bool = False,
) -> Sums:
    """The three sums of a `Part`, of keys and values [A, K, S, H]; a query that sees no key reads zeros.

    Row b has its keys in `key[place[b, 0]]`, `key[place[b, 1]]`, …, or in `key[b]` alone. It looks at the first
    `blocks[b]` blocks of these, and of them at slots that hold a position. `images` are the ids of queries and keys.
    """
    from jax.experimental.pallas import triton  # takes 0.1 s, which only GPUs need

    B, K, Q, H = query.shape
    queries = min(max(_LEAST, pl.next_power_of_2(Q)), _MOST)
    wanted = max(1, _PROGRAMS * _LEAST // (K * pl.cdiv(Q, queries) * queries))
    row, first, last, ends = _shares(blocks, wanted)
    # Optional arrays are lists of one or none.
    keys, values = (list(x) if isinstance(x, Int8) else [x] for x in (key, value))
    optional = keys, values, [] if place is None else [place], list(images or ())

    def call(kernel: Callable[..., None], name: str, sums: tuple[int, ...], grid: tuple[int, ...]) -> Any:
        return pl.pallas_call(
            kernel,
            out_shape=tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*sums, H), sums, sums)),
            grid=grid,
            compiler_params=triton.CompilerParams(num_warps=8 if queries == _MOST else 4, num_stages=2),
            interpret=interpret,
            name=name,
        )

    look = functools.partial(_look, queries=queries, window=window, counts=tuple(map(len, optional)))
    found = call(look, "look_by_block", (len(row), K, Q), (len(row), K, pl.cdiv(Q, queries)))(
        row, first, last, query_pos, query, key_pos, *(x for some in optional for x in some)
    )
    return found if wanted == 1 else call(_join, "join_shares", (B, K, Q), (B, K, Q))(ends, *found)


def _shares(blocks: Int[Array, "B"], wanted: int) -> tuple[jax.Array, ...]:
    """About so many shares of all rows' blocks, of about equal size, none of more than one row. If 1 is wanted, one for
    each row.

    Returns: the row of each, its first block and the one after its last, int32[P] each (none for shares that are not
    needed); and for each row the share after its last, int32[B].
    """
    B = len(blocks)
    if wanted == 1:
        return jnp.arange(B), jnp.zeros_like(blocks), blocks, jnp.arange(1, B + 1)
    each = jnp.maximum(-(-jnp.sum(blocks) // wanted), 1)
    ends = jnp.cumsum(-(-blocks // each))
    share = jnp.arange(wanted + B - 1)
    row = jnp.sum(ends <= share[:, None], axis=1)
    needed, row = row < B, jnp.minimum(row, B - 1)
    first = (share - jnp.where(row > 0, ends[row - 1], 0)) * each
    last = jnp.minimum(first + each, blocks[row])
    return row, jnp.where(needed, first, 0), jnp.where(needed, last, 0), ends


def _look(
    row_ref,
    first_ref,
    last_ref,
    query_pos_ref,
    query_ref,
    key_pos_ref,
    *refs,
    queries: int,
    window: int | None,
    counts: tuple[int, ...],
) -> None:
    """A share of one kv head, for some of its queries. `counts` of optional arrays, see `look_by_block`."""
    from jax.experimental.pallas import triton

    refs = list(refs)
    key_refs, value_refs, place_ref, images = ([refs.pop(0) for _ in range(count)] for count in counts)
    weighted_ref, total_ref, peak_ref = refs
    share, k, begin = pl.program_id(0), pl.program_id(1), pl.program_id(2) * queries
    b, (Q, H), S, T = row_ref[share], query_ref.shape[2:], key_refs[0].shape[2], query_pos_ref.shape[1]
    nth = begin + jnp.arange(queries)
    rows, real = pl.ds(begin, queries), jnp.broadcast_to((nth < Q)[:, None], (queries, H))
    query = triton.load(query_ref.at[b, k, rows], mask=real, other=0)
    query_pos = triton.load(query_pos_ref.at[b, nth % T])[:, None]
    query_image = triton.load(images[0].at[b, nth % T])[:, None] if images else None
    dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32, precision=precision(query))

    def look(i: jax.Array, sums: _Running) -> _Running:
        weighted, total, before = sums
        per_place = blocks_of(S)
        a, begin = (place_ref[0][b, i // per_place], i % per_place * BLOCK) if place_ref else (b, i * BLOCK)
        slots, inside = pl.ds(begin, BLOCK), begin + jnp.arange(BLOCK) < S
        whole = jnp.broadcast_to(inside[:, None], (BLOCK, H))
        key_pos = triton.load(key_pos_ref.at[a, slots], mask=inside, other=-1)
        key_image = triton.load(images[1].at[a, slots], mask=inside, other=0)[None] if images else None
        (key, *key_scale), (value, *value_scale) = (
            [triton.load(x.at[a, k, slots], mask=whole if x.ndim == 4 else inside, other=0) for x in some]
            for some in (key_refs, value_refs)
        )
        # What holds no position may not be finite, and 0 times NaN is NaN.
        value = jnp.where((key_pos >= 0)[:, None], value, 0).astype(query.dtype)
        scores = dot(query, key.astype(query.dtype), (((1,), (1,)), ((), ())))
        if key_scale:
            scores *= key_scale[0]
        mask = sees(query_pos, key_pos[None], query_image, key_image, window)
        scores = jnp.where(mask, scores, MASKED)
        peak = jnp.maximum(before, jnp.max(scores, axis=1))
        weights, shrunk = jnp.where(mask, jnp.exp(scores - peak[:, None]), 0), jnp.exp(before - peak)
        total = total * shrunk + jnp.sum(weights, axis=1)
        if value_scale:
            weights *= jnp.where(key_pos >= 0, value_scale[0], 0)
        found = dot(weights.astype(query.dtype), value, (((1,), (0,)), ((), ())))
        return weighted * shrunk[:, None] + found, total, peak

    nothing = jnp.zeros((queries, H)), jnp.zeros(queries), jnp.full(queries, MASKED)
    weighted, total, peak = jax.lax.fori_loop(first_ref[share], last_ref[share], look, nothing)
    triton.store(weighted_ref.at[share, k, rows], weighted, mask=real)
    triton.store(total_ref.at[share, k, rows], _divisor(total), mask=nth < Q)
    triton.store(peak_ref.at[share, k, rows], peak, mask=nth < Q)


def _join(ends_ref, weighted_ref, total_ref, peak_ref, *outputs) -> None:
    """The shares of a row as one, for one query."""
    b, k, q = (pl.program_id(axis) for axis in range(3))
    end = ends_ref[b]
    begin = jnp.where(b > 0, ends_ref[jnp.maximum(b - 1, 0)], 0)

    def some(i: jax.Array, sums: _Running) -> _Running:
        weighted, total, before = sums
        share = begin + i * _JOINED + jnp.arange(_JOINED)
        own = share < end
        share = jnp.where(own, share, 0)
        peaks = jnp.where(own, peak_ref[share, k, q], MASKED)
        peak = jnp.maximum(before, jnp.max(peaks))
        scale, shrunk = jnp.where(own, jnp.exp(peaks - peak), 0), jnp.exp(before - peak)
        found = jnp.where(own[:, None], weighted_ref[share, k, q], 0)
        weighted = weighted * shrunk + jnp.sum(found * scale[:, None], axis=0)
        return weighted, total * shrunk + jnp.sum(jnp.where(own, total_ref[share, k, q], 0) * scale), peak

    nothing = jnp.zeros(weighted_ref.shape[3]), jnp.float32(0), jnp.float32(MASKED)
    weighted, total, peak = jax.lax.fori_loop(0, pl.cdiv(end - begin, _JOINED), some, nothing)
    for ref, sums in zip(outputs, (weighted, _divisor(total), peak), strict=True):
        ref[b, k, q] = sums


def _divisor(total: jax.Array) -> jax.Array:
    """1 for 0, with which a part that has seen nothing reads zeros; joined with one that has, it counts nothing."""
    return jnp.where(total == 0, 1, total)
