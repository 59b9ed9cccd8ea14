"""Where the time of a decode step goes: kernels by name, from the device's own trace.

python benchmarks/profile_decode.py --model gemma3-4b --rows 1
"""

from __future__ import annotations

import argparse
import collections
import re
import tempfile
from pathlib import Path

import jax
import numpy as np

from gemma_tpu.api import Model
from gemma_tpu.bench import random_params
from gemma_tpu.config import CONFIGS
from gemma_tpu.deployment import Deployment
from gemma_tpu.loading import resolve_dtype
from gemma_tpu.options import SamplingParams
from gemma_tpu.sharding import make_mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(CONFIGS), default="gemma3-4b")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--top", type=int, default=25)
    args = parser.parse_args()
    config = CONFIGS[args.model]
    mesh = make_mesh(config)
    dtype, _ = resolve_dtype("auto", mesh)
    deployment = Deployment(config, mesh, args.rows, args.context, dtype)
    model = Model(deployment, random_params(deployment), None)

    def run() -> None:
        prompts = np.random.default_rng(0).integers(4, config.vocab_size, (args.rows, 1024)).tolist()
        options = SamplingParams(max_new_tokens=args.tokens, stop_tokens=())
        for request in [model.engine.submit(prompt, (), options) for prompt in prompts]:
            for _ in request:
                pass

    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(trace))
    total: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for plane in profile.planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                name = re.sub(r"_\d+\b", "", event.name)
                total[name] += event.duration_ns
                count[name] += 1
    print(f"{args.model}, {args.rows} row(s), kernels of one prefill and {args.tokens} decode steps")
    print(f"{'ms':>9} {'calls':>7} {'µs each':>8}  kernel")
    for name, ns in total.most_common(args.top):
        print(f"{ns / 1e6:9.2f} {count[name]:7} {ns / count[name] / 1e3:8.1f}  {name[:110]}")
    print(f"{sum(total.values()) / 1e6:9.2f} ms in all")


if __name__ == "__main__":
    main()
