"""Makes docs/tpu.md: every size on the slices people rent.

    python -m docs.tpu plans.jsonl > docs/tpu.md

Compiling it all takes about two hours on two cores, so finished plans are kept in `plans.jsonl`, and what is there is
not compiled again. Each plan is made in a process of its own: the compiler does not give its memory back.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax

from gemma_tpu.config import CONFIGS
from gemma_tpu.plan.chips import GIB, parse_slice
from gemma_tpu.plan.planner import make_plan
from gemma_tpu.plan.report import as_json, duration, versions
from gemma_tpu.plan.search import choose_mesh

SLICES = ("v4-8", "v5e-1", "v5e-4", "v5e-8", "v5e-16", "v5p-8", "v6e-1", "v6e-8")
DTYPES = ("bfloat16", "float32")
CONTEXT, ROWS = 8192, 8

Key = tuple[str, str, str]  # model, dtype, slice

_INTRODUCTION = """# Gemma 3 on TPU slices

What each size needs on each slice and how fast it may be there, said by the TPU compiler: nothing here was run on a
TPU. Made by `python -m docs.tpu plans.jsonl > docs/tpu.md` with {versions}.

Every plan is for {context:,} tokens × {rows} rows, with the vision tower where there is one. Memory is of each chip:
weights, caches, remembered soft tokens, and what the largest of the toolkit's programs has beside them. Times are
predictions: of a decode step of all rows, and of a prefill call of 1,024 tokens of a row after a full context. The
first figure is the roofline, from peak rates; the second the compiler's, from its estimate of cycles plus the
roofline's time of collectives and of the attention kernels. Loads that run beside the work have no estimate, so the
second can be below the first; no run can be. `gemma-tpu plan` makes such a plan for any other context, number of rows
and slice. Where weights and caches alone are too much, nothing was compiled.
"""


def make(model: str, dtype: str, where: str) -> dict[str, Any]:
    """A row of the table; without compiling where weights and state alone are too much."""
    config, place = CONFIGS[model], parse_slice(where)
    smallest = choose_mesh(config, place, ROWS, CONTEXT, dtype).candidates[-1].deployment.memory
    if smallest.resident > place.chip.hbm:
        return {"fits": False, "total": smallest.resident, "capacity": place.chip.hbm}
    plan = as_json(make_plan(model, config, place, rows=ROWS, context=CONTEXT, dtype=dtype, search=False))
    decode, prefill = plan["predictions"][:2]
    return {
        "fits": plan["fits"],
        "mesh": f"{plan['mesh']['data']}×{plan['mesh']['model']}",
        "total": plan["memory"]["total"],
        "capacity": place.chip.hbm,
        "decode": [decode["roofline_seconds"], decode["compiler_seconds"], decode["bound"]],
        "prefill": [prefill["roofline_seconds"], prefill["compiler_seconds"], prefill["bound"]],
    }


def line(where: str, row: dict[str, Any]) -> str:
    """A line of a table."""
    memory = f"{row['total'] / GIB:.1f} of {row['capacity'] / GIB:.1f} GiB"
    if not row["fits"]:
        least = "at least " if "decode" not in row else ""
        return f"| {where} | {row.get('mesh', '')} | **does not fit**: {least}{memory} | | |"
    cells = [
        f"{duration(roofline)} / {duration(compiler or 0)}, {bound}"
        for roofline, compiler, bound in (row["decode"], row["prefill"])
    ]
    return f"| {where} | {row['mesh']} | {memory} | {cells[0]} | {cells[1]} |"


def make_all(keys: list[Key], jobs: int) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Rows as they are finished."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_on_cpu, max_tasks_per_child=1) as pool:
        pending = {pool.submit(make, *key): key for key in keys}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _on_cpu() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path, help="finished plans, one a line")
    parser.add_argument("--jobs", type=int, default=1, help="plans made at a time, of up to 10 GB each (default: 1)")
    args = parser.parse_args()
    known: dict[Key, dict[str, Any]] = {}
    if args.plans.exists():
        for text in args.plans.read_text().splitlines():
            saved = json.loads(text)
            if saved["versions"] == versions():
                model, dtype, where = saved["key"]
                known[model, dtype, where] = saved["row"]
    missing: list[Key] = [key for key in itertools.product(CONFIGS, DTYPES, SLICES) if key not in known]
    for key, row in make_all(missing, args.jobs):
        known[key] = row
        with args.plans.open("a") as file:
            file.write(json.dumps({"key": key, "versions": versions(), "row": row}) + "\n")
        print(" ".join(key), file=sys.stderr, flush=True)
    made_with = " and ".join(f"{name} {version}" for name, version in versions().items())
    print(_INTRODUCTION.format(versions=made_with, context=CONTEXT, rows=ROWS))
    for model in CONFIGS:
        for dtype in DTYPES:
            print(f"## {model}, {dtype}\n")
            print("| slice | mesh, data × model | memory of each chip | decode step | prefill |\n|---|---|---|---|---|")
            for where in SLICES:
                print(line(where, known[model, dtype, where]))
            print()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
