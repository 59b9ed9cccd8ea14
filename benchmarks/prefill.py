"""A prompt to its first token, as called, against the rate of matrix products that was measured in the same run.

    python benchmarks/prefill.py --model gemma3-4b --tokens 1024
    python benchmarks/prefill.py --model gemma3-27b --tokens 8192

Random weights in bfloat16, one row, compiled and warm. The operations are those of the matrix products, two for
each weight of the layers and each token, and of attention, four for each pair of a query and a key that it sees, each
query head and each of its dimensions. The rate is that of products of two 8,192 × 8,192 matrices of random numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time

import jax
import jax.numpy as jnp

from gemma_tpu.api import Model
from gemma_tpu.bench import measure, random_params
from gemma_tpu.config import CONFIGS, GemmaConfig
from gemma_tpu.loading import deploy
from gemma_tpu.model import param_shapes

SIDE, PRODUCTS = 8192, 10


def matrix_rate() -> float:
    """Operations per second."""
    x = jax.random.normal(jax.random.key(0), (SIDE, SIDE), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready([product(x, x) for _ in range(PRODUCTS)])
        times.append(time.perf_counter() - start)
    return PRODUCTS * 2 * SIDE**3 / statistics.median(times)


def operations(config: GemmaConfig, tokens: int) -> float:
    """Of a prompt's matrix products, and of attention."""
    weights = sum(math.prod(one.shape) for name, one in param_shapes(config).items() if name.startswith("layers."))
    pairs = 0
    for layer in config.layers:
        window = min(layer.window or tokens, tokens)
        pairs += window * (window + 1) // 2 + (tokens - window) * window
    return 2.0 * weights * tokens + 4.0 * pairs * config.num_heads * config.head_dim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(CONFIGS), default="gemma3-4b")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of the prompt")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = dataclasses.replace(CONFIGS[args.model], vision=None)
    rate = matrix_rate()
    deployment, _ = deploy(config, None, "bfloat16", args.tokens + 64, 1)
    with Model(deployment, random_params(deployment), None) as model:
        shape = {"rows": 1, "prompt": args.tokens, "tokens": 2}
        measure(model, **shape, repeats=1)  # compiles
        first = measure(model, **shape, repeats=args.repeats)[0].value / 1e3
    done = operations(config, args.tokens) / first
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.model}: {args.tokens} tokens to the first token "
        f"in {first * 1e3:.1f} ms, {done / 1e12:.0f} of {rate / 1e12:.0f} TFLOP/s, {done / rate:.0%}"
    )


if __name__ == "__main__":
    main()
