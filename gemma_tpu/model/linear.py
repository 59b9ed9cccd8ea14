"""Weights, and the two things a model does with one: multiply by it and look up its rows.

Only this module knows how a weight is stored. A layer gives an einsum string in the letters of gemma_tpu.config.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Num

from gemma_tpu.ops.cpu_products import cpu_product
from gemma_tpu.ops.einsum import einsum, letters
from gemma_tpu.ops.int4_products import int4_product, takes
from gemma_tpu.sharding import partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """`values × scales`, one scale for each output channel.

    `scales` has the dimensions of `values`, with size 1 for those that a product sums over. `dtype` is that of
    activations looked up in this weight.
    """

    values: Any  # int8[…]; Any, because a transformation of the tree puts shapes or shardings in the place of arrays
    scales: Any  # float32[…]
    dtype: jnp.dtype = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Weight = jax.Array | QuantizedWeight


def elements(weight: Any) -> Any:
    """The array, or what is in its place, that has an element for each of the weight's, without its scales."""
    return weight.values if isinstance(weight, QuantizedWeight) else weight


def dequantized(weight: Weight) -> jax.Array:
    """The numbers that a weight stands for; float32 if it is quantised."""
    if not isinstance(weight, QuantizedWeight):
        return weight
    return weight.values.astype(weight.scales.dtype) * weight.scales  # jax does not promote int4


def as_matrix(weight: Weight) -> Weight:
    """All dimensions but the last as one.

    XLA may reorder a weight at every call to suit an activation, unless one dimension is contracted and one is output.
    """
    return jax.tree.map(lambda part: part.reshape(-1, part.shape[-1]), weight)


def contract(
    spec: str, x: jax.Array, weight: Weight, mesh: Mesh | None = None, *, dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
    """The product `spec` of activations and a weight, in `dtype` (default: that of the activations).

    On a `mesh` that is known, a kernel may do it.
    """
    dtype, on_cpu = dtype or x.dtype, functools.partial(cpu_product, spec)
    if isinstance(weight, QuantizedWeight):
        if takes(spec, x, weight.values, mesh):
            found = int4_product(spec, x, weight.values)
        else:  # on TPUs and GPUs the conversion is part of the product, which reads the integers
            converted = functools.partial(_product, spec)
            found = jax.lax.platform_dependent(x, weight.values, cpu=on_cpu, default=converted)
        return (found * _output_scales(spec, weight.scales)).astype(dtype)
    whole = functools.partial(einsum, spec, dtype=dtype)
    if not x.dtype == weight.dtype == jnp.bfloat16:
        return whole(x, weight)
    return jax.lax.platform_dependent(x, weight, cpu=lambda *xs: on_cpu(*xs).astype(dtype), default=whole)


def _product(spec: str, x: jax.Array, values: jax.Array) -> jax.Array:
    return einsum(spec, x, values.astype(x.dtype), dtype=jnp.float32)


def _output_scales(spec: str, scales: jax.Array) -> jax.Array:
    """Scales with the dimensions of the product's output, of size 1 where it has one that the weight lacks."""
    _, dims, out = letters(spec)
    kept = [dim for dim in out if dim in dims]
    scales = jnp.einsum(f"{dims}->{''.join(kept)}", scales)  # drops the contracted dimensions, whose size is 1
    return jnp.expand_dims(scales, [i for i, dim in enumerate(out) if dim not in kept])


def lookup(weight: Weight, ids: Int[Array, "B T"], mesh: Mesh | None = None) -> Float[Array, "B T D"]:
    """The rows of a [V, D] weight; 0 ≤ ids < V."""
    if not isinstance(weight, QuantizedWeight):
        return _rows(weight, ids, mesh)
    values, scales = (_rows(part, ids, mesh) for part in (weight.values, weight.scales))
    return (values.astype(scales.dtype) * scales).astype(weight.dtype)


def _rows(table: Num[Array, "V D"], ids: Int[Array, "B T"], mesh: Mesh | None) -> Num[Array, "B T D"]:
    """Each device looks up the rows it holds, and one sum joins them.

    XLA may otherwise send the whole table to every device for each token (jax 0.11.2 on GPUs).
    """
    if mesh is None:
        return _gathered(table, ids)
    spec, ids_spec = partition("VD", table.shape, mesh).spec, partition("BT", ids.shape, mesh).spec
    if spec[0] is None:
        return _gathered(table, ids)
    axes, columns = spec

    def local(own: Num[Array, "part D"], ids: Int[Array, "B T"]) -> Num[Array, "B T D"]:
        index = ids - jax.lax.axis_index(axes) * own.shape[0]
        here = (index >= 0) & (index < own.shape[0])
        return jax.lax.psum(jnp.where(here[..., None], _gathered(own, jnp.where(here, index, 0)), 0), axes)

    out_specs = PartitionSpec(*ids_spec, columns)
    return jax.shard_map(local, mesh=mesh, in_specs=(spec, ids_spec), out_specs=out_specs)(table, ids)


def _gathered(table: Num[Array, "V D"], ids: Int[Array, "*batch"]) -> Num[Array, "*batch D"]:
    if table.dtype != jnp.bfloat16:
        return table[ids]

    def as_integers(table: jax.Array, ids: jax.Array) -> jax.Array:
        table, ids = jax.lax.optimization_barrier((table, ids))  # or a loop of steps would keep a copy as integers
        return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(table, jnp.uint16)[ids], table.dtype)

    # XLA for CPUs looks up rows of bfloat16 in a float32 copy of the table.
    return jax.lax.platform_dependent(table, ids, cpu=as_integers, default=lambda table, ids: table[ids])
