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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gemma_tpu.ops.einsum import precision
from gemma_tpu.ops.hopper import runs_triton
from gemma_tpu.ops.int8 import Numbers, dequantized, split
from gemma_tpu.ops.masks import MASKED, sees

BLOCK = 64  # keys that a program looks at in one go
_PROGRAMS = 256  # that are wanted at a time, of _LEAST queries: two for each multiprocessor, which has room for three
_JOINED = 16  # shares of a row that are joined in one go
_LEAST, _MOST = 16, 64  # queries of a program: a GPU multiplies no fewer, and its registers hold no more

Sums = tuple[Float[Array, "B K Q H"], Float[Array, "B K Q"], Float[Array, "B K Q"]]  # weighted values, total, peak
_Running = tuple[jax.Array, jax.Array, jax.Array]  # the same, of a program


class New(NamedTuple):
    """A token of each row that is not among the keys: it is looked at too, and stored in `slot` of `first`, its row of
    a ring or its page (-1: nowhere; None: that of its own number). No query of the call may see what that slot held.

    `numbers`: its key and value, [B, K, H] each. None: they are the last two of the queries at hand.
    """

    numbers: tuple[Numbers, Numbers] | None
    first: Int[Array, "B"] | None
    slot: Int[Array, "B"]


def fits(mesh: Mesh, head_dim: int) -> bool:
    """Whether the devices run these kernels."""
    return runs_triton(mesh) and _LEAST <= head_dim == pl.next_power_of_2(head_dim)


def blocks_of(slots: Any) -> Any:
    """Blocks of arrays of so many slots."""
    return -(-slots // BLOCK)


def look_by_block(
    query: Float[Array, "B K heads H"],
    key: Numbers,
    value: Numbers,
    query_pos: Int[Array, "B T"],
    key_pos: Int[Array, "A S"],
    blocks: Int[Array, "B"],
    place: Int[Array, "B N"] | None = None,
    images: tuple[Int[Array, "B T"], Int[Array, "A S"]] | None = None,
    new: New | None = None,
    *,
    window: int | None,
    dtype: Any = jnp.float32,
    interpret: bool = False,
) -> tuple[Sums, Numbers, Numbers]:
    """The three sums of a `Part`, of keys and values [A, K, S, H], and these: a query that sees no key reads zeros.

    Row b has its keys in `key[place[b, 0]]`, `key[place[b, 1]]`, …, or in `key[b]` alone. It looks at the first
    `blocks[b]` blocks of these, and of them at slots that hold a position. `images` are the ids of queries and keys.
    `dtype`: of the weighted values.
    """
    from jax.experimental.pallas import triton  # takes 0.1 s, which only GPUs need

    B, K, Q, H = query.shape
    Q -= 2 if new and new.numbers is None else 0
    queries = min(max(_LEAST, pl.next_power_of_2(Q)), _MOST)
    most = B * blocks_of(key_pos.shape[1]) * (1 if place is None else place.shape[1])
    wanted = max(1, min(most, _PROGRAMS * _LEAST // (K * pl.cdiv(Q, queries) * queries)))
    shares = _shares(blocks, wanted)
    P = len(shares.row)

    def call(kernel: Callable[..., None], name: str, *outputs: Any, grid: tuple[int, ...], aliases: int = 0) -> Any:
        return pl.pallas_call(
            kernel,
            out_shape=outputs,
            grid=grid,
            input_output_aliases={i: len(outputs) - 1 + i for i in range(aliases)},
            compiler_params=triton.CompilerParams(num_warps=8 if queries == _MOST else 4, num_stages=2),
            interpret=interpret,
            name=name,
        )

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    keys = key, value
    stored = jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), keys) if new else None  # where they lie

    def look(keys: Any, shares: _Shares, *references: Any) -> None:
        """Nothing, for the shares that are not needed: they would take longer to store than the others to look."""
        share, k, nth = (pl.program_id(axis) for axis in range(3))  # outside of the branch, for the interpreter
        needed = share < shares.end[B - 1]
        at = _At(share, k, nth * queries, *(of[share] for of in (shares.row, shares.first, shares.last)))

        @pl.when(needed)
        def _() -> None:
            _look(at, keys, *references, queries=queries, window=window)

    looked = call(
        look,
        "look_by_block",
        *(array(P, K, Q, H), array(P, K, Q), array(P, K, Q), stored),
        grid=(P, K, pl.cdiv(Q, queries)),
        aliases=len(jax.tree.leaves(stored)),
    )
    *sums, stored = looked(keys, shares, query_pos, query, key_pos, place, images, new)
    if wanted > 1:
        outputs = array(B, K, Q, H, dtype=dtype), array(B, K, Q)
        encoded, log_total = call(_join, "join_shares", *outputs, grid=(B, K, Q))(shares.end, *sums)
        sums = encoded, jnp.ones_like(log_total), log_total
    return tuple(sums), *(stored or keys)


class _Shares(NamedTuple):
    """Shares of all rows' blocks, none of more than one row, and those of a row next to each other.

    `row`, `first` and `last`, int32[P]: the row of each, its first block and the one after its last; none for shares
    that are not needed. `end`, int32[B]: the share after each row's last.
    """

    row: Any
    first: Any
    last: Any
    end: Any


def _begin(end: Any, b: jax.Array) -> jax.Array:
    """The first share of row b, in a kernel."""
    return jnp.where(b > 0, end[jnp.maximum(b - 1, 0)], 0)


def _shares(blocks: Int[Array, "B"], wanted: int) -> _Shares:
    """About so many, of about equal size, and at least one for each row; if 1 is wanted, just these."""
    B = len(blocks)
    if wanted == 1:
        return _Shares(jnp.arange(B), jnp.zeros_like(blocks), blocks, jnp.arange(1, B + 1))
    each = jnp.maximum(-(-jnp.sum(blocks) // wanted), 1)
    end = jnp.cumsum(jnp.maximum(-(-blocks // each), 1))
    share = jnp.arange(wanted + B)
    row = jnp.sum(end <= share[:, None], axis=1)
    needed, row = row < B, jnp.minimum(row, B - 1)
    first = (share - jnp.where(row > 0, end[row - 1], 0)) * each
    last = jnp.minimum(first + each, blocks[row])
    return _Shares(row, jnp.where(needed, first, 0), jnp.where(needed, last, 0), end)


class _At(NamedTuple):
    """What a program looks at: a kv head, and blocks of a row from `first` to the one before `last`, for the queries
    from `begin` on.
    """

    share: Any
    k: Any
    begin: Any
    row: Any
    first: Any
    last: Any


def _look(
    at: _At,
    keys: Any,
    query_pos_ref: Any,
    query_ref: Any,
    key_pos_ref: Any,
    place_ref: Any,
    images: Any,
    new: New | None,
    weighted_ref: Any,
    total_ref: Any,
    peak_ref: Any,
    stored: Any,
    *,
    queries: int,
    window: int | None,
) -> None:
    """The references are as of `look_by_block`. A program waits for memory longer than it computes: it asks at once for
    all that it can.
    """
    from jax.experimental.pallas import triton

    share, k, b = at.share, at.k, at.row
    (Q, H), S, T = weighted_ref.shape[2:], keys[0].shape[2], query_pos_ref.shape[1]
    nth = at.begin + jnp.arange(queries)
    rows, real = pl.ds(at.begin, queries), jnp.broadcast_to((nth < Q)[:, None], (queries, H))
    query = triton.load(query_ref.at[b, k, rows], mask=real, other=0)
    query_pos = triton.load(query_pos_ref.at[b, nth % T])[:, None]
    query_image = triton.load(images[0].at[b, nth % T])[:, None] if images else None
    dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32, precision=precision(query))

    def look(i: jax.Array, sums: _Running) -> _Running:
        weighted, total, before = sums
        per_place = blocks_of(S)
        a, begin = (b, i * BLOCK) if place_ref is None else (place_ref[b, i // per_place], i % per_place * BLOCK)
        slots, inside = pl.ds(begin, BLOCK), begin + jnp.arange(BLOCK) < S
        whole = jnp.broadcast_to(inside[:, None], (BLOCK, H))
        key_pos = triton.load(key_pos_ref.at[a, slots], mask=inside, other=-1)
        key_image = triton.load(images[1].at[a, slots], mask=inside, other=0)[None] if images else None

        def load(ref: Any) -> jax.Array:
            return triton.load(ref.at[a, k, slots], mask=whole if ref.ndim == 4 else inside, other=0)

        (key, key_scale), (value, value_scale) = (split(jax.tree.map(load, x), query.dtype) for x in keys)
        # What holds no position may not be finite, and 0 times NaN is NaN.
        value = jnp.where((key_pos >= 0)[:, None], value, 0)
        scores = dot(query, key, (((1,), (1,)), ((), ())))
        if key_scale is not None:
            scores *= key_scale
        mask = sees(query_pos, key_pos[None], query_image, key_image, window)
        scores = jnp.where(mask, scores, MASKED)
        peak = jnp.maximum(before, jnp.max(scores, axis=1))
        weights, shrunk = jnp.where(mask, jnp.exp(scores - peak[:, None]), 0), jnp.exp(before - peak)
        total = total * shrunk + jnp.sum(weights, axis=1)
        if value_scale is not None:
            weights *= jnp.where(key_pos >= 0, value_scale, 0)
        found = dot(weights.astype(query.dtype), value, (((1,), (0,)), ((), ())))
        return weighted * shrunk[:, None] + found, total, peak

    sums = jnp.zeros((queries, H)), jnp.zeros(queries), jnp.full(queries, MASKED)
    one = new and (b if new.first is None else new.first[b], new.slot[b], _own_token(new, query_ref, b, k))
    sums = jax.lax.fori_loop(at.first, at.last, look, sums)
    if one:  # the first share of a row sees it, and stores it
        first, slot, own = one
        opens = at.first == 0
        kept = opens & (first >= 0)

        def store(ref: Any, x: jax.Array) -> None:
            triton.store(ref.at[jnp.where(kept, first, 0), k, slot], x, mask=jnp.broadcast_to(kept, x.shape))

        jax.tree.map(store, stored, own)
        sums = _with_one(sums, query, opens, *map(dequantized, own))
    weighted, total, peak = sums
    triton.store(weighted_ref.at[share, k, rows], weighted, mask=real)
    triton.store(total_ref.at[share, k, rows], _divisor(total), mask=nth < Q)
    triton.store(peak_ref.at[share, k, rows], peak, mask=nth < Q)


def _own_token(new: New, query_ref: Any, b: jax.Array, k: jax.Array) -> tuple[Numbers, Numbers]:
    """The key and value of a row's new token, in a kernel."""
    if new.numbers is not None:
        return jax.tree.map(lambda ref: ref[b, k], new.numbers)
    last = query_ref.shape[2] - 1
    return query_ref[b, k, last - 1], query_ref[b, k, last]


def _with_one(sums: _Running, query: jax.Array, counts: jax.Array, key: jax.Array, value: jax.Array) -> _Running:
    """With the key and value of one token, if it counts."""
    weighted, total, before = sums
    score = jnp.where(counts, jnp.sum(query.astype(jnp.float32) * key, axis=1), MASKED)
    peak = jnp.maximum(before, score)
    weight, shrunk = jnp.where(counts, jnp.exp(score - peak), 0), jnp.exp(before - peak)
    return weighted * shrunk[:, None] + weight[:, None] * value, total * shrunk + weight, peak


def _join(end_ref: Any, weighted_ref: Any, total_ref: Any, peak_ref: Any, encoded_ref: Any, log_total_ref: Any) -> None:
    """The shares of a row as one, for one query: what it reads, and the logarithm of its total of weights."""
    b, k, q = (pl.program_id(axis) for axis in range(3))
    begin, end = _begin(end_ref, b), end_ref[b]

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
    total = _divisor(total)
    encoded_ref[b, k, q] = (weighted / total).astype(encoded_ref.dtype)
    log_total_ref[b, k, q] = peak + jnp.log(total)


def _divisor(total: jax.Array) -> jax.Array:
    """1 for 0, with which a part that has seen nothing reads zeros; joined with one that has, it counts nothing."""
    return jnp.where(total == 0, 1, total)
