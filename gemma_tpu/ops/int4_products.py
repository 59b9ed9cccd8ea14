"""Products of a few rows of activations and a weight of int4, on NVIDIA's Hopper.

XLA for GPUs makes bfloat16 of such a weight on its way to the matrix unit, and takes longer for that than for reading
it. The matrix unit also multiplies int8: here both halves of four bytes become int8 in three instructions, and
activations are sums of int8 numbers, as they are on CPUs. Letters: R rows, N outputs, K what is summed over.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gemma_tpu.ops.einsum import letters
from gemma_tpu.ops.hopper import runs_triton
from gemma_tpu.ops.int8 import FINER, LEVELS

_ROWS = 8  # XLA is as fast with more
_PROGRAMS = 640  # that keep the memory of an H200 busy
_TIMES = 16  # what a half of a byte, as int8, is of its int4


class _Block(NamedTuple):
    """What a program does at a time."""

    outputs: int
    bytes: int  # of each output's row of the weight
    shares: int  # that K is split into, each with programs of its own


def _block(N: int, K: int) -> _Block | None:
    """None where a weight [N, K] is not taken apart evenly."""
    outputs, size = math.gcd(N, 32), math.gcd(K // 2, 128)
    if outputs < 16 or size < 32:
        return None
    steps = K // 2 // size
    shares = [n for n in range(1, steps // 4 + 1) if steps % n == 0] or [1]
    enough = [n for n in shares if n * N >= _PROGRAMS * outputs]
    return _Block(outputs, size, enough[0] if enough else shares[-1])


def takes(spec: str, x: jax.Array, values: jax.Array, mesh: Mesh | None) -> bool:
    """Whether `int4_product` is for these: few rows of bfloat16, one device with the kernel, K last in the weight."""
    if (x.dtype, values.dtype) != (jnp.bfloat16, jnp.int4) or mesh is None or mesh.size > 1 or not runs_triton(mesh):
        return False
    _, dims, out = letters(spec)
    K, last = values.shape[-1], dims[-1] not in out and all(letter in out for letter in dims[:-1])
    return last and x.size <= _ROWS * K and _block(values.size // K, K) is not None


def int4_product(spec: str, x: jax.Array, values: jax.Array) -> jax.Array:
    """The einsum `spec` in float32, exact to 2e-5 of the largest of 256 numbers that follow each other in a row.

    A row with a number that is not finite gives NaN.
    """
    given, dims, out = letters(spec)
    rows = jnp.moveaxis(x, given.index(dims[-1]), -1)
    found = _product(rows.reshape(-1, rows.shape[-1]), values.reshape(-1, values.shape[-1]))
    found = found.reshape(*rows.shape[:-1], *values.shape[:-1])
    has = given.replace(dims[-1], "") + dims[:-1]
    return found.transpose([has.index(letter) for letter in out])


def _product(x: Float[Array, "R K"], values: Int[Array, "N K"], *, interpret: bool = False) -> Float[Array, "R N"]:
    from jax.experimental.pallas import triton  # takes 0.1 s, which only GPUs need

    (R, K), N = x.shape, values.shape[0]
    block = _block(N, K)
    assert block is not None
    blocks = K // 2 // block.bytes
    call = functools.partial(pl.pallas_call, interpret=interpret)
    parts = call(
        functools.partial(_split_block, size=block.bytes),
        out_shape=(
            jax.ShapeDtypeStruct((2, 2 * R, K // 2), jnp.int8),
            jax.ShapeDtypeStruct((blocks, R), jnp.float32),
        ),
        grid=(blocks, R),
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        name="split_rows",
    )(x)
    packed = jax.lax.bitcast_convert_type(values.reshape(N, K // 2, 2), jnp.int8)  # no copy: two to a byte already
    shares = call(
        functools.partial(_multiply, block=block, halves=_plain_halves if interpret else _halves),
        out_shape=jax.ShapeDtypeStruct((block.shares, R, N), jnp.float32),
        grid=(N // block.outputs, block.shares),
        compiler_params=triton.CompilerParams(num_warps=block.outputs // 16, num_stages=4),
        name="int4_product",
    )(*parts, packed)
    return shares.sum(axis=0)


def _split_block(x_ref: Any, parts_ref: Any, scale_ref: Any, *, size: int) -> None:
    """A block of a row as scale × (high + low / FINER); the numbers that meet each half of a byte by themselves."""
    from jax.experimental.pallas import triton

    block, row = pl.program_id(0), pl.program_id(1)
    nth = block * size + jnp.arange(size)
    even, odd = (triton.load(x_ref.at[row, 2 * nth + half]).astype(jnp.float32) for half in range(2))
    sizes = jnp.maximum(jnp.abs(even), jnp.abs(odd))
    finite = (jnp.abs(even) < jnp.inf) & (jnp.abs(odd) < jnp.inf)
    largest = jnp.max(jnp.where(finite, sizes, jnp.inf))  # a maximum may leave NaN out
    largest = jnp.maximum(largest, LEVELS * jnp.finfo(jnp.float32).tiny)
    triton.store(scale_ref.at[block, row], jnp.where(largest < jnp.inf, largest / LEVELS, jnp.nan))
    for half, x in enumerate((even, odd)):
        x *= LEVELS / largest
        high = jnp.floor(x + 0.5)
        low = jnp.floor((x - high) * FINER + 0.5)
        for part, numbers in enumerate((high, low)):
            triton.store(parts_ref.at[half, 2 * row + part, nth], numbers.astype(jnp.int8))


def _multiply(parts_ref: Any, scale_ref: Any, packed_ref: Any, out_ref: Any, *, block: _Block, halves: Any) -> None:
    """Of `block.outputs` rows of the weight with a share of K."""
    from jax.experimental.pallas import triton

    _, held, width = parts_ref.shape  # two columns for each row of activations
    columns = max(8, pl.next_power_of_2(held))
    share, steps = pl.program_id(1), width // block.bytes // block.shares
    n = pl.program_id(0) * block.outputs + jnp.arange(block.outputs)
    column, nth = jnp.arange(columns), jnp.arange(block.bytes)
    inside = jnp.broadcast_to((column < held)[None, :], (block.bytes, columns))

    def step(i: jax.Array, total: jax.Array) -> jax.Array:
        at = share * steps + i
        k = at * block.bytes + nth
        packed = triton.load(packed_ref.at[n[:, None], k[None, :]])
        found = jnp.zeros((block.outputs, columns), jnp.int32)
        for half, numbers in enumerate(halves(packed)):
            parts = triton.load(parts_ref.at[half, column[None, :], k[:, None]], mask=inside, other=0)
            found += jax.lax.dot(numbers, parts, preferred_element_type=jnp.int32)
        scale = triton.load(scale_ref.at[at, column // 2], mask=column < held, other=0)
        return total + found.astype(jnp.float32) * scale[None, :]

    total = jax.lax.fori_loop(0, steps, step, jnp.zeros((block.outputs, columns), jnp.float32))
    total *= jnp.where(column % 2 == 0, 1 / _TIMES, 1 / _TIMES / FINER).astype(jnp.float32)[None, :]
    found = jnp.sum(total.reshape(block.outputs, columns // 2, 2), axis=2)
    row = jnp.arange(columns // 2)
    inside = jnp.broadcast_to((row < held // 2)[None, :], found.shape)
    triton.store(out_ref.at[share, row[None, :], n[:, None]], found, mask=inside)


def _plain_halves(packed: Int[Array, "N bytes"]) -> tuple[jax.Array, jax.Array]:
    """Both int4 numbers of each byte, `_TIMES` as large; the first has the lower bits."""
    return packed << np.int8(4), packed & np.int8(-16)


def _halves(packed: Int[Array, "N bytes"]) -> tuple[jax.Array, ...]:
    """`_plain_halves`, of four bytes at a time: Triton would do it with each by itself."""
    from jax.experimental.pallas import triton

    of = functools.partial(triton.elementwise_inline_asm, args=[packed], constraints="=r,r", pack=4)
    like = [jax.ShapeDtypeStruct(packed.shape, jnp.int8)]
    lines = "{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0; }", "and.b32 $0, $1, 0xF0F0F0F0;"
    return tuple(of(line, result_shape_dtypes=like)[0] for line in lines)
