"""Where the time of a decode step goes: kernels by name, from the device's own trace, and the time between them.

    python benchmarks/profile_decode.py --model gemma3-4b --rows 1 --quantize int8

Random weights of the real size in bfloat16, or quantised; greedy rows.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from decode import GREEDY, begin, step_seconds

from gemma_tpu.bench import random_params
from gemma_tpu.config import CONFIGS
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine.step import Step
from gemma_tpu.model import Params
from gemma_tpu.quantization import as_quantization
from gemma_tpu.sharding import make_mesh

CALLS = 4
# What a kernel is for, by its name in the trace; the first that fits.
PARTS = {
    "products": r"gemm|dot|int4_product|split_rows|cublas|nvjet|cutlass|splitK|wgmma",
    "attention": r"look_by_block|join_shares|_look|_join|flash|attend",
    "the rest (norms, rotary embedding, sampling)": "",
}


def profile(deployment: Deployment, params: Params, length: int) -> dict[str, tuple[float, float]]:
    """Of a decode step: microseconds and calls of each kernel.

    Of calls of one step each: of a loop in a CUDA graph, the trace has the first turn alone.
    """
    runner, step = begin(deployment, params, length, GREEDY)
    assert step.decode
    one = Step(decode=dataclasses.replace(step.decode, steps=1))
    for _ in range(2):
        np.asarray(runner.run(one).tokens)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready([runner.run(one) for _ in range(CALLS)])
        (trace,) = Path(folder).rglob("*.xplane.pb")
        traced = jax.profiler.ProfileData.from_file(str(trace))
    runner.close()
    kernels: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
    for plane in traced.planes:
        for line in plane.lines if plane.name.startswith("/device:") else ():
            for event in line.events if line.name.startswith("Stream") else ():
                kernels[re.sub(r"_(\d+\b|$)|\.\d+", "", event.name)].append(event.duration_ns)
    return {name: (sum(times) / 1e3 / CALLS, len(times) / CALLS) for name, times in kernels.items()}


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
    parser.add_argument("--top", type=int, default=12, help="kernels to show")
    args = parser.parse_args()
    config = dataclasses.replace(CONFIGS[args.model], vision=None)
    quantization = as_quantization(args.quantize)
    mesh = make_mesh(config)
    deployment = Deployment(config, mesh, args.rows, args.context, jnp.bfloat16, quantization=quantization)
    params = random_params(deployment)
    whole = step_seconds(deployment, params, args.length, GREEDY) * 1e6
    kernels = profile(deployment, params, args.length)
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, {args.model}, {args.quantize}, {args.rows} row(s), cache {args.context}")
    print(f"| of a step, {whole:,.0f} µs in all | µs | kernels | µs each |")
    print("|---|---|---|---|")
    between = whole - sum(us for us, _ in kernels.values())
    rows = [*by_part(kernels).items(), ("no kernel", (between, 0.0))]
    rows += sorted(kernels.items(), key=lambda one: -one[1][0])[: args.top]
    for name, (us, calls) in rows:
        each = f"{us / calls:.2f}" if calls else ""
        print(f"| {name[:60]} | {us:,.0f} | {calls:,.0f} | {each} |")


if __name__ == "__main__":
    main()
