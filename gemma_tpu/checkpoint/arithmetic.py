"""Lazy arrays computed from other lazy arrays, one box at a time, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gemma_tpu.checkpoint import boxes, lazy
from gemma_tpu.checkpoint.boxes import Box
from gemma_tpu.checkpoint.lazy import LazyArray, Leaf


class Product(LazyArray):
    """`scale` · `left` [..., R] · `right` [R, ...] in float32: the delta of a LoRA adapter."""

    def __init__(self, left: LazyArray, right: LazyArray, scale: float):
        self.left, self.right, self.scale = left, right, scale
        self.shape, self.dtype = (*left.shape[:-1], *right.shape[1:]), lazy.FLOAT32

    def _boxes(self, box: Box) -> tuple[Box, Box]:
        axes, rank = len(self.left.shape) - 1, slice(0, self.right.shape[0])
        return (*box[:axes], rank), (rank, *box[axes:])

    def read(self, box: Box) -> np.ndarray:
        left, right = self._boxes(box)
        rank = self.right.shape[0]
        rows = self.left.read(left).astype(np.float32).reshape(-1, rank)
        columns = self.right.read(right).astype(np.float32).reshape(rank, -1)
        return ((rows * np.float32(self.scale)) @ columns).reshape(boxes.box_shape(box))

    def cost(self, box: Box) -> int:
        left, right = self._boxes(box)
        return self.left.cost(left) + self.right.cost(right)

    def leaves(self) -> Iterator[Leaf]:
        yield from self.left.leaves()
        yield from self.right.leaves()

    def map_leaves(self, function: Callable[[Leaf], Leaf]) -> LazyArray:
        return Product(self.left.map_leaves(function), self.right.map_leaves(function), self.scale)


class Sum(LazyArray):
    """`base` + `delta`, added in float32 and rounded to the dtype of `base`."""

    def __init__(self, base: LazyArray, delta: LazyArray):
        self.base, self.delta = base, delta
        self.shape, self.dtype = base.shape, base.dtype

    def read(self, box: Box) -> np.ndarray:
        return (self.base.read(box).astype(np.float32) + self.delta.read(box)).astype(self.dtype)

    def cost(self, box: Box) -> int:
        return self.base.cost(box) + self.delta.cost(box)

    def leaves(self) -> Iterator[Leaf]:
        yield from self.base.leaves()
        yield from self.delta.leaves()

    def map_leaves(self, function: Callable[[Leaf], Leaf]) -> LazyArray:
        return Sum(self.base.map_leaves(function), self.delta.map_leaves(function))


class Mapped(LazyArray):
    """Applies `function` elementwise to `base` in float32."""

    def __init__(self, base: LazyArray, function: Callable[[np.ndarray], np.ndarray], dtype: np.dtype):
        self.base, self.function = base, function
        self.shape, self.dtype = base.shape, dtype

    def read(self, box: Box) -> np.ndarray:
        return self.function(self.base.read(box).astype(np.float32)).astype(self.dtype)

    def cost(self, box: Box) -> int:
        return self.base.cost(box)

    def leaves(self) -> Iterator[Leaf]:
        return self.base.leaves()

    def map_leaves(self, function: Callable[[Leaf], Leaf]) -> LazyArray:
        return Mapped(self.base.map_leaves(function), self.function, self.dtype)


def move_first_axis(array: LazyArray, position: int) -> LazyArray:
    """Moves axis 0 to `position`."""
    others = list(range(1, len(array.shape)))
    return array.transpose(*others[:position], 0, *others[position:])
