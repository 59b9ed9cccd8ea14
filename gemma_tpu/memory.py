"""Bytes that arrays take on each device, from their shapes and shardings alone: nothing is compiled."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import NamedSharding


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. What stays is known exactly; activations and code are 0 until a compiler has given them.

    `rows` are the controls of the batch rows; `images` the soft tokens that are remembered; `draft` weights and cache
    of a draft model; `activations` what the program that needs most has beside weights and state; `code` the programs
    themselves.
    """

    weights: int
    vision: int
    global_cache: int
    local_cache: int
    rows: int
    images: int
    draft: int = 0
    activations: int = 0
    code: int = 0

    @property
    def state(self) -> int:
        return self.global_cache + self.local_cache + self.rows

    @property
    def resident(self) -> int:
        """What stays whatever runs."""
        return self.weights + self.vision + self.state + self.images + self.draft

    @property
    def total(self) -> int:
        return self.resident + self.activations + self.code

    def table(self, capacity: int) -> str:
        """The parts in GiB against a device's capacity."""
        parts = [
            ("weights, text", self.weights),
            ("weights, vision", self.vision),
            ("cache, global layers", self.global_cache),
            ("cache, local rings", self.local_cache),
            ("settings of the rows", self.rows),
            ("soft tokens remembered", self.images),
            ("draft model", self.draft),
            ("activations", self.activations),
            ("programs", self.code),
        ]
        free = capacity - self.total
        lines = [part for part in parts if part[1]]
        lines += [("headroom" if free >= 0 else "MISSING", abs(free)), ("capacity", capacity)]
        return "\n".join(f"  {name:24} {size / 2**30:8.2f} GiB" for name, size in lines)


def shard_bytes(tree: Any) -> int:
    """Bytes on one device of the shards of a pytree of abstract arrays, such as quantised weights."""
    return sum(shard_size(array) * jax.dtypes.itemsize_bits(array.dtype) // 8 for array in jax.tree.leaves(tree))


def shard_size(array: Any) -> int:
    """Elements of an array, or of one to be, on one device."""
    assert isinstance(array.sharding, NamedSharding)
    return math.prod(array.sharding.shard_shape(array.shape))
