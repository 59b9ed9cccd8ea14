"""One model on 1, 2, 4 … devices of this host: the same answers in float32, and the time per token in bfloat16.

    python benchmarks/scaling.py --devices 1 2 4 --models gemma3-4b gemma3-12b gemma3-27b --check gemma3-4b

Random weights of the real size, the same for every number of devices. The check generates greedily from a text prompt
and from one with an image, side by side, both past the sliding window, and compares the tokens and the logits of what
was generated with those of the first number of devices; exit 1 if tokens differ, or a logit by more than 1e-4 of the
largest. Then a table of decode: milliseconds per token of one row, and tokens/s of eight.
"""

from __future__ import annotations

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from gemma_tpu.api import Model
from gemma_tpu.bench import measure, random_params
from gemma_tpu.config import CONFIGS, SOFT_TOKEN
from gemma_tpu.runtime.request import ImageInput, Options
from gemma_tpu.sharding import make_mesh

TOLERANCE = 1e-4  # of the largest float32 logit
PROMPT, ANSWER = 1200, 64


def load(name: str, devices: int, dtype: str, rows: int) -> Model:
    config = CONFIGS[name]
    mesh = make_mesh(config, (1, devices), jax.devices()[:devices])
    params = random_params(config, jnp.dtype(dtype), mesh)
    return Model(config, params, None, mesh=mesh, dtype=dtype, max_context=4096, max_rows=rows)


def answers(name: str, devices: int) -> tuple[list[list[int]], np.ndarray]:
    """What two requests generate, and the teacher-forced logits of the first, the text."""
    with load(name, devices, "float32", rows=2) as model:
        rng = np.random.default_rng(0)
        prompts = [rng.integers(4, 1000, count).tolist() for count in (PROMPT, PROMPT - 100)]
        images = []
        if model.config.vision:
            prompts[1][700:700] = [SOFT_TOKEN] * model.config.vision.num_soft_tokens
            picture = PIL.Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8))
            images = [ImageInput(picture, model.config.vision.image_size)]
        options = Options(max_new_tokens=ANSWER, stop_tokens=())
        requests = [model.engine.submit(prompts[0], (), options), model.engine.submit(prompts[1], images, options)]
        for request in requests:
            for _ in request:
                pass
        generated = [request.generated for request in requests]
        logits = model.logits([prompts[0] + generated[0]])
        return generated, np.asarray(logits[0, PROMPT - 1 :])


def check(name: str, counts: list[int]) -> bool:
    expected, reference = answers(name, counts[0])
    good = True
    for devices in counts[1:]:
        found, logits = answers(name, devices)
        same = sum(a == b for a, b in zip(expected, found, strict=True))
        difference = float(np.abs(logits - reference).max() / np.abs(reference).max())
        good &= same == len(expected) and difference <= TOLERANCE
        print(
            f"{name}, float32, {devices} devices against {counts[0]}: {same} of {len(expected)} greedy answers equal, "
            f"max |Δlogit| {difference:.1e} of the largest logit",
            flush=True,
        )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--models", nargs="*", default=["gemma3-4b", "gemma3-12b", "gemma3-27b"], choices=CONFIGS)
    parser.add_argument("--check", choices=CONFIGS, help="compare the answers of this model")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if max(args.devices) > len(jax.devices()):
        parser.error(f"there are {len(jax.devices())} devices here")
    good = check(args.check, args.devices) if args.check else True
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, bfloat16, cache 4096, after 1024 tokens", flush=True)
    print("| model | devices | one row, ms per token | eight rows, tokens/s |\n|---|---|---|---|", flush=True)
    for name in args.models:
        for devices in args.devices:
            rates = []
            for rows in (1, 8):
                with load(name, devices, "bfloat16", rows) as model:
                    shape = {"rows": rows, "prompt": 1024, "tokens": 256}
                    measure(model, **shape, repeats=1)  # compiles
                    found = measure(model, **shape, repeats=args.repeats)
                rates.append(next(one.value for one in found if one.what.startswith("decode")))
            print(f"| {name} | {devices} | {1e3 / rates[0]:.2f} | {rates[1]:,.0f} |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
