"""What the toolkit promises for TPUs, against what the TPU compiler says: no TPU is needed, libtpu is.

    python benchmarks/tpu_bars.py --gemma GEMMA_ENVIRONMENT/bin/python [--only 27b]

Prints a line for each bar and exits with 1 if one is missed or could not be compared. Peak of a chip: compiled
arguments + temporaries + outputs that are not written over an argument, of the program that needs most, with what else
stays there meanwhile. Cycles are the compiler's estimate for a decode step, not a measurement. The reference is the
loop of Google's own sampler, gemma 3.3.0: benchmarks/reference_step.py, run by the interpreter that --gemma names
(tests/reference/requirements-gemma.txt), compiles it in the same run, with the same libtpu for the same chip, and its
cycles are counted here like ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from gemma_tpu.config import CONFIGS
from gemma_tpu.plan.chips import GIB, parse_slice
from gemma_tpu.plan.compiled import Program, Target, compile_programs, total_memory
from gemma_tpu.plan.hlo import Hlo
from gemma_tpu.plan.inspection import decode_problems
from gemma_tpu.plan.report import versions
from gemma_tpu.plan.search import choose_mesh

FITS = (  # model, images, slice, context, rows
    ("gemma3-4b", True, "v5e:1x1", 131_072, 1),
    ("gemma3-12b", True, "v5e:2x2", 131_072, 1),
    ("gemma3-27b", True, "v5e:2x4", 131_072, 4),
    ("gemma3-27b", True, "v4:2x2x1", 131_072, 4),
    ("gemma3-27b", False, "v5e:4x4", 131_072, 12),
)
STEPS = (  # model, slice, context, rows, most cycles; None: a third of the reference's, which has one chip and one row
    ("gemma3-1b", "v5e:1x1", 4096, 1, None),
    ("gemma3-27b", "v5e:2x4", 8192, 8, 24e6),
)
LONG_CALLS = (("gemma3-27b", "v5e:2x4", 32_768, 2 * GIB),)  # model, slice, tokens in one prefill call, most temporaries
REFERENCE = Path(__file__).with_name("reference_step.py")
GEMMA = "GEMMA_TPU_VERIFY_GEMMA"


@dataclasses.dataclass(frozen=True)
class Bar:
    """One promise and what came of it: `met` is None if there was nothing to compare with."""

    what: str
    bar: str
    figure: str
    met: bool | None


def target(model: str, images: bool, where: str, context: int, rows: int) -> Target:
    config = CONFIGS[model] if images else dataclasses.replace(CONFIGS[model], vision=None)
    return choose_mesh(config, parse_slice(where), rows, context, "bfloat16").candidates[0]


def memory_bars(model: str, images: bool, where: str, context: int, rows: int) -> Iterator[Bar]:
    one = target(model, images, where, context, rows)
    programs = compile_programs(one)
    memory, capacity = total_memory(one, programs), one.chip.hbm
    name = f"{model}{' with vision' * images}, {where}, {context:,} × {rows}, mesh {one.mesh_shape}"
    peaks = ", ".join(f"{program.name} {program.peak / GIB:.2f}" for program in programs)
    peak = memory.total - memory.code
    figure = f"{peak / GIB:.2f} GiB ({peaks})"
    yield Bar(f"{name}: memory", f"≤ {capacity / GIB:.2f} GiB", figure, peak <= capacity)
    yield hlo_bar(name, one, programs[0])


def long_call_bars(model: str, where: str, tokens: int, most: int) -> Iterator[Bar]:
    one = target(model, False, where, tokens, 1)
    (prefill,) = compile_programs(one.replace(chunks=(tokens,)), ["prefill"])  # the engine would make it in chunks
    figure = f"{prefill.temporaries / GIB:.2f} GiB" if prefill.needs is None else "the compiler refuses it"
    met = prefill.needs is None and prefill.temporaries <= most
    yield Bar(
        f"{model}, {where}, prefill of {tokens:,} in one call: temporaries", f"≤ {most / GIB:.2f} GiB", figure, met
    )


def step_bars(model: str, where: str, context: int, rows: int, most: float | None, gemma: str) -> Iterator[Bar]:
    """`gemma`: the interpreter that compiles the reference."""
    one = target(model, False, where, context, rows)
    decode = compile_programs(one, ["decode"])[0]
    name = f"{model}, {where}, {context:,} × {rows}"
    figure = f"{decode.cycles / 1e6:.2f} Mcycles (with top-k and top-p {decode.sampled_cycles / 1e6:.2f})"
    source = ""
    try:
        if most is None:
            reference, packages = reference_cycles(model, where, context, gemma)
            most, source = reference / 3, f", a third of the {reference / 1e6:.2f} of {packages}"
        bar, met = f"≤ {most / 1e6:.2f} Mcycles{source}", 0 < decode.cycles <= most
    except (OSError, RuntimeError) as error:
        bar, met = f"a third of the reference's, which is unknown: {error}", None
    yield Bar(f"{name}: decode step", bar, figure, met)
    yield hlo_bar(name, one, decode)


def reference_cycles(model: str, where: str, context: int, gemma: str) -> tuple[int, str]:
    """Of one step of Google's sampler, with the versions it ran with; OSError or RuntimeError if it cannot be run."""
    if not gemma:
        raise RuntimeError(f"needs --gemma or ${GEMMA}")
    import libtpu  # not before it is needed: without it, compile_programs says what to do

    library = os.environ.get("TPU_LIBRARY_PATH") or libtpu.get_library_path()  # the compiler of both
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"TPU_LIBRARY_PATH": library, "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "step.hlo"
        command = [gemma, str(REFERENCE), model, parse_slice(where).topology, str(context), str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{gemma}: {(done.stderr.strip().splitlines() or [done.returncode])[-1]}")
        hlo = Hlo(file.read_text())
    return hlo.cycles(hlo.step, cheapest=""), done.stdout.strip()


def hlo_bar(name: str, one: Target, decode: Program) -> Bar:
    problems = decode_problems(one, decode)
    shown = "nothing" if not problems else f"{len(problems)}, such as {problems[0]}"
    return Bar(f"{name}: moved for nothing in decode", "nothing", shown, not problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="bars whose name holds this")
    parser.add_argument("--gemma", default=os.environ.get(GEMMA, ""), help=f"interpreter with gemma 3.3 (${GEMMA})")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    failed = 0
    named = [(f"{row[0]} {row[2]}", memory_bars(*row)) for row in FITS]
    named += [(f"{row[0]} {row[1]}", long_call_bars(*row)) for row in LONG_CALLS]
    named += [(f"{row[0]} {row[1]}", step_bars(*row, args.gemma)) for row in STEPS]
    for bar in (bar for name, bars in named if args.only in name for bar in bars):
        failed += not bar.met
        said = {True: "met   ", False: "MISSED", None: "NOT COMPARED"}[bar.met]
        print(f"{said} {bar.what}: {bar.figure}; bar {bar.bar}", flush=True)
    print(f"{failed} missed or not compared")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
