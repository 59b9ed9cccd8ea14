"""What a decode step does with a layer's cache, as one kernel of a GPU: stores each row's new token, and attends.

Apart, these are a kernel for attention and three short ones, which take as long to start as to run. Letters: see
gemma_tpu.config; A: pages of a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from gemma_tpu.ops import triton_attention
from gemma_tpu.ops.attention import Part, axes_of, by_kernel, finish, specs_of, used
from gemma_tpu.ops.int8 import Int8, Numbers
from gemma_tpu.ops.masks import Queries, by_head
from gemma_tpu.ops.paged_attention import held_tokens, pages_of_rows
from gemma_tpu.ops.slots import Layer
from gemma_tpu.ops.triton_attention import New


def fits(query: Queries, layer: Layer, mesh: Mesh) -> bool:
    """Whether it is one: for one token of each row, where no device has but a part of what a query looks at."""
    whole = axes_of(specs_of("RKSH", layer[0], mesh)) <= axes_of(specs_of("BTK.H", query, mesh))
    return query.shape[1] == 1 and whole and by_kernel(mesh, query.dtype, query.shape[-1], queries=1)


def append_to_rings(
    query: Queries,
    key: Numbers,
    value: Numbers,
    layer: Layer,
    length: Int[Array, "B"],
    position: Int[Array, "B S"],
    *,
    window: int,
    mesh: Mesh,
) -> tuple[Layer, Queries]:
    """Of tokens [B, 1, …] at position `length` of each row, whose ring's slots hold what stands at `position`."""

    def local(
        query: jax.Array, new: Layer | None, layer: Layer, length: jax.Array, position: jax.Array
    ) -> tuple[Layer, Queries]:
        at = New(new, first=None, slot=length % position.shape[1])
        blocks = triton_attention.blocks_of(used(position))
        return _look(query, at, layer, length, position, blocks, None, window)

    arguments = *_joined(query, key, value), layer, length, position
    return _on_devices(local, arguments, ("BTK.H", "BKH", "RKSH", "B", "BS"), mesh)


def append_to_pages(
    query: Queries,
    key: Numbers,
    value: Numbers,
    layer: Layer,
    length: Int[Array, "B"],
    held: Int[Array, "B"],
    row: Int[Array, "A"],
    start: Int[Array, "A"],
    *,
    longest: int,
    mesh: Mesh,
) -> tuple[Layer, Queries]:
    """Of tokens [B, 1, …] at position `length` of each row, and the first `held` tokens of its pages.

    A row without a page for the token does not store it. The rest as of `paged_attention`.
    """

    arguments = *_joined(query, key, value), layer, length, held, row, start
    rows_split = bool(specs_of("B", length, mesh)[0])

    def local(
        query: jax.Array,
        new: Layer | None,
        layer: Layer,
        length: jax.Array,
        held: jax.Array,
        row: jax.Array,
        start: jax.Array,
    ) -> tuple[Layer, Queries]:
        size = layer[0].shape[2]
        here, position = held_tokens(row, start, held, jnp.arange(size), rows_split)
        blocks, place = pages_of_rows(here, position, len(length), -(-longest // size))
        has = (here == jnp.arange(len(length))[:, None]) & (start == (length - length % size)[:, None])
        first = jnp.where(jnp.any(has, axis=1), jnp.argmax(has, axis=1), -1)
        return _look(query, New(new, first, length % size), layer, length, position, blocks, place, None)

    return _on_devices(local, arguments, ("BTK.H", "BKH", "AKSH", "B", "B", "A", "A"), mesh)


def _joined(query: Queries, key: Numbers, value: Numbers) -> tuple[jax.Array, Layer | None]:
    """Queries with their token's key and value behind them, as the model made them: slices would be copies. Where these
    are quantised, they are by themselves.
    """
    if isinstance(key, Int8):
        return query, jax.tree.map(lambda x: x[:, 0], (key, value))
    return jnp.concatenate([query, key[:, :, :, None], value[:, :, :, None]], axis=3), None


def _look(
    query: jax.Array,
    new: New,
    layer: Layer,
    length: Int[Array, "B"],
    position: jax.Array,
    blocks: Int[Array, "B"],
    place: jax.Array | None,
    window: int | None,
) -> tuple[Layer, Queries]:
    sums, *stored = triton_attention.look_by_block(
        by_head(query), *layer, length[:, None], position, blocks, place, new=new, window=window, dtype=query.dtype
    )
    return (stored[0], stored[1]), finish(Part(*sums), query[:, :, :, : sums[1].shape[2]])


def _on_devices(local: Callable[..., Any], arguments: Sequence[Any], dims: Sequence[str], mesh: Mesh) -> Any:
    if mesh.size == 1:
        return local(*arguments)
    specs = tuple(specs_of(letters, x, mesh) for letters, x in zip(dims, arguments, strict=True))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(specs[2], specs[0]), check_vma=False)(*arguments)
