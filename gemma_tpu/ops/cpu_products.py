"""Products of activations and weights of 8 or 16 bits, in the forms that XLA for CPUs has a kernel for.

In most forms it first writes weights out as float32, those of all layers at once and at every call: four times the
memory, and up to thirty times the time. What has a kernel (jax 0.10): two rows or more, both factors of one type, and a
result in float32 or int32. It is fastest with the last dimension of the weight summed over, and for a few rows with the
weight as the left factor.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from gemma_tpu.ops.einsum import letters
from gemma_tpu.ops.int8 import FINER, LEVELS

_BLOCK = 256  # rows of a weight that are converted at a time: they stay in the processor's cache
_FEW = 32  # rows of activations; for more, splitting them takes longer than converting the weight


def cpu_product(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """The einsum `spec` in float32, of two bfloat16 arrays, or of floats and an int8 weight.

    A few rows that meet int8 are split into sums of int8 numbers, two for bfloat16 and three for float32, which is as
    exact as these types are beside the largest number of a row. A row with a number that is not finite gives NaN.
    """
    if weight.dtype != jnp.int8:
        return _dot(spec, x, weight)
    given, dims, _ = letters(spec)
    rows = math.prod(size for letter, size in zip(given, x.shape, strict=True) if letter not in dims)
    return _split_product(spec, x, weight) if rows <= _FEW else _product_in_blocks(spec, x, weight)


def _dot(spec: str, x: jax.Array, weight: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    given, dims, out = letters(spec)
    sizes = dict(zip(given + dims, x.shape + weight.shape, strict=True))
    inner, last = math.prod(sizes[letter] for letter in given if letter in dims), dims[-1] not in out
    rows, few = x.size // inner, last and x.size <= 3 * _FEW * inner
    if dims[0] == "c" and "c" in out and not few:
        # No mesh splits c. One dimension made of it and another that a mesh splits would have all of the weight sent.
        one = f"{given},{dims[1:]}->{out.replace('c', '')}"
        return jnp.stack([_dot(one, x, part, dtype) for part in weight], out.index("c"))
    x = jnp.pad(x.reshape(rows, inner), ((0, int(rows == 1)), (0, 0)))
    product = functools.partial(jax.lax.dot_general, preferred_element_type=dtype)
    if few:
        weight = weight.reshape(*(sizes[letter] for letter in dims if letter in out), inner)
        found, order = product(weight, x, (((weight.ndim - 1,), (1,)), ((), ())))[..., :rows], dims + given
    else:  # of matrices: a weight of more dimensions would be transposed first
        weight = weight.reshape((-1, inner) if last else (inner, -1))
        found, order = product(x, weight, (((1,), (int(last),)), ((), ())))[:rows], given + dims
    order = [letter for letter in order if letter in out]
    return found.reshape([sizes[letter] for letter in order]).transpose([order.index(letter) for letter in out])


def _split_product(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    given, dims, out = letters(spec)
    summed = tuple(axis for axis, letter in enumerate(given) if letter in dims)
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), summed, keepdims=True) / LEVELS, jnp.finfo(jnp.float32).tiny)
    scale = jnp.where(jnp.isfinite(wide).all(summed, keepdims=True), scale, jnp.nan)  # a maximum may leave NaN out
    rest, parts = wide / scale, []
    for _ in range(2 if x.dtype == jnp.bfloat16 else 3):
        parts.append(jnp.round(rest))
        rest = (rest - parts[-1]) * FINER
    products = _dot(f"Z{given},{dims}->Z{out}", jnp.stack(parts).astype(jnp.int8), weight, jnp.int32)
    total = sum(product / FINER**place for place, product in enumerate(products.astype(jnp.float32)))
    return total * jnp.expand_dims(
        scale.squeeze(summed), [place for place, letter in enumerate(out) if letter not in given]
    )


def _product_in_blocks(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Converts and multiplies a block of the weight at a time."""
    given, dims, out = letters(spec)
    axis = max(range(len(dims) - 1), key=lambda axis: weight.shape[axis])  # rows of the last dimension stay whole
    letter, count = dims[axis], weight.shape[axis] // _BLOCK

    def part(start: jax.Array | int, size: int) -> jax.Array:
        own = jax.lax.dynamic_slice_in_dim(x, start, size, given.index(letter)) if letter in given else x
        return _dot(spec, own, jax.lax.dynamic_slice_in_dim(weight, start, size, axis).astype(x.dtype))

    if not count:
        return part(0, weight.shape[axis])
    starts, rest = _BLOCK * jnp.arange(count), weight.shape[axis] - _BLOCK * count
    last = part(_BLOCK * count, rest) if rest else None
    if letter not in out:
        zeros = jnp.zeros([x.shape[given.index(one)] if one in given else weight.shape[dims.index(one)] for one in out])
        total = jax.lax.scan(lambda total, start: (total + part(start, _BLOCK), None), zeros, starts)[0]
        return total if last is None else total + last
    place = out.index(letter)
    blocks = jnp.moveaxis(jax.lax.map(lambda start: part(start, _BLOCK), starts), 0, place)
    found = blocks.reshape(*blocks.shape[:place], -1, *blocks.shape[place + 2 :])
    return found if last is None else jnp.concatenate([found, last], place)
