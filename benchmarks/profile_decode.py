"""Where the time of a decode step goes: kernels by name, from the device's own trace, and the time between them.

    python benchmarks/profile_decode.py --model gemma3-4b --rows 1 --quantize int8

Random weights of the real size in bfloat16, or quantised. `--json` prints one line for docs/performance.md.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from decode import GREEDY, begin

from gemma_tpu.bench import random_params
from gemma_tpu.config import CONFIGS
from gemma_tpu.deployment import STEPS_PER_CALL, Deployment
from gemma_tpu.quantization import as_quantization
from gemma_tpu.sharding import make_mesh

CALLS = 4
# What a kernel is for, by its name in the trace; the first that fits.
PARTS = {
    "products": r"gemm|dot|cublas|nvjet|cutlass|splitK|wgmma",
    "attention": r"look_by_block|join_shares|_look|_join|flash|attend",
    "the rest (norms, rotary embedding, sampling)": "",
}


def profile(deployment: Deployment, length: int) -> tuple[dict[str, tuple[float, float]], float]:
    """Of a decode step: microseconds and calls of each kernel, and the microseconds from step to step."""
    runner, step = begin(deployment, random_params(deployment), length, GREEDY)
    for _ in range(2):
        np.asarray(runner.run(step).tokens)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            drawn = [runner.run(step) for _ in range(CALLS)]
            jax.block_until_ready(drawn)
        (trace,) = Path(folder).rglob("*.xplane.pb")
        traced = jax.profiler.ProfileData.from_file(str(trace))
    runner.close()
    events = [
        event
        for plane in traced.planes
        if plane.name.startswith("/device:")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]
    steps = CALLS * STEPS_PER_CALL
    kernels: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        kernels[re.sub(r"_\d+\b|\.\d+", "", event.name)].append(event.duration_ns)
    begins, ends = min(event.start_ns for event in events), max(event.start_ns + event.duration_ns for event in events)
    each = {name: (sum(times) / 1e3 / steps, len(times) / steps) for name, times in kernels.items()}
    return each, (ends - begins) / 1e3 / steps


def by_part(kernels: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Microseconds and calls of each of `PARTS`."""
    found = dict.fromkeys(PARTS, (0.0, 0.0))
    for name, (us, calls) in kernels.items():
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        found[part] = found[part][0] + us, found[part][1] + calls
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(CONFIGS), default="gemma3-4b")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--quantize", choices=["none", "int8", "int4"], default="none")
    parser.add_argument("--context", type=int, default=4096, help="tokens of the cache")
    parser.add_argument("--length", type=int, default=1024, help="tokens in it")
    parser.add_argument("--top", type=int, default=25, help="kernels to show")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    config = dataclasses.replace(CONFIGS[args.model], vision=None)
    more = {"quantization": as_quantization(args.quantize)}
    deployment = Deployment(config, make_mesh(config), args.rows, args.context, jnp.bfloat16, **more)
    kernels, whole = profile(deployment, args.length)
    parts = by_part(kernels)
    between = whole - sum(us for us, _ in kernels.values())
    if args.json:
        said: dict[str, Any] = {
            name: getattr(args, name) for name in ("model", "rows", "quantize", "context", "length")
        }
        said |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "us": whole, "between": between}
        print(json.dumps(said | {"parts": parts}))
        return
    print(f"{args.model}, {args.quantize}, {args.rows} row(s): {whole:,.0f} µs a step, {between:,.0f} of it no kernel")
    print(f"{'µs':>9} {'calls':>7} {'µs each':>8}")
    rows = [*parts.items(), ("", None), *sorted(kernels.items(), key=lambda one: -one[1][0])[: args.top]]
    for name, figures in rows:
        print(
            f"{figures[0]:9.1f} {figures[1]:7.1f} {figures[0] / max(figures[1], 1e-9):8.2f}  {name[:110]}"
            if figures
            else ""
        )


if __name__ == "__main__":
    main()
