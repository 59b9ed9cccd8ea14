"""Which weights are kept as integers, and how wide: a scale for each output channel, the products as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gemma_tpu.checks import brief
from gemma_tpu.sharding import param_dims

_T, _S = TypeVar("_T"), TypeVar("_S")
WIDTHS = ("int8", "int4")
NONE = "none"  # no weight as integers, where None means as they are stored
_LEVELS = {"int8": 127, "int4": 7}  # symmetric: -128 and -8 are left out
_BLOCK = 1 << 18  # weights that are quantised at a time, so that what is in between stays in the processor's cache
_NEVER = ("bias", "positions")  # added, not multiplied
# Their last dimension is summed over; of all other matrices, every dimension but the last.
_LAST_SUMMED = ("embedder.table", "embedder.head", "attention.qkv", "mlp.gate_up", "mlp.down", "vision.attention.qkv")


class Grid(NamedTuple):
    """Integers from -levels to levels in arrays of `dtype`; weights along the dimensions `summed` share a scale."""

    levels: int
    dtype: np.dtype
    summed: tuple[int, ...]

    def holds(self, bits: int) -> bool:
        """Whether signed integers of so many bits are kept as they are."""
        return 1 << (bits - 1) <= self.levels + 1

    def of_scales(self, of_weight: Sequence[_T], shared: _S) -> tuple[_T | _S, ...]:
        """A shape or box of scales, from that of the weight: `shared` along the dimensions that share one."""
        return tuple(shared if axis in self.summed else size for axis, size in enumerate(of_weight))

    def scales_sharding(self, weight: NamedSharding, ndim: int) -> NamedSharding:
        """Split as the weight is, but along the dimensions that scales do not have."""
        spec = (*weight.spec, *(None,) * (ndim - len(weight.spec)))
        return NamedSharding(weight.mesh, PartitionSpec(*self.of_scales(spec, None)))


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Weights as "int8" or "int4", or None for those that stay as they are.

    `matrices` are the decoder's, `embedding` the table of token embeddings and the output head, `vision` the vision
    tower's matrices. Norms, biases and positions stay as they are.
    """

    matrices: str | None = "int8"
    embedding: str | None = "int8"
    vision: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (width := getattr(self, field.name)) not in (None, *WIDTHS):
                raise ValueError(f'quantize: {field.name} must be "int8", "int4" or None, got {brief(width)}')

    def __str__(self) -> str:
        parts = dataclasses.asdict(self)
        if self.matrices and self == Quantization(self.matrices):
            return self.matrices
        return ", ".join(f"{name} {width}" for name, width in parts.items() if width)

    def grid(self, name: str, platform: str) -> Grid | None:
        """Of a parameter by its name (`gemma_tpu.model.param_shapes`), None if it stays as it is.

        XLA for CPUs copies a weight of 4 bits into a wider one at each product: there they are kept in 8.
        """
        dims, kind = param_dims(name)
        if not dims or kind.endswith(_NEVER):
            return None
        width = getattr(self, part_of(name))
        if width is None:
            return None
        last = len(dims) - 1
        summed = (last,) if kind in _LAST_SUMMED else tuple(range(last))
        return Grid(_LEVELS[width], jnp.dtype("int8" if platform == "cpu" else width), summed)


def part_of(name: str) -> str:
    """The field of `Quantization` that says it of a parameter."""
    return {"embedder": "embedding", "vision": "vision"}.get(name.split(".")[0], "matrices")


def as_quantization(quantize: Any) -> Quantization | None:
    """What is meant by the argument of `load`: a width for the decoder's matrices, or a `Quantization`.

    None for "none", for a `Quantization` of nothing, and for None, which means as weights are stored, where they are.
    """
    if quantize == Quantization(None, None, None):
        return None
    if quantize is None or isinstance(quantize, Quantization):
        return quantize
    if isinstance(quantize, str) and quantize in (*WIDTHS, NONE):
        return None if quantize == NONE else Quantization(quantize)
    raise ValueError(
        f'quantize must be "int8", "int4", "none", a gemma_tpu.Quantization or None, got {brief(quantize)}'
    )


def quantize(weight: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Values, and float32 scales of their dimensions with size 1 for those in `grid.summed`: the nearest of each.

    The largest magnitude of a channel is a multiple of its scale, so weights that lie on such a grid stay as they are.
    """
    matrix, by_row = weight.reshape(-1, weight.shape[-1]), weight.ndim - 1 in grid.summed
    blocks, maxima = _blocks(*matrix.shape), []
    for rows in blocks:
        block = matrix[rows].astype(np.float32)
        maxima.append(
            np.maximum(block.max(axis=int(by_row), keepdims=True), -block.min(axis=int(by_row), keepdims=True))
        )
    largest = np.concatenate(maxima)
    if not by_row:
        largest = largest.max(axis=0, keepdims=True)
    scales = scales_of(largest, grid)
    values = np.empty(matrix.shape, grid.dtype)
    for rows in blocks:
        values[rows] = round_to(matrix[rows], scales[rows] if by_row else scales)
    return values.reshape(weight.shape), scales.reshape(grid.of_scales(weight.shape, 1))


def scales_of(largest: np.ndarray, grid: Grid) -> np.ndarray:
    """From the largest magnitude of each channel, in float32."""
    # A channel of zeros may have any scale; that of one of subnormal numbers is not 0.
    return np.where(largest, np.maximum(largest / np.float32(grid.levels), np.finfo(np.float32).tiny), np.float32(1))


def round_to(weight: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The nearest multiples of float32 scales, in float32."""
    scaled = weight.astype(np.float32)
    scaled /= scales
    return np.rint(scaled, out=scaled)


def _blocks(rows: int, columns: int) -> list[slice]:
    step = max(1, _BLOCK // columns)
    return [slice(start, start + step) for start in range(0, rows, step)]
