"""Quantised matrices as lazy arrays: integers packed into words, and their scales, dequantised box by box."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import FLOAT32, LazyArray, Leaf
from gemma_tpu.checkpoint.slices import Box
from gemma_tpu.checkpoint.weight_checks import CheckedArray


def unpack(words: np.ndarray, bits: int, order: Sequence[int] = range(8)) -> np.ndarray:
    """The unsigned integers of `bits` bits (8 at most) in the integers `words`, along the last axis, as uint8.

    They follow each other without gaps, from the lowest bit of the first word on. `order`: of which of eight integers
    the lowest bits are, then the next, and so on. A few more integers than there are come last, whose bits are zeros.
    """
    data = np.ascontiguousarray(words, words.dtype.newbyteorder("<")).view(np.uint8)
    if order == range(8) and bits == 8:
        return data
    if order == range(8) and bits == 4:  # twice as fast as below
        found = np.empty((*data.shape, 2), np.uint8)
        np.bitwise_and(data, 15, out=found[..., 0])
        np.right_shift(data, 4, out=found[..., 1])
        return found.reshape(*found.shape[:-2], -1)
    if data.shape[-1] % bits:
        data = np.pad(data, [(0, 0)] * (data.ndim - 1) + [(0, -data.shape[-1] % bits)])
    data = data.reshape(*data.shape[:-1], -1, bits)  # the bytes of eight integers
    found = np.empty((*data.shape[:-1], 8), np.uint8)
    for place, number in enumerate(order):
        byte, shift = divmod(place * bits, 8)
        part = data[..., byte] >> shift
        if shift + bits > 8:
            part |= data[..., byte + 1] << (8 - shift)
        np.bitwise_and(part, (1 << bits) - 1, out=found[..., number])
    return found.reshape(*found.shape[:-2], -1)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Signed integers of 4 or 8 bits along the last axis, biased so that none is negative, in int32: as `unpack` reads.

    What is left of the last word is zeros.
    """
    biased = (values.view(np.uint8) + np.uint8(1 << (bits - 1))).astype(np.uint8)  # modulo 256
    biased = np.pad(biased, [(0, 0)] * (biased.ndim - 1) + [(0, -biased.shape[-1] % (32 // bits))])
    if bits == 4:
        biased = biased[..., ::2] | biased[..., 1::2] << 4
    return np.ascontiguousarray(biased).view("<i4")


class PackedIntegers(LazyArray):
    """The `size` integers of `bits` bits in `words` along `axis`, minus `offset`: int8, or uint8 without an offset."""

    def __init__(
        self, words: LazyArray, size: int, bits: int, *, axis: int, offset: int = 0, order: Sequence[int] = range(8)
    ):
        self.sources, self.bits, self.axis, self.offset, self.order = (words,), bits, axis, offset, order
        width = 8 * words.dtype.itemsize
        leaf = next(words.leaves())
        if words.shape[axis] != math.ceil(size * bits / width):
            raise CheckpointError(
                f"{leaf.file}: {leaf.name} is {list(words.shape)}: not {size} integers of {bits} bits along axis {axis}"
            )
        self.shape = (*words.shape[:axis], size, *words.shape[axis + 1 :])
        self.dtype = np.dtype(np.int8 if offset else np.uint8)
        # The fewest whole words that hold eights of integers.
        self._words = 8 * bits // math.gcd(8 * bits, width)
        self._integers = self._words * width // bits

    def _words_box(self, box: Box) -> Box:
        part, (words,) = box[self.axis], self.sources
        first, last = part.start // self._integers, math.ceil(part.stop / self._integers)
        held = slice(first * self._words, min(last * self._words, words.shape[self.axis]))
        return (*box[: self.axis], held, *box[self.axis + 1 :])

    def read(self, box: Box) -> np.ndarray:
        part = box[self.axis]
        start = part.start % self._integers
        words = np.moveaxis(self.sources[0].read(self._words_box(box)), self.axis, -1)
        found = unpack(words, self.bits, self.order)[..., start : start + part.stop - part.start]
        if self.offset:
            found = (found - np.uint8(self.offset)).view(np.int8)  # modulo 256
        return np.moveaxis(found, -1, self.axis)

    def cost(self, box: Box) -> int:
        return self.sources[0].cost(self._words_box(box))


class QuantizedArray(Leaf):
    """A quantised weight, mostly a matrix [out, in], read as float32: (values - zeros) · scales + biases.

    `values` are integers, float8 numbers, or indices of a `codebook`. Of `scales`, `zeros` and `biases` there is one
    for each `block` of so many elements along each axis, or with an `index` [in] for each row and group of columns: it
    names the group of each column. All of them are lazy arrays, so that a weight can be kept quantised too.

    Raises `CheckpointError` naming the file and the array if shapes do not fit or, when read, a scale is not finite.
    """

    def __init__(
        self,
        name: str,
        values: LazyArray,
        scales: LazyArray,
        *,
        bits: int,
        block: tuple[int, ...],
        zeros: LazyArray | None = None,
        biases: LazyArray | None = None,
        index: LazyArray | None = None,
        codebook: LazyArray | None = None,
    ):
        self.name, self.file = name, next(values.leaves()).file
        self.shape, self.dtype = values.shape, FLOAT32
        self.values, self.bits, self.block, self.index, self.codebook = values, bits, block, index, codebook
        blocks = tuple(math.ceil(size / part) for size, part in zip(self.shape, block, strict=True))
        for part in (scales, zeros, biases):
            if part is not None and part.shape != blocks:
                leaf = next(part.leaves())
                raise CheckpointError(
                    f"{leaf.file}: {leaf.name} is {list(leaf.shape)}, which does not fit {name} {list(self.shape)} in "
                    f"blocks of {self._sizes()}"
                )
        if index is not None and (index.shape != self.shape[1:] or index.dtype.kind not in "iu"):
            leaf = next(index.leaves())
            raise CheckpointError(
                f"{leaf.file}: {leaf.name} is {leaf.dtype} {list(leaf.shape)}, not one group for each column of {name} "
                f"{list(self.shape)}"
            )
        self.scales, self.biases, self.zeros = _checked(scales), biases and _checked(biases), zeros

    @property
    def symmetric(self) -> bool:
        """Whether a value of zero stands for zero."""
        return self.zeros is None and self.biases is None and self.codebook is None

    @property
    def group_size(self) -> int | None:
        """Adjacent columns that share a scale; None if groups are of columns here and there. May read the index."""
        return self.block[-1] if self._groups is None else None

    def describe(self) -> str:
        number = "FP8" if jnp.issubdtype(self.values.dtype, jnp.floating) else f"{self.bits} bits"
        if all(part in (1, size) for part, size in zip(self.block, self.shape, strict=True)):
            return f"{number}, " + ("one scale" if self.block == self.shape else "per channel")
        return f"{number}, " + (f"groups of {self.block[-1]}" if self.block[0] == 1 else f"blocks of {self._sizes()}")

    def _sizes(self) -> str:
        return " × ".join(map(str, self.block))

    @functools.cached_property
    def _groups(self) -> np.ndarray | None:
        """The group of each column; None if groups are blocks of adjacent columns."""
        if self.index is None:
            return None
        groups = self.index.read_all()
        if np.array_equal(groups, np.arange(self.shape[1]) // self.block[1]):
            return None
        if groups.min() < 0 or groups.max() >= self.scales.shape[1]:
            leaf = next(self.index.leaves())
            raise CheckpointError(
                f"{leaf.file}: {leaf.name} names groups {groups.min()} to {groups.max()}, and {self.name} has "
                f"{self.scales.shape[1]}"
            )
        return groups

    @functools.cached_property
    def _codes(self) -> np.ndarray | None:
        return None if self.codebook is None else self.codebook.read_all().astype(np.float32)

    def read(self, box: Box) -> np.ndarray:
        values = self.values.read(box)
        # Twenty times as fast if all operands of an operation have their elements in the same order.
        by_columns = values.flags.f_contiguous and not values.flags.c_contiguous
        found = np.array(values, np.float32) if self._codes is None else self._codes.take(values)
        if self.zeros is not None:
            found -= self._spread(self.zeros, box, by_columns)
        found *= self._spread(self.scales, box, by_columns)
        if self.biases is not None:
            found += self._spread(self.biases, box, by_columns)
        return found

    def spread_scales(self, box: Box) -> np.ndarray:
        """float32 scales of the elements in `box`, to be broadcast."""
        return self._spread(self.scales, box, False)

    def _blocks_box(self, box: Box) -> Box:
        """The box of scales that a box of the matrix needs."""
        blocks = (
            slice(part.start // size, math.ceil(part.stop / size)) for part, size in zip(box, self.block, strict=True)
        )
        return tuple(blocks) if self._groups is None else (box[0], slice(0, self.scales.shape[1]))

    def _spread(self, parts: LazyArray, box: Box, by_columns: bool) -> np.ndarray:
        """The scales or zeros in `parts` of the elements in `box`, to be broadcast; in memory by columns or by rows."""
        held = self._blocks_box(box)
        found = np.array(parts.read(held), np.float32, order="F" if by_columns else "C")
        if self._groups is not None:
            groups = self._groups[box[1]]
            return found.T.take(groups, 0).T if by_columns else found.take(groups, 1)
        for axis, (part, size) in enumerate(zip(box, self.block, strict=True)):
            if size > 1 and found.shape[axis] > 1:
                edges = np.arange(held[axis].start, held[axis].stop + 1) * size
                counts = np.diff(edges.clip(part.start, part.stop))
                found = found.T.repeat(counts, found.ndim - 1 - axis).T if by_columns else found.repeat(counts, axis)
        return found

    def cost(self, box: Box) -> int:
        held = self._blocks_box(box)
        parts = [part for part in (self.scales, self.zeros, self.biases) if part is not None]
        return self.values.cost(box) + sum(part.cost(held) for part in parts)


def _checked(parts: LazyArray) -> LazyArray:
    leaf = next(parts.leaves())
    if not jnp.issubdtype(parts.dtype, jnp.floating):
        raise CheckpointError(f"{leaf.file}: {leaf.name} is {parts.dtype}: not floating-point numbers")
    return parts.map_leaves(CheckedArray)


def describe(title: str, arrays: Iterable[LazyArray]) -> str:
    """`title` and the kinds of the quantised weights in `arrays`."""
    leaves = (leaf for array in arrays for leaf in array.leaves())
    kinds = sorted({leaf.describe() for leaf in leaves if isinstance(leaf, QuantizedArray)})
    return f"{title} ({'; '.join(kinds) or 'no weight is'})"
