"""What the toolkit promises for TPUs, against what the TPU compiler says: no TPU is needed, libtpu is.

    python benchmarks/tpu_bars.py [--only 27b]

Prints a line for each bar and exits with 1 if one is missed. Peak of a chip: compiled arguments + temporaries + outputs
that are not written over an argument, of the program that needs most, with what else stays there meanwhile. Cycles are
the compiler's estimate for a decode step, not a measurement. The reference's step was compiled in the same way from
Google's `gemma` 3.3.0 sampler: 1B, `v5e:1x1`, cache 4,096, one row.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator

import jax

from gemma_tpu.config import CONFIGS
from gemma_tpu.plan.chips import GIB, parse_slice
from gemma_tpu.plan.compiled import Deployment, compile_programs, total_memory
from gemma_tpu.plan.inspection import decode_problems
from gemma_tpu.plan.report import versions
from gemma_tpu.plan.search import choose_mesh

REFERENCE_CYCLES = 15.6e6

FITS = (  # model, images, slice, context, rows
    ("gemma3-4b", True, "v5e:1x1", 131_072, 1),
    ("gemma3-12b", True, "v5e:2x2", 131_072, 1),
    ("gemma3-27b", True, "v5e:2x4", 131_072, 4),
    ("gemma3-27b", True, "v4:2x2x1", 131_072, 4),
    ("gemma3-27b", False, "v5e:4x4", 131_072, 12),
)
STEPS = (  # model, slice, context, rows, most cycles
    ("gemma3-1b", "v5e:1x1", 4096, 1, REFERENCE_CYCLES / 3),
    ("gemma3-27b", "v5e:2x4", 8192, 8, 24e6),
)


@dataclasses.dataclass(frozen=True)
class Bar:
    """One promise and what came of it."""

    what: str
    bar: str
    figure: str
    met: bool


def deployment(model: str, images: bool, where: str, context: int, rows: int) -> Deployment:
    config = CONFIGS[model] if images else dataclasses.replace(CONFIGS[model], vision=None)
    return choose_mesh(config, parse_slice(where), rows, context, "bfloat16").candidates[0]


def memory_bars(model: str, images: bool, where: str, context: int, rows: int) -> Iterator[Bar]:
    one = deployment(model, images, where, context, rows)
    programs = compile_programs(one)
    memory, capacity = total_memory(one, programs), one.where.chip.hbm
    name = f"{model}{' with vision' * images}, {where}, {context:,} × {rows}, mesh {one.mesh_shape}"
    peaks = ", ".join(f"{program.name} {program.peak / GIB:.2f}" for program in programs)
    peak = memory.total - memory.code
    figure = f"{peak / GIB:.2f} GiB ({peaks})"
    yield Bar(f"{name}: memory", f"≤ {capacity / GIB:.2f} GiB", figure, peak <= capacity)
    yield hlo_bar(name, one, programs[0])


def step_bars(model: str, where: str, context: int, rows: int, most: float) -> Iterator[Bar]:
    one = deployment(model, False, where, context, rows)
    decode = compile_programs(one, ["decode"])[0]
    name = f"{model}, {where}, {context:,} × {rows}"
    figure = f"{decode.cycles / 1e6:.2f} Mcycles (with top-k and top-p {decode.sampled_cycles / 1e6:.2f})"
    yield Bar(f"{name}: decode step", f"≤ {most / 1e6:.2f} Mcycles", figure, decode.cycles <= most)
    yield hlo_bar(name, one, decode)


def hlo_bar(name: str, one: Deployment, decode) -> Bar:
    problems = decode_problems(one, decode)
    shown = "nothing" if not problems else f"{len(problems)}, such as {problems[0]}"
    return Bar(f"{name}: moved for nothing in decode", "nothing", shown, not problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="bars whose name holds this")
    only = parser.parse_args().only
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    missed = 0
    named = [(f"{row[0]} {row[2]}", memory_bars(*row)) for row in FITS]
    named += [(f"{row[0]} {row[1]}", step_bars(*row)) for row in STEPS]
    for bar in (bar for name, bars in named if only in name for bar in bars):
        missed += not bar.met
        print(f"{'met   ' if bar.met else 'MISSED'} {bar.what}: {bar.figure}; bar {bar.bar}", flush=True)
    print(f"{missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
