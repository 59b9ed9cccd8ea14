"""Decode steps by themselves, for each width of the weights, against the time that reading the weights takes.

    python benchmarks/decode.py --models gemma3-4b gemma3-27b --rows 1 8 32 --quantize none int8 int4
    python benchmarks/decode.py --models gemma3-4b --rows 1 8 32 --quantize none --gemma PYTHON

Random weights of the real size in bfloat16. Prints for each row: milliseconds a step of greedy rows, and of rows that
sample as Gemma's own settings have it; tokens/s; the share of the floor, which is the bytes of the weights and of the
keys and values that are held, over the rate of a copy, bytes read and written, that was measured before; and how many
times as fast as unquantised weights.

--gemma: before that, in the same run, Google's sampler with as many rows, as long a cache and prompts of --length
tokens (benchmarks/google_sampler.py): the time of 129 tokens less that of one, over 128.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gemma_tpu.bench import copy_rate, floor, random_params
from gemma_tpu.config import CONFIGS, GemmaConfig
from gemma_tpu.deployment import STEPS_PER_CALL, Deployment
from gemma_tpu.engine.runner import Runner
from gemma_tpu.engine.step import Decode, PageOwners, Step, activate
from gemma_tpu.model.params import Params
from gemma_tpu.options import SamplingParams
from gemma_tpu.quantization import as_quantization
from gemma_tpu.sharding import make_mesh

CALLS = 8
SAMPLED = 128  # tokens of Google's sampler
GREEDY, USUAL = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, top_k=64, top_p=0.95)


def begin(deployment: Deployment, params: Params, length: int, options: SamplingParams) -> tuple[Runner, Step]:
    """A runner whose rows all hold `length` tokens, and a step that decodes STEPS_PER_CALL more of each."""
    runner, rows = Runner(deployment, params, max_steps=STEPS_PER_CALL), deployment.rows
    runner.reset()
    row, start = np.full(deployment.pages, -1, np.int32), np.zeros(deployment.pages, np.int32)
    own = deployment.pages // rows
    row[: rows * own] = np.repeat(np.arange(rows), own)
    start[: rows * own] = np.tile(np.arange(own) * deployment.page, rows)
    left = deployment.context - length
    runner.run(Step(activate=tuple(activate(place, length, 2, left, options, ()) for place in range(rows))))
    return runner, Step(decode=Decode(tuple(range(rows)), STEPS_PER_CALL, PageOwners(row, start), None))


def step_seconds(
    deployment: Deployment, params: Params, length: int, options: SamplingParams, repeats: int = 3
) -> float:
    """Seconds of a decode step of all rows, from `length` tokens on. Calls follow each other as the engine's do."""
    runner, step = begin(deployment, params, length, options)
    times, last = [], runner.run(step)
    for _ in range(1 + repeats):  # the first is not at full speed yet
        np.asarray(last.tokens)
        start = time.perf_counter()
        for _ in range(CALLS):
            before, last = last, runner.run(step)
            np.asarray(before.tokens)
        np.asarray(last.tokens)
        times.append((time.perf_counter() - start) / CALLS / STEPS_PER_CALL)
    runner.close()
    return statistics.median(times[1:])


def google(python: str, config: GemmaConfig, rows: Sequence[int], context: int, length: int) -> dict[int, float]:
    """Seconds of a step of Google's sampler with each number of rows."""
    asked = {"config": dataclasses.asdict(config), "dtype": "bfloat16", "checkpoint": None}
    asked |= {"context": context, "new": SAMPLED + 1}
    prompt = [2, *(10 + i % 1000 for i in range(length - 1))]
    levels = [{"in_flight": n, "prompts": [prompt] * n, "new": new} for n in rows for new in (1, SAMPLED + 1)]
    command = [python, str(Path(__file__).with_name("google_sampler.py"))]
    lines = "\n".join(map(json.dumps, [asked, *levels]))
    said = subprocess.run(command, input=lines, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = list(map(json.loads, said.splitlines()))
    whole = {(one["in_flight"], level["new"]): one for one, level in zip(found, levels, strict=True)}
    if short := [key for key, one in whole.items() if one["batch"] < key[0]]:
        raise SystemExit(f"Google's sampler has no room for {sorted({rows for rows, _ in short})} rows")
    return {n: (whole[n, SAMPLED + 1]["seconds"] - whole[n, 1]["seconds"]) / SAMPLED for n in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gemma3-4b"], choices=CONFIGS)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--quantize", nargs="+", default=["none", "int8", "int4"], choices=["none", "int8", "int4"])
    parser.add_argument("--context", type=int, default=4096, help="tokens of the caches")
    parser.add_argument("--length", type=int, default=1024, help="tokens in them when the clock starts")
    parser.add_argument("--gemma", help="interpreter with gemma 3.3")
    args = parser.parse_args()
    theirs = {}
    for model in args.models if args.gemma else ():
        config = dataclasses.replace(CONFIGS[model], vision=None)
        theirs[model] = google(args.gemma, config, args.rows, args.context, args.length)
    rate = copy_rate()
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, a copy at {rate / 1e9:,.0f} GB/s, cache {args.context}")
    columns = ("model", "weights", "rows", "ms, greedy", "ms, top-k 64 and top-p 0.95")
    columns += ("tokens/s", "of the floor", "× none")
    columns += ("ms, Google's", "× Google's") if theirs else ()
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for model in args.models:
        config = dataclasses.replace(CONFIGS[model], vision=None)
        whole: dict[int, float] = {}
        for width in args.quantize:
            params, quantization = None, as_quantization(width)
            for rows in args.rows:
                deployment = Deployment(
                    config, make_mesh(config), rows, args.context, jnp.bfloat16, quantization=quantization
                )
                params = params or random_params(deployment)
                greedy, usual = (step_seconds(deployment, params, args.length, one) for one in (GREEDY, USUAL))
                if width == "none":
                    whole[rows] = greedy
                least = floor(deployment, args.length, rate)
                faster = f"{whole[rows] / greedy:.2f}" if rows in whole else "–"
                figures = f"{greedy * 1e3:.2f} | {usual * 1e3:.2f} | {rows / greedy:,.0f} | {least / greedy:.0%}"
                if theirs:
                    faster += f" | {theirs[model][rows] * 1e3:.2f} | {theirs[model][rows] / greedy:.2f}"
                print(f"| {model} | {width} | {rows} | {figures} | {faster} |", flush=True)
            del params


if __name__ == "__main__":
    main()
