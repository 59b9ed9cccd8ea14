"""Lazy arrays: arrays on disk, and views of them that are read box by box.

Each checkpoint format orders and fuses parameters in its own way. A parameter is a view of the stored arrays, and
reading a box (gemma_tpu.checkpoint.slices) of a view reads only the parts of the files that the box needs.
"""

from __future__ import annotations

import abc
import copy as copylib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.slices import Box, box_shape, copy, relative, resolve_box, whole

_T = TypeVar("_T")
BLOCK_BYTES = 16 << 20  # size of a read, if it can be divided
FLOAT32 = np.dtype(np.float32)


class LazyArray(abc.ABC):
    """An array of `shape` and `dtype` that is read on demand, from `sources` if it is a view of other arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype
    sources: tuple[LazyArray, ...] = ()

    @abc.abstractmethod
    def read(self, box: Box) -> np.ndarray:
        """The elements in `box`. The result may be a view; do not write to it."""

    def read_into(self, box: Box, out: np.ndarray) -> None:
        """Writes the elements in `box` to `out`, an array of their shape with any strides, cast to its dtype.

        Storage writes there itself where it can, without another array in between.
        """
        copy(out, self.read(box))

    @abc.abstractmethod
    def cost(self, box: Box) -> int:
        """Uncompressed bytes that `read(box)` reads from storage."""

    def leaves(self) -> Iterator[Leaf]:
        """The stored arrays underlying this view."""
        for source in self.sources:
            yield from source.leaves()

    def map_leaves(self, function: Callable[[Leaf], Leaf]) -> LazyArray:
        """The same view with each leaf replaced by `function(leaf)`."""
        view = copylib.copy(self)
        view.sources = tuple(source.map_leaves(function) for source in self.sources)
        return view

    def rearranged(self, function: Callable[[Leaf], LazyArray | None]) -> LazyArray | None:
        """The same view of `function(leaf)`, of any dtype, in the place of each leaf.

        None if `function` gives None, or if the view is not of the leaves' elements alone but computed from them.
        """
        return None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read_all(self) -> np.ndarray:
        return self.read(whole(self.shape))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {self.dtype}, {', '.join(leaf.name for leaf in self.leaves())})"

    # Views.

    def transpose(self, *axes: int) -> LazyArray:
        """As `numpy.transpose`."""
        if axes == tuple(range(len(self.shape))):
            return self
        order = np.argsort(axes)
        return self._view(
            tuple(self.shape[axis] for axis in axes),
            lambda box: tuple(box[position] for position in order),
            lambda _, array: array.transpose(axes),
            lambda _, out: out.transpose(order),
        )

    def split(self, axis: int, sizes: tuple[int, ...]) -> LazyArray:
        """Splits `axis` into two axes of `sizes`, row-major."""
        if math.prod(sizes) != self.shape[axis]:
            raise CheckpointError(f"{self}: axis {axis} cannot be divided into {sizes}")
        count = sizes[1]

        def base_box(box: Box) -> Box:
            outer, inner = box[axis : axis + 2]
            # A range of the base covers several outer rows only in full.
            if outer.stop - outer.start > 1:
                inner = slice(0, count)
            start, stop = outer.start * count + inner.start, (outer.stop - 1) * count + inner.stop
            return (*box[:axis], slice(start, stop), *box[axis + 2 :])

        def rearrange(box: Box, array: np.ndarray) -> np.ndarray:
            outer, inner = box[axis : axis + 2]
            rows = outer.stop - outer.start
            array = array.reshape(_replace(array.shape, axis, rows, array.shape[axis] // rows))
            return array[*whole(array.shape[: axis + 1]), inner] if rows > 1 else array

        def invert(box: Box, out: np.ndarray) -> np.ndarray | None:
            rows, columns = box_shape(box)[axis : axis + 2]
            if rows > 1 and columns < count:
                return None
            return _reshaped(out, (*out.shape[:axis], rows * columns, *out.shape[axis + 2 :]))

        return self._view(_replace(self.shape, axis, *sizes), base_box, rearrange, invert)

    def merge(self, axis: int) -> LazyArray:
        """Merges `axis` and the next axis, row-major."""
        count = self.shape[axis + 1]

        def base_box(box: Box) -> Box:
            start, stop = box[axis].start, box[axis].stop
            outer = slice(start // count, -(-stop // count))
            within = outer.stop - outer.start == 1  # one outer row
            inner = slice(start - outer.start * count, stop - outer.start * count) if within else slice(0, count)
            return _replace(box, axis, outer, inner)

        def rearrange(box: Box, array: np.ndarray) -> np.ndarray:
            outer, inner = base_box(box)[axis : axis + 2]
            start = box[axis].start - outer.start * count - inner.start
            array = array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
            return array[*whole(array.shape[:axis]), slice(start, start + box[axis].stop - box[axis].start)]

        def invert(box: Box, out: np.ndarray) -> np.ndarray | None:
            shape = box_shape(base_box(box))
            return _reshaped(out, shape) if math.prod(shape) == out.size else None

        shape = (*self.shape[:axis], self.shape[axis] * count, *self.shape[axis + 2 :])
        return self._view(shape, base_box, rearrange, invert)

    def expand(self, axis: int) -> LazyArray:
        """Adds an axis of size 1 before `axis`."""
        shape = (*self.shape[:axis], 1, *self.shape[axis:])
        return self._view(
            shape,
            lambda box: _replace(box, axis),
            lambda _, array: np.expand_dims(array, axis),
            lambda _, out: out.squeeze(axis),
        )

    def take(self, axis: int, index: int) -> LazyArray:
        """The elements at `index` of `axis`; drops the axis."""
        return self.crop(axis, index, index + 1)._view(
            _replace(self.shape, axis),
            lambda box: (*box[:axis], slice(0, 1), *box[axis:]),
            lambda _, array: array.squeeze(axis),
            lambda _, out: np.expand_dims(out, axis),
        )

    def crop(self, axis: int, start: int, stop: int) -> LazyArray:
        if not 0 <= start < stop <= self.shape[axis]:
            raise CheckpointError(f"{self}: axis {axis} has no {start}:{stop}")
        if (start, stop) == (0, self.shape[axis]):
            return self

        def base_box(box: Box) -> Box:
            return _replace(box, axis, slice(box[axis].start + start, box[axis].stop + start))

        return self._view(_replace(self.shape, axis, stop - start), base_box)

    def pad(self, axis: int, size: int) -> LazyArray:
        """Appends zeros so that `axis` has `size` elements."""
        if size == self.shape[axis]:
            return self
        zeros = Zeros(_replace(self.shape, axis, size - self.shape[axis]), self.dtype)
        return concat([self, zeros], axis)

    def astype(self, dtype: np.dtype) -> LazyArray:
        return self if dtype == self.dtype else elementwise(lambda array: array, dtype, self)

    def _view(
        self,
        shape: tuple[int, ...],
        base_box: Callable[[Box], Box],
        rearrange: Callable[[Box, np.ndarray], np.ndarray] = lambda _, array: array,
        invert: Callable[[Box, np.ndarray], np.ndarray | None] = lambda _, out: out,
    ) -> LazyArray:
        """`base_box`: the box of this array that holds a box of the view; `rearrange` extracts the latter.

        `invert`: views an output for a box as one for its base box; None if that has no such strides, or is larger.
        """
        return _View(self, shape, base_box, rearrange, invert)


class Leaf(LazyArray):
    """A stored array. Errors quote `name` and `file`."""

    name: str
    file: str

    def leaves(self) -> Iterator[Leaf]:
        yield self

    def map_leaves(self, function: Callable[[Leaf], Leaf]) -> LazyArray:
        return function(self)

    def rearranged(self, function: Callable[[Leaf], LazyArray | None]) -> LazyArray | None:
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


def elementwise(function: Callable[..., np.ndarray], dtype: np.dtype, *sources: LazyArray) -> LazyArray:
    """`function` of arrays of one shape, elementwise, rounded to `dtype`."""
    dtype = np.dtype(dtype)

    def compute(_: Box, *arrays: np.ndarray) -> np.ndarray:
        return function(*arrays).astype(dtype)

    return _Computed(sources, sources[0].shape, dtype, lambda box: [box] * len(sources), compute)


def add(base: LazyArray, delta: LazyArray) -> LazyArray:
    """`base` + `delta`, added in float32 and rounded to the dtype of `base`."""
    return elementwise(lambda x, y: x.astype(np.float32) + y, base.dtype, base, delta)


def product(left: LazyArray, right: LazyArray, scale: float) -> LazyArray:
    """`scale` · `left` [..., R] · `right` [R, ...] in float32: the delta of a LoRA adapter."""
    axes, rank = len(left.shape) - 1, right.shape[0]

    def multiply(box: Box, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float32).reshape(-1, rank) * np.float32(scale)
        return (rows @ columns.astype(np.float32).reshape(rank, -1)).reshape(box_shape(box))

    def parts(box: Box) -> list[Box]:
        return [(*box[:axes], slice(0, rank)), (slice(0, rank), *box[axes:])]

    return _Computed([left, right], (*left.shape[:-1], *right.shape[1:]), FLOAT32, parts, multiply)


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
    max_cost = 1.25 * array.cost(box) if count > 1 else 0
    while count > 1:
        for candidate in axes:
            if shape[candidate] < count:  # too few for blocks so small: another axis may do, or larger blocks
                continue
            step, part = math.ceil(shape[candidate] / count), box[candidate]
            starts = range(part.start, part.stop, step)
            blocks = [_replace(box, candidate, slice(start, min(start + step, part.stop))) for start in starts]
            if len(blocks) > 1 and sum(array.cost(block) for block in blocks) <= max_cost:
                yield from blocks
                return
        count //= 2
    yield box


def _reshaped(out: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A view of `out` in another shape, to write to; None if only a copy has it."""
    result = out.reshape(shape)
    return result if np.may_share_memory(result, out) else None


def _replace(items: Sequence[_T], axis: int, *new: _T) -> tuple[_T, ...]:
    return (*items[:axis], *new, *items[axis + 1 :])


class _Computed(LazyArray):
    """`compute(box, *arrays)`, where `boxes(box)` says which box of each source to read."""

    def __init__(
        self,
        sources: Sequence[LazyArray],
        shape: tuple[int, ...],
        dtype: np.dtype,
        boxes: Callable[[Box], Sequence[Box]],
        compute: Callable[..., np.ndarray],
    ):
        self.sources, self.shape, self.dtype = tuple(sources), shape, dtype
        self._boxes, self._compute = boxes, compute

    def read(self, box: Box) -> np.ndarray:
        arrays = (source.read(part) for source, part in zip(self.sources, self._boxes(box), strict=True))
        return self._compute(box, *arrays)

    def cost(self, box: Box) -> int:
        return sum(source.cost(part) for source, part in zip(self.sources, self._boxes(box), strict=True))


class _View(_Computed):
    """The elements of one source in another order or number."""

    def __init__(
        self,
        source: LazyArray,
        shape: tuple[int, ...],
        base_box: Callable[[Box], Box],
        rearrange: Callable[[Box, np.ndarray], np.ndarray],
        invert: Callable[[Box, np.ndarray], np.ndarray | None],
    ):
        super().__init__([source], shape, source.dtype, lambda box: [base_box(box)], rearrange)
        self._base_box, self._invert = base_box, invert

    def read_into(self, box: Box, out: np.ndarray) -> None:
        if (base := self._invert(box, out)) is not None:
            self.sources[0].read_into(self._base_box(box), base)
            return
        # Strides that fit no box of the source may fit its rows, as long as they cut no stored chunk.
        rows = [_replace(box, 0, slice(row, row + 1)) for row in range(box[0].start, box[0].stop)] if box else []
        if len(rows) > 1 and sum(map(self.cost, rows)) == self.cost(box):
            for row in rows:
                self.read_into(row, out[relative(row, box)])
        else:
            super().read_into(box, out)

    def rearranged(self, function: Callable[[Leaf], LazyArray | None]) -> LazyArray | None:
        if (source := self.sources[0].rearranged(function)) is None:
            return None
        return _View(source, self.shape, self._base_box, self._compute, self._invert)


class _Concatenated(LazyArray):
    """Reads one source after the other, so that only one is in memory beside the result."""

    def __init__(self, parts: Sequence[LazyArray], axis: int):
        if len({_replace(part.shape, axis) for part in parts}) != 1:
            raise CheckpointError(f"cannot be joined: {', '.join(map(repr, parts))}")
        self.sources, self.axis = tuple(parts), axis
        self.offsets = np.cumsum([0, *(part.shape[axis] for part in parts)]).tolist()
        self.shape = _replace(parts[0].shape, axis, self.offsets[-1])
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def rearranged(self, function: Callable[[Leaf], LazyArray | None]) -> LazyArray | None:
        parts = [source.rearranged(function) for source in self.sources]
        found = [part for part in parts if part is not None]
        return concat(found, self.axis) if len(found) == len(parts) else None

    def pieces(self, box: Box) -> Iterator[tuple[LazyArray, Box, Box]]:
        """Yields each source that `box` overlaps, the box to read from it, and its position within `box`."""
        wanted = box[self.axis]
        for part, offset in zip(self.sources, self.offsets, strict=False):
            start, stop = max(wanted.start, offset), min(wanted.stop, offset + part.shape[self.axis])
            if start < stop:
                target = relative(_replace(box, self.axis, slice(start, stop)), box)
                yield part, _replace(box, self.axis, slice(start - offset, stop - offset)), target

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box_shape(box), self.dtype)
        self.read_into(box, out)
        return out

    def read_into(self, box: Box, out: np.ndarray) -> None:
        for part, part_box, target in self.pieces(box):
            part.read_into(part_box, out[target])

    def cost(self, box: Box) -> int:
        return sum(part.cost(part_box) for part, part_box, _ in self.pieces(box))
