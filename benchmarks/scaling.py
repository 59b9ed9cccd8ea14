"""One model on 1, 2, 4 … devices of this host: the same answers in float32, and the time per token in bfloat16.

    python benchmarks/scaling.py --devices 1 2 4 --models gemma3-4b gemma3-12b gemma3-27b --check gemma3-4b

Random weights of the real size, the same for every number of devices. The check generates greedily from a text prompt
and from one with an image, side by side, both past the sliding window, and compares the tokens and the logits of what
was generated with those of the first number of devices; then soft tokens in bfloat16, whose attention is another kernel
on GPUs. Exit 1 if tokens differ, a logit by more than 1e-4 of the largest, or a soft token by more than 5e-2 of the
largest. Then a table of the decode program by itself: milliseconds per token of one row, tokens/s of eight, and the
largest array that a step sends between devices: the logits (rows × vocabulary, if it samples), not a weight.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from decode import CALLS, step_seconds
from jax.sharding import NamedSharding, PartitionSpec

from gemma_tpu.api import Model
from gemma_tpu.bench import random_params
from gemma_tpu.cache.layer import Pages
from gemma_tpu.config import CONFIGS, SOFT_TOKEN
from gemma_tpu.deployment import STEPS_PER_CALL, Deployment
from gemma_tpu.engine import programs
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.options import SamplingParams
from gemma_tpu.picture import PlacedImage
from gemma_tpu.plan.hlo import COLLECTIVES, Hlo
from gemma_tpu.sharding import make_mesh

TOLERANCE, ROUNDED = 1e-4, 5e-2  # of the largest float32 logit, of the largest bfloat16 soft token
PROMPT, ANSWER = 1200, 64
CONTEXT = 4096
ROWS = 1, 8


def load(name: str, devices: int, dtype: str, rows: int) -> Model:
    config = CONFIGS[name]
    mesh = make_mesh(config, (1, devices), jax.devices()[:devices])
    deployment = Deployment(config, mesh, rows, CONTEXT, dtype)
    return Model(deployment, random_params(deployment), None)


def answers(name: str, devices: int) -> tuple[list[list[int]], np.ndarray]:
    """What two requests generate, and the teacher-forced logits of the first, the text."""
    print(f"{name} on {devices} answers …", file=sys.stderr, flush=True)  # for minutes there is nothing else to see
    with load(name, devices, "float32", rows=2) as model:
        rng = np.random.default_rng(0)
        prompts = [rng.integers(4, 1000, count).tolist() for count in (PROMPT, PROMPT - 100)]
        images = []
        if model.config.vision:
            prompts[1][700:700] = [SOFT_TOKEN] * model.config.vision.num_soft_tokens
            picture = PIL.Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8))
            images = [PlacedImage(700, ImageInput(picture, model.config.vision.image_size))]
        options = SamplingParams(max_new_tokens=ANSWER, stop_tokens=())
        requests = [model.engine.submit(prompts[0], (), options), model.engine.submit(prompts[1], images, options)]
        for request in requests:
            for _ in request:
                pass
        generated = [request.generated for request in requests]
        logits = model.logits([prompts[0] + generated[0]])
        return generated, np.asarray(logits[0, PROMPT - 1 :])


def soft_tokens(name: str, devices: int) -> np.ndarray:
    picture = np.random.default_rng(1).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    with load(name, devices, "bfloat16", rows=1) as model:
        return np.asarray(model.encode_images([picture]))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check(name: str, counts: list[int]) -> bool:
    expected, reference = answers(name, counts[0])
    soft = soft_tokens(name, counts[0]) if CONFIGS[name].vision else None
    good = True
    for devices in counts[1:]:
        found, logits = answers(name, devices)
        same = sum(a == b for a, b in zip(expected, found, strict=True))
        difference = distance(logits, reference)
        good &= same == len(expected) and difference <= TOLERANCE
        line = (
            f"{name}, {devices} devices against {counts[0]}: {same} of {len(expected)} greedy float32 answers equal, "
            f"max |Δlogit| {difference:.1e} of the largest"
        )
        if soft is not None:
            rounded = distance(soft_tokens(name, devices), soft)
            good &= rounded <= ROUNDED
            line += f"; bfloat16 soft tokens within {rounded:.1e} of the largest"
        print(line, flush=True)
    return good


def compiled_decode(deployment: Deployment) -> str:
    whole = NamedSharding(deployment.mesh, PartitionSpec())

    def ints(size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size,), jnp.int32, sharding=whole)

    arrays = deployment.abstract_params, deployment.abstract_state, None, ints(deployment.rows)
    pages = Pages(ints(deployment.pages), ints(deployment.pages))
    lowered = programs.decode.lower(*arrays, pages, deployment=deployment, max_steps=STEPS_PER_CALL)
    return lowered.compile().as_text()


def measure(name: str, devices: int, context: int, length: int, repeats: int) -> str:
    """A line of the table."""
    config = dataclasses.replace(CONFIGS[name], vision=None)
    mesh = make_mesh(config, (1, devices), jax.devices()[:devices])
    params = random_params(Deployment(config, mesh, max(ROWS), context, "bfloat16"))
    seconds, sent = [], 0
    for rows in ROWS:
        deployment = Deployment(config, mesh, rows, context, "bfloat16")
        seconds.append(step_seconds(deployment, params, length, SamplingParams(), repeats))
        # Also those inside fusions, where XLA for GPUs puts the small ones.
        lines = itertools.chain(*Hlo(compiled_decode(deployment)).computations.values())
        collectives = [one for one in lines if one.op.removesuffix("-start") in COLLECTIVES]
        sent = max([sent, *(array.nbytes for one in collectives for array in one.results)])
    one, eight = seconds
    return f"| {name} | {devices} | {1e3 * one:.2f} | {ROWS[1] / eight:,.0f} | {sent / 2**20:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--models", nargs="*", default=["gemma3-4b", "gemma3-12b", "gemma3-27b"], choices=CONFIGS)
    parser.add_argument("--check", choices=CONFIGS, help="compare the answers of this model")
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens of the caches of the table")
    parser.add_argument("--length", type=int, default=1024, help="tokens in them when the clock starts")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if max(args.devices) > len(jax.devices()):
        parser.error(f"there are {len(jax.devices())} devices here")
    if args.length + (1 + args.repeats) * CALLS * STEPS_PER_CALL > args.context:
        parser.error(f"{args.context} tokens of cache are too few to start from {args.length}")
    good = check(args.check, args.devices) if args.check else True
    caches = f"cache {args.context}, from {args.length} tokens on"
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, bfloat16, {caches}")
    print("| model | devices | one row, ms per token | eight rows, tokens/s | largest collective, MiB |")
    print("|---|---|---|---|---|", flush=True)
    for name in args.models:
        for devices in args.devices:
            print(measure(name, devices, args.context, args.length, args.repeats), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
