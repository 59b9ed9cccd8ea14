"""Checks weights while they are read: NaN and infinity are errors, an all-zero matrix is a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping

import numpy as np

from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.lazy import LazyArray, Leaf
from gemma_tpu.checkpoint.names import abbreviate
from gemma_tpu.checkpoint.slices import Box

# All-zero layers have no effect, but these are indispensable.
_REQUIRED = ("embedder.table", "embedder.head")
_FUSED_SIZES = (2, 3)  # Google stacks k and v, gate and up, or q, k and v along axis 0


def max_bits(values: np.ndarray) -> int:
    """The bit pattern of the largest magnitude: 0 if all values are ±0, infinity's or more if any is not finite.

    Uses two integer maxima, 15 times as fast as `np.isfinite` for bfloat16.
    """
    size = values.dtype.itemsize
    positive, unsigned = int(values.view(f"i{size}").max()), int(values.view(f"u{size}").max())
    return max(positive, unsigned - (1 << 8 * size - 1))  # without the sign bit


class CheckedArray(Leaf):
    """A stored array that is checked when read. Raises `CheckpointError` naming it if a value is not finite.

    Of integers, only whether all are zero is found out.
    """

    def __init__(self, leaf: Leaf):
        self.leaf, self.name, self.file = leaf, leaf.name, leaf.file
        self.shape, self.dtype = leaf.shape, leaf.dtype
        self._integers = leaf.dtype.kind == "i"
        self._infinity = 0 if self._integers else max_bits(np.array(np.inf, leaf.dtype))
        self._fused = len(leaf.shape) > 2 and leaf.shape[0] in _FUSED_SIZES
        self._nonzero: dict[int, bool] = {}  # by index of a fused matrix, among the values read

    def read(self, box: Box) -> np.ndarray:
        values = self.leaf.read(box)
        self._check(box, values)
        return values

    def read_into(self, box: Box, out: np.ndarray) -> None:
        if out.dtype != self.dtype:
            super().read_into(box, out)
            return
        self.leaf.read_into(box, out)
        self._check(box, out)

    def _check(self, box: Box, values: np.ndarray) -> None:
        parts = dict(enumerate(values, box[0].start)) if self._fused else {0: values}
        for index, part in parts.items():
            if self._integers:
                nonzero = bool(part.any())
            elif (bits := max_bits(part)) >= self._infinity:
                raise CheckpointError(f"{self.file}: {self.name} holds {self._describe(part)}")
            else:
                nonzero = bool(bits)
            if nonzero:
                self._nonzero[index] = True
            else:
                self._nonzero.setdefault(index, False)  # another thread may just have found another part nonzero

    def cost(self, box: Box) -> int:
        return self.leaf.cost(box)

    def _describe(self, values: np.ndarray) -> str:
        if np.isnan(values).any():
            return "NaN: the weights are damaged, or went wrong in training"
        if self.dtype == np.float16:
            return "infinity: they overflowed float16; take the bfloat16 or float32 version, or convert that one anew"
        return "infinity: the weights are damaged, or overflowed where they were made"

    def zero_matrices(self) -> list[str]:
        """Names of the matrices of which only zeros were read. Norms and biases may be zero."""
        if len(self.shape) < 2 or self.name.endswith("bias"):
            return []
        zeros = [index for index, nonzero in self._nonzero.items() if not nonzero]
        return [f"{self.name}[{index}]" if self._fused else self.name for index in zeros]


def add_checks(arrays: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The same arrays with a `CheckedArray` for each leaf."""
    check = functools.cache(CheckedArray)  # one for each leaf, which several arrays may share
    return {name: array.map_leaves(check) for name, array in arrays.items()}


def report_zeros(arrays: Mapping[str, LazyArray], path: str) -> None:
    """Reports all-zero matrices in `arrays` from `add_checks`, by this package's names, after they have been read.

    Raises `CheckpointError` for the embedding table and the output head. A `CheckpointWarning` names others, since
    blocks added to deepen a model have zero output projections.
    """
    for name in _REQUIRED:
        if name in arrays and (zeros := _zero_matrices([arrays[name]])):
            raise CheckpointError(f"{path}: {zeros[0]} is all zeros: the file is damaged, or was never fully written")
    if zeros := _zero_matrices(arrays.values()):
        warnings.warn(
            f"{path}: all zeros, and so without effect unless a download is incomplete: {abbreviate(zeros)}",
            CheckpointWarning,
            stacklevel=3,
        )


def _zero_matrices(arrays: Iterable[LazyArray]) -> list[str]:
    leaves = {leaf.name: leaf for array in arrays for leaf in array.leaves() if isinstance(leaf, CheckedArray)}
    return [name for leaf in leaves.values() for name in leaf.zero_matrices()]
