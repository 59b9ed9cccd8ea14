"""TPU generations and the slices they come in.

Peaks are those of `jax.experimental.pallas.tpu.get_tpu_info` (jax 0.10). `hbm` is what libtpu 0.0.52 leaves a program,
from its own refusals ("exceeds available HBM (15.75G)"). The clock follows from the peak: matrix units × their size²
× 2, the sizes as in "How to Scale Your Model" (jax-ml.github.io/scaling-book), which also gives the links.
"""

from __future__ import annotations

import dataclasses
import math
import re

from gemma_tpu.checks import brief

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; megacore counts as one device.

    `hbm` in bytes, `bandwidth` and `link` (one way, of one link to a neighbour) in bytes/s, `flops` in bf16
    operations/s, `clock` in Hz, `cores` per chip.
    """

    name: str
    hbm: int
    bandwidth: float
    flops: float
    link: float
    clock: float
    cores: int
    sizes: dict[int, str] = dataclasses.field(repr=False, hash=False)  # chips → topology

    @property
    def vector_ops(self) -> float:
        """float32 operations/s of the vector unit: 8 × 128 lanes × 4 units a core."""
        return 8 * 128 * 4 * self.cores * self.clock


_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", int(15.75 * GIB), 0.82e12, 197e12, 45e9, 1.5e9, 1, _FLAT),
        Chip("v6e", int(31.24 * GIB), 1.64e12, 918e12, 90e9, 1.75e9, 1, _FLAT),
        Chip("v4", int(30.75 * GIB), 1.23e12, 275e12, 45e9, 1.05e9, 2, _CUBE),
        Chip("v5p", int(95.73 * GIB), 2.46e12, 459e12, 90e9, 1.75e9, 2, _CUBE),
    )
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Some chips of one generation, e.g. `v5e:2x4`."""

    chip: Chip
    bounds: str

    @property
    def topology(self) -> str:
        return f"{self.chip.name}:{self.bounds}"

    @property
    def num_chips(self) -> int:
        return math.prod(map(int, self.bounds.split("x")))

    @property
    def name(self) -> str:
        """As it is rented: v5e-8 has eight chips, v4-8 eight cores of four."""
        return f"{self.chip.name}-{self.num_chips * self.chip.cores}"


def parse_slice(text: str) -> Slice:
    """From a topology ("v5e:2x4") or the name of a slice ("v5e-8", "v4-8"). ValueError for what there is not."""
    head, colon, bounds = text.partition(":")
    name, _, size = (head, "", "") if colon else head.partition("-")
    chip = CHIPS.get(name)
    if chip is None:
        raise ValueError(f"{brief(text)}: the chips known are {', '.join(CHIPS)}, as in v5e:2x4 or v5e-8")
    if not colon:
        found = {str(chips * chip.cores): bounds for chips, bounds in chip.sizes.items()}
        if size not in found:
            known = ", ".join(f"{name}-{size}" for size in found)
            raise ValueError(f"{text} is neither a topology such as {name}:{chip.sizes[4]} nor one of {known}")
        return Slice(chip, found[size])
    parts = bounds.split("x")
    if len(parts) != len(chip.sizes[4].split("x")) or not all(re.fullmatch("[1-9][0-9]{0,3}", part) for part in parts):
        raise ValueError(f"{text}: a topology of {name} is written like {name}:{chip.sizes[4]}")
    return Slice(chip, bounds)


def slices(chip: Chip) -> list[Slice]:
    """Those of the table, smallest first."""
    return [Slice(chip, bounds) for _, bounds in sorted(chip.sizes.items())]
