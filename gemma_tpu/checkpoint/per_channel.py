"""Weights with one scale for each output channel, as integers: those that a checkpoint stores, or of other weights.

Both are lazy and in any layout: a scale stays with its channel when matrices are joined, split or transposed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gemma_tpu.checkpoint import lazy, names, slices
from gemma_tpu.checkpoint.lazy import FLOAT32, LazyArray, Leaf
from gemma_tpu.checkpoint.open import Checkpoint
from gemma_tpu.checkpoint.packed import QuantizedArray
from gemma_tpu.checkpoint.slices import Box
from gemma_tpu.checkpoint.weight_checks import CheckedArray
from gemma_tpu.quantization import Grid, Quantization, part_of, round_to, scales_of
from gemma_tpu.sharding import param_dims

_INT8 = np.dtype(np.int8)
_ALL = Quantization("int8", "int8", "int8")


class PerChannel(NamedTuple):
    """`values` int8, of at most `bits` bits; `scales` float32, with size 1 for dimensions that share one."""

    values: LazyArray
    scales: LazyArray
    bits: int


class Kept(QuantizedArray):
    """A weight that a new checkpoint is to have as integers."""


def split(
    array: LazyArray, summed: Sequence[int], *, stacked: Sequence[int] = (), of: type[QuantizedArray] = QuantizedArray
) -> PerChannel | None:
    """The integers and scales of a weight of quantised matrices; None if a scale is not of whole channels.

    `summed`: the dimensions along which a channel lies. `stacked`: those along which different matrices may be joined.
    """

    def of_kind(leaf: Leaf) -> QuantizedArray | None:
        if not isinstance(leaf, of) or not leaf.symmetric or leaf.index is not None:
            return None
        return leaf if leaf.values.dtype in (np.int8, jnp.int4) else None

    def each(kind: type[_Part]) -> LazyArray | None:
        make = functools.cache(kind)  # one for each leaf, of which a view may have several parts
        return array.rearranged(lambda leaf: None if (found := of_kind(leaf)) is None else make(found))

    values, scales, places = each(_Values), each(_Scales), each(_ScalePlaces)
    if values is None or scales is None or places is None:
        return None
    whole = slices.whole(array.shape)
    # Of the rows and columns of one matrix, all are alike.
    some = tuple(part if axis in (*summed, *stacked) else slice(0, 1) for axis, part in enumerate(whole))
    found = places.read(some)
    if (found != found.min(tuple(summed), keepdims=True)).any():
        return None
    for axis in summed:
        scales = scales.crop(axis, 0, 1)
    return PerChannel(values, scales, max(leaf.bits for leaf in array.leaves() if isinstance(leaf, of)))


def of_param(array: LazyArray, name: str) -> PerChannel | None:
    """`split` of a parameter in this package's layout, None too if it is none that is multiplied by."""
    grid = _ALL.grid(name, "cpu")
    stacked = [axis for axis, letter in enumerate(param_dims(name)[0]) if letter == "c"]
    return grid and split(array, grid.summed, stacked=stacked)


def stored_quantization(checkpoint: Checkpoint) -> Quantization | None:
    """The parts of a model that `load_params` can keep as they are stored, as integers with a scale for each channel.

    That is the parts of which all weights are stored so; None if there are none.
    """
    bits: dict[str, list[int | None]] = {}
    for name, array in names.params_from_canonical(checkpoint.arrays, checkpoint.config).items():
        if _ALL.grid(name, "cpu"):
            found = of_param(array, name)
            bits.setdefault(part_of(name), []).append(found and found.bits)
    widths = {
        part: "int4" if max(known) <= 4 else "int8"
        for part, each in bits.items()
        if len(known := [one for one in each if one is not None]) == len(each)
    }
    parts = ("matrices", "embedding", "vision")
    return Quantization(**{part: widths.get(part) for part in parts}) if widths else None


def kept(array: LazyArray, name: str, grid: Grid, bits: int) -> Kept:
    """A parameter in this package's layout as integers: those that are stored, if they fit, else the nearest."""
    found = of_param(array, name)
    if found is None or not grid.holds(found.bits):
        array = array.map_leaves(CheckedArray)
        scales = _ChannelScales(array, name, grid)
        found = PerChannel(_Rounded(array, scales, grid), scales, bits)
    return as_kept(name, found.values, found.scales, bits)


def as_kept(name: str, values: LazyArray, scales: LazyArray, bits: int) -> Kept:
    block = tuple(size if count == 1 else 1 for size, count in zip(values.shape, scales.shape, strict=True))
    return Kept(name, values, scales, bits=bits, block=block)


class _Part(Leaf):
    """Of a quantised weight, in its shape."""

    def __init__(self, whole: QuantizedArray):
        self.weight, self.name, self.file, self.shape = whole, whole.name, whole.file, whole.shape

    def cost(self, box: Box) -> int:
        return self.weight.cost(box)


class _Values(_Part):
    dtype = _INT8

    def read(self, box: Box) -> np.ndarray:
        return self.weight.values.read(box).astype(np.int8, copy=False)

    def cost(self, box: Box) -> int:
        return self.weight.values.cost(box)


class _Scales(_Part):
    dtype = FLOAT32

    def read(self, box: Box) -> np.ndarray:
        return np.broadcast_to(self.weight.spread_scales(box), slices.box_shape(box))


class _ScalePlaces(_Part):
    """For each element the number of its scale."""

    dtype = np.dtype(np.int64)

    def read(self, box: Box) -> np.ndarray:
        found = np.zeros((), np.int64)
        for axis, (part, size) in enumerate(zip(box, self.weight.block, strict=True)):
            places = np.arange(part.start, part.stop) // size
            found = found[..., None] * math.ceil(self.shape[axis] / size) + places
        return found


class _ChannelScales(Leaf):
    """The scales of a weight that is not quantised yet, of which the first read reads all."""

    dtype = FLOAT32

    def __init__(self, array: LazyArray, name: str, grid: Grid):
        self.array, self.grid, self.name, self.file = array, grid, name, next(array.leaves()).file
        self.shape = grid.of_scales(array.shape, 1)

    @functools.cached_property
    def _all(self) -> np.ndarray:
        largest = np.zeros(self.shape, np.float32)
        for box in lazy.read_blocks(self.array, slices.whole(self.array.shape)):
            values = self.array.read(box)
            part = largest[self.grid.of_scales(box, slice(0, 1))]
            for found in (values.max(self.grid.summed, keepdims=True), -values.min(self.grid.summed, keepdims=True)):
                np.maximum(part, found.astype(np.float32), out=part)
        return scales_of(largest, self.grid)

    def read(self, box: Box) -> np.ndarray:
        return self._all[box]

    def cost(self, box: Box) -> int:
        return 0


class _Rounded(LazyArray):
    """The multiples of its scales that are nearest to a weight."""

    dtype = _INT8

    def __init__(self, array: LazyArray, scales: LazyArray, grid: Grid):
        self.sources, self.shape, self.scales, self.grid = (array,), array.shape, scales, grid

    def read(self, box: Box) -> np.ndarray:
        out, (array,) = np.empty(slices.box_shape(box), np.int8), self.sources
        for block in lazy.read_blocks(array, box):
            scales = self.scales.read(self.grid.of_scales(block, slice(0, 1)))
            slices.copy(out[slices.relative(block, box)], round_to(array.read(block), scales))
        return out

    def cost(self, box: Box) -> int:
        return self.sources[0].cost(box)
