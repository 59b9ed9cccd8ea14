"""Looking at weights while they are read: NaN and infinity are an error, a matrix of zeros is worth a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import numpy as np

from gemma_tpu.checkpoint.boxes import Box
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.lazy import LazyArray, Leaf
from gemma_tpu.checkpoint.names import some

# Without these there is nothing to compute with; a layer of zeros only adds nothing.
_VITAL = ("embedder.table", "embedder.head")
_FUSED = (2, 3)  # Google keeps k and v, gate and up, or q, k and v in one array, along its first axis


def peak_bits(values: np.ndarray) -> int:
    """The bits of the largest magnitude, which grow with it: 0 if all are ±0, at least those of infinity if any is NaN.

    Two maxima of integers, which NumPy computes at the speed of memory; `np.isfinite` of bfloat16 takes 15 times as
    long.
    """
    size = values.dtype.itemsize
    positive, all_bits = int(values.view(f"i{size}").max()), int(values.view(f"u{size}").max())
    return max(positive, all_bits - (1 << 8 * size - 1))  # negative numbers are those with the highest bit


class Watched(Leaf):
    """A stored array that is looked at when it is read. `CheckpointError` naming it if a value is not finite."""

    def __init__(self, leaf: Leaf):
        self.leaf, self.name, self.file = leaf, leaf.name, leaf.file
        self.shape, self.dtype = leaf.shape, leaf.dtype
        self._infinity = peak_bits(np.array(np.inf, leaf.dtype))
        self._fused = len(leaf.shape) > 2 and leaf.shape[0] in _FUSED
        self._seen: dict[int, bool] = {}  # matrix → whether anything but zeros was read of it

    def read(self, box: Box) -> np.ndarray:
        values = self.leaf.read(box)
        parts = dict(enumerate(values, box[0].start)) if self._fused else {0: values}
        for index, part in parts.items():
            if (peak := peak_bits(part)) >= self._infinity:
                raise CheckpointError(f"{self.file}: {self.name} holds {self._what(part)}")
            self._seen[index] = bool(peak) or self._seen.get(index, False)
        return values

    def cost(self, box: Box) -> int:
        return self.leaf.cost(box)

    def _what(self, values: np.ndarray) -> str:
        if np.isnan(values).any():
            return "NaN: the weights are damaged, or went wrong in training"
        if self.dtype == np.float16:
            return "infinity: they overflowed float16; take the bfloat16 or float32 version, or convert that one anew"
        return "infinity: the weights are damaged, or overflowed where they were made"

    def zeros(self) -> list[str]:
        """Names of the matrices of which only zeros were read. Norms and biases may be zeros."""
        if len(self.shape) < 2 or self.name.endswith("bias"):
            return []
        return [f"{self.name}[{i}]" if self._fused else self.name for i, seen in self._seen.items() if not seen]


def watch(arrays: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The same arrays, with everything they are views of watched."""
    watched: dict[int, Watched] = {}

    def one(leaf: Leaf) -> Watched:
        return watched.setdefault(id(leaf), Watched(leaf))

    return {name: array.map_leaves(one) for name, array in arrays.items()}


def report_zeros(arrays: Mapping[str, LazyArray], path: str) -> None:
    """To be called when watched `arrays`, by this package's names, have been read.

    `CheckpointError` if the embedding table or the output head is zeros; a `CheckpointWarning` names other matrices.
    (A block that was added to deepen a model begins with zeros in its two output projections.)
    """
    for name in _VITAL:
        if name in arrays and (zeros := _zeros([arrays[name]])):
            raise CheckpointError(f"{path}: {zeros[0]} is all zeros: the file is damaged, or was never fully written")
    if zeros := _zeros(arrays.values()):
        warnings.warn(
            f"{path}: all zeros, and so without effect unless a download is incomplete: {some(zeros)}",
            CheckpointWarning,
            stacklevel=3,
        )


def _zeros(arrays: Iterable[LazyArray]) -> list[str]:
    leaves = {leaf.name: leaf for array in arrays for leaf in array.leaves() if isinstance(leaf, Watched)}
    return [name for leaf in leaves.values() for name in leaf.zeros()]
