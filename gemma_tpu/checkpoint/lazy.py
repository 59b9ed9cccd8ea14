"""Lazy arrays: arrays on disk, and views of them that are read box by box.

Each checkpoint format orders and fuses parameters in its own way. A parameter is a view of the stored arrays, and
reading a box (gemma_tpu.checkpoint.boxes) of a view reads only the parts of the files that the box needs.
"""

from __future__ import annotations

import abc
import copy as copylib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from gemma_tpu.checkpoint.boxes import Box, box_shape, copy, relative, resolve_box, whole
from gemma_tpu.checkpoint.errors import CheckpointError

_T = TypeVar("_T")
BLOCK_BYTES = 16 << 20  # size of a read, if it can be divided
FLOAT32 = np.dtype(np.float32)


class LazyArray(abc.ABC):
    """An array of `shape` and `dtype` that is read on demand."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @abc.abstractmethod
    def read(self, box: Box) -> np.ndarray:
        """The elements in `box`. The result may be a view; do not write to it."""

    @abc.abstractmethod
    def cost(self, box: Box) -> int:
        """Uncompressed bytes that `read(box)` reads from storage."""

    @abc.abstractmethod
    def leaves(self) -> Iterator[Leaf]:
        """The stored arrays underlying this view."""

    @abc.abstractmethod
    def map_leaves(self, function: Callable[[Leaf], Leaf]) -> LazyArray:
        """The same view with each leaf replaced by `function(leaf)`."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def read_all(self) -> np.ndarray:
        return self.read(whole(self.shape))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {self.dtype}, {', '.join(leaf.name for leaf in self.leaves())})"

    # Views.

    def transpose(self, *axes: int) -> LazyArray:
        """As `numpy.transpose`."""
        return self if axes == tuple(range(len(self.shape))) else _Transposed(self, axes)

    def split(self, axis: int, sizes: tuple[int, ...]) -> LazyArray:
        """Splits `axis` into two axes of `sizes`, row-major."""
        return _Split(self, axis, sizes)

    def merge(self, axis: int) -> LazyArray:
        """Merges `axis` and the next axis, row-major."""
        return _Merged(self, axis)

    def expand(self, axis: int) -> LazyArray:
        """Adds an axis of size 1 before `axis`."""
        return _Expanded(self, axis)

    def take(self, axis: int, index: int) -> LazyArray:
        """The elements at `index` of `axis`; drops the axis."""
        return _Squeezed(self.crop(axis, index, index + 1), axis)

    def crop(self, axis: int, start: int, stop: int) -> LazyArray:
        if not 0 <= start < stop <= self.shape[axis]:
            raise CheckpointError(f"{self}: axis {axis} has no {start}:{stop}")
        return self if (start, stop) == (0, self.shape[axis]) else _Cropped(self, axis, start, stop)

    def pad(self, axis: int, size: int) -> LazyArray:
        """Appends zeros so that `axis` has `size` elements."""
        if size == self.shape[axis]:
            return self
        zeros = Zeros(_replace(self.shape, axis, size - self.shape[axis]), self.dtype)
        return concat([self, zeros], axis)

    def astype(self, dtype: np.dtype) -> LazyArray:
        return self if dtype == self.dtype else _Cast(self, np.dtype(dtype))


class Leaf(LazyArray):
    """A stored array. Errors quote `name` and `file`."""

    name: str
    file: str

    def leaves(self) -> Iterator[Leaf]:
        yield self

    def map_leaves(self, function: Callable[[Leaf], Leaf]) -> LazyArray:
        return function(self)


class InMemory(Leaf):
    """A NumPy or JAX array in memory."""

    def __init__(self, array: Any, name: str):
        self.array, self.name, self.file = array, name, "memory"
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)

    def read(self, box: Box) -> np.ndarray:
        if not isinstance(self.array, jax.Array):
            return np.asarray(self.array)[box]
        # Copies only the requested part of each shard, since JAX caches the host copy of a whole array.
        out: np.ndarray | None = None
        for shard in self.array.addressable_shards:
            held = resolve_box(shard.index, self.shape)
            overlap = tuple(slice(max(b.start, h.start), min(b.stop, h.stop)) for b, h in zip(box, held, strict=True))
            if shard.replica_id or any(part.start >= part.stop for part in overlap):
                continue
            on_cpu = shard.device.platform == "cpu"  # where NumPy views a shard without a copy
            part = relative(overlap, held)
            values = np.asarray(shard.data)[part] if on_cpu else np.asarray(shard.data[part])
            if overlap == tuple(box):
                return values
            out = np.empty(box_shape(box), self.dtype) if out is None else out
            out[relative(overlap, box)] = values
        if out is None:
            raise CheckpointError(f"{self.name}: no device of this process holds {box_shape(box)} of it")
        return out

    def cost(self, box: Box) -> int:
        return 0


class Zeros(LazyArray):
    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)

    def read(self, box: Box) -> np.ndarray:
        return np.zeros(box_shape(box), self.dtype)

    def cost(self, box: Box) -> int:
        return 0

    def leaves(self) -> Iterator[Leaf]:
        yield from ()

    def map_leaves(self, function: Callable[[Leaf], Leaf]) -> LazyArray:
        return self


def concat(parts: Sequence[LazyArray], axis: int) -> LazyArray:
    """As `numpy.concatenate`."""
    return parts[0] if len(parts) == 1 else _Concatenated(parts, axis)


def stack(parts: Sequence[LazyArray], axis: int = 0) -> LazyArray:
    """As `numpy.stack`."""
    return concat([part.expand(axis) for part in parts], axis)


def read_blocks(array: LazyArray, box: Box, axis: int | None = None) -> Iterator[Box]:
    """Divides `box` along one axis into blocks of about BLOCK_BYTES, or of a multiple that avoids rereading.

    `axis`: the axis to divide; by default the first that works.
    """
    shape = box_shape(box)
    count = math.ceil(math.prod(shape) * array.dtype.itemsize / BLOCK_BYTES)
    axes = range(len(shape)) if axis is None else [axis]
    # Blocks that cut a stored chunk each read all of it. Larger blocks cut fewer chunks; 25% of rereading is allowed.
    max_cost = 1.25 * array.cost(box)
    while count > 1:
        for candidate in axes:
            step, part = math.ceil(shape[candidate] / count), box[candidate]
            starts = range(part.start, part.stop, step)
            blocks = [_replace(box, candidate, slice(start, min(start + step, part.stop))) for start in starts]
            if len(blocks) > 1 and sum(array.cost(block) for block in blocks) <= max_cost:
                yield from blocks
                return
        count //= 2
    yield box


def _replace(items: Sequence[_T], axis: int, *new: _T) -> tuple[_T, ...]:
    return (*items[:axis], *new, *items[axis + 1 :])


class _View(LazyArray):
    """A view of one array: each box is a rearranged box of the base."""

    def __init__(self, base: LazyArray, shape: tuple[int, ...]):
        self.base, self.shape, self.dtype = base, shape, base.dtype

    @abc.abstractmethod
    def base_box(self, box: Box) -> Box:
        """The smallest box of the base that contains `box`."""

    @abc.abstractmethod
    def rearrange(self, array: np.ndarray, box: Box) -> np.ndarray:
        """Extracts `box` from `array`, the contents of `base_box(box)`."""

    def read(self, box: Box) -> np.ndarray:
        return self.rearrange(self.base.read(self.base_box(box)), box)

    def cost(self, box: Box) -> int:
        return self.base.cost(self.base_box(box))

    def leaves(self) -> Iterator[Leaf]:
        return self.base.leaves()

    def map_leaves(self, function: Callable[[Leaf], Leaf]) -> LazyArray:
        view = copylib.copy(self)
        view.base = self.base.map_leaves(function)
        return view


class _Transposed(_View):
    def __init__(self, base: LazyArray, axes: tuple[int, ...]):
        super().__init__(base, tuple(base.shape[axis] for axis in axes))
        self.axes = axes

    def base_box(self, box: Box) -> Box:
        return tuple(box[position] for position in np.argsort(self.axes))

    def rearrange(self, array: np.ndarray, box: Box) -> np.ndarray:
        return array.transpose(self.axes)


class _Split(_View):
    def __init__(self, base: LazyArray, axis: int, sizes: tuple[int, ...]):
        if math.prod(sizes) != base.shape[axis]:
            raise CheckpointError(f"{base}: axis {axis} cannot be divided into {sizes}")
        super().__init__(base, _replace(base.shape, axis, *sizes))
        self.axis, self.inner = axis, sizes[1]

    def base_box(self, box: Box) -> Box:
        outer, inner = box[self.axis : self.axis + 2]
        # A range of the base covers several outer rows only in full.
        if outer.stop - outer.start > 1:
            inner = slice(0, self.inner)
        start, stop = outer.start * self.inner + inner.start, (outer.stop - 1) * self.inner + inner.stop
        return (*box[: self.axis], slice(start, stop), *box[self.axis + 2 :])

    def rearrange(self, array: np.ndarray, box: Box) -> np.ndarray:
        outer, inner = box[self.axis : self.axis + 2]
        rows = outer.stop - outer.start
        array = array.reshape(_replace(array.shape, self.axis, rows, array.shape[self.axis] // rows))
        if rows > 1:
            array = array[(slice(None),) * (self.axis + 1) + (inner,)]
        return array


class _Merged(_View):
    def __init__(self, base: LazyArray, axis: int):
        self.axis, self.inner = axis, base.shape[axis + 1]
        super().__init__(base, (*base.shape[:axis], base.shape[axis] * base.shape[axis + 1], *base.shape[axis + 2 :]))

    def base_box(self, box: Box) -> Box:
        part = box[self.axis]
        outer = slice(part.start // self.inner, -(-part.stop // self.inner))
        inner = slice(0, self.inner)
        if outer.stop - outer.start == 1:
            inner = slice(part.start - outer.start * self.inner, part.stop - outer.start * self.inner)
        return _replace(box, self.axis, outer, inner)

    def rearrange(self, array: np.ndarray, box: Box) -> np.ndarray:
        part = box[self.axis]
        outer, inner = self.base_box(box)[self.axis : self.axis + 2]
        shape = array.shape
        array = array.reshape(*shape[: self.axis], -1, *shape[self.axis + 2 :])
        start = part.start - outer.start * self.inner - inner.start
        return array[(slice(None),) * self.axis + (slice(start, start + part.stop - part.start),)]


class _Expanded(_View):
    def __init__(self, base: LazyArray, axis: int):
        super().__init__(base, (*base.shape[:axis], 1, *base.shape[axis:]))
        self.axis = axis

    def base_box(self, box: Box) -> Box:
        return _replace(box, self.axis)

    def rearrange(self, array: np.ndarray, box: Box) -> np.ndarray:
        return np.expand_dims(array, self.axis)


class _Squeezed(_View):
    def __init__(self, base: LazyArray, axis: int):
        super().__init__(base, _replace(base.shape, axis))
        self.axis = axis

    def base_box(self, box: Box) -> Box:
        return (*box[: self.axis], slice(0, 1), *box[self.axis :])

    def rearrange(self, array: np.ndarray, box: Box) -> np.ndarray:
        return array.squeeze(self.axis)


class _Cropped(_View):
    def __init__(self, base: LazyArray, axis: int, start: int, stop: int):
        super().__init__(base, _replace(base.shape, axis, stop - start))
        self.axis, self.start = axis, start

    def base_box(self, box: Box) -> Box:
        part = box[self.axis]
        return _replace(box, self.axis, slice(part.start + self.start, part.stop + self.start))

    def rearrange(self, array: np.ndarray, box: Box) -> np.ndarray:
        return array


class _Cast(_View):
    def __init__(self, base: LazyArray, dtype: np.dtype):
        super().__init__(base, base.shape)
        self.dtype = dtype

    def base_box(self, box: Box) -> Box:
        return box

    def rearrange(self, array: np.ndarray, box: Box) -> np.ndarray:
        return array.astype(self.dtype)


class _Concatenated(LazyArray):
    def __init__(self, parts: Sequence[LazyArray], axis: int):
        if len({_replace(part.shape, axis) for part in parts}) != 1:
            raise CheckpointError(f"cannot be joined: {', '.join(map(repr, parts))}")
        self.parts, self.axis = list(parts), axis
        self.offsets = np.cumsum([0, *(part.shape[axis] for part in parts)]).tolist()
        self.shape = _replace(parts[0].shape, axis, self.offsets[-1])
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def pieces(self, box: Box) -> Iterator[tuple[LazyArray, Box, Box]]:
        """Yields each part that `box` overlaps, the box to read from it, and its position within `box`."""
        wanted = box[self.axis]
        for part, offset in zip(self.parts, self.offsets, strict=False):
            start, stop = max(wanted.start, offset), min(wanted.stop, offset + part.shape[self.axis])
            if start < stop:
                target = relative(_replace(box, self.axis, slice(start, stop)), box)
                yield part, _replace(box, self.axis, slice(start - offset, stop - offset)), target

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box_shape(box), self.dtype)
        for part, part_box, target in self.pieces(box):
            copy(out[target], part.read(part_box))
        return out

    def cost(self, box: Box) -> int:
        return sum(part.cost(part_box) for part, part_box, _ in self.pieces(box))

    def leaves(self) -> Iterator[Leaf]:
        for part in self.parts:
            yield from part.leaves()

    def map_leaves(self, function: Callable[[Leaf], Leaf]) -> LazyArray:
        view = copylib.copy(self)
        view.parts = [part.map_leaves(function) for part in self.parts]
        return view
