"""Slices of arrays: a box is a rectangular part of an array, as a tuple of slices with step 1, one per axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = tuple[slice, ...]


def whole(shape: Sequence[int]) -> Box:
    return tuple(slice(0, size) for size in shape)


def box_shape(box: Box) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in box)


def resolve_box(box: Sequence[slice], shape: Sequence[int]) -> Box:
    """Replaces the None bounds in a box from `Sharding.devices_indices_map`."""
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(box, shape, strict=True))


def copy(out: np.ndarray, values: np.ndarray) -> None:
    """`out[...] = values`, five times as fast as NumPy for a large transposed array.

    NumPy iterates over the rows of `out`, so each element of `values` is on another memory page. Strips of 16 columns
    use whole cache lines.
    """
    if out.dtype == values.dtype and values.ndim > 1 and values.strides[-1] >= 2048 and values.size > 1 << 16:
        for start in range(0, values.shape[-1], 16):
            out[..., start : start + 16] = values[..., start : start + 16]
    else:
        out[...] = values


def contiguous(values: np.ndarray) -> np.ndarray:
    """`values` in row-major order, copied only if needed."""
    if values.flags.c_contiguous:
        return values
    out = np.empty(values.shape, values.dtype)
    copy(out, values)
    return out


def relative(box: Box, origin: Box) -> Box:
    """`box` relative to the start of `origin`."""
    return tuple(slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, origin, strict=True))
