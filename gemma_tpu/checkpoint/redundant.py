"""Stored arrays that repeat what is known already: shown to do so before they are left out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from gemma_tpu.checkpoint import lazy, slices
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.config import GemmaConfig

# Buffers are stored in the dtype of the weights; bfloat16 keeps 8 bits.
_TOLERANCE = 2**-7


def equal(a: LazyArray, b: LazyArray) -> bool:
    """Whether two arrays hold the same values. Reads a block of each at a time, and no more after a difference."""
    if a.shape != b.shape:
        return False
    return all(np.array_equal(a.read(box), b.read(box)) for box in lazy.read_blocks(a, slices.whole(a.shape)))


def check_buffers(buffers: Mapping[str, LazyArray], config: GemmaConfig, path: str) -> None:
    """`CheckpointError` naming a buffer, by its stored name, that is not what the config says it is."""
    for name, array in buffers.items():
        if config.vision is None and name.endswith("position_ids"):
            continue  # of a tower that is not loaded
        found = array.read_all().astype(np.float64).ravel()
        expected = _expected(name, found.size, config)
        if expected is None:
            continue  # of layers that the model has none of
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=_TOLERANCE, atol=0):
            raise CheckpointError(
                f"{path}: {name} is stored, and is not what follows from the config: these weights were made with "
                "another config.json"
            )


def _expected(name: str, size: int, config: GemmaConfig) -> np.ndarray | None:
    if name.endswith("position_ids"):
        return np.arange(size, dtype=np.float64)
    if name.endswith("embed_scale"):
        return np.array([math.sqrt(config.embed_dim)])
    if match := re.search(r"layers\.(\d+)\.", name):
        fitting = config.layers[int(match[1]) :]
    else:
        is_local = bool(re.search("local|sliding", name))
        fitting = [layer for layer in config.layers if (layer.window is not None) is is_local]
    if not fitting:
        return None
    base, scale = fitting[0].rope_base, fitting[0].rope_scale
    return base ** -(np.arange(0, config.head_dim, 2) / config.head_dim) / scale
