"""`gemma-tpu bench`: speed as a caller sees it, compiled and warm, of a checkpoint or random weights at real size."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Sharding

from gemma_tpu.api import Model
from gemma_tpu.cli.arguments import add_verify_argument, mesh_shape
from gemma_tpu.config import CONFIGS, SOFT_TOKEN
from gemma_tpu.deployment import Deployment
from gemma_tpu.devices import available_devices
from gemma_tpu.distributed.processes import everywhere
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.loading import load, resolve_dtype
from gemma_tpu.options import SamplingParams
from gemma_tpu.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One figure, as the median of several runs."""

    what: str
    value: float
    unit: str


def random_params(deployment: Deployment) -> dict[str, jax.Array]:
    """Random weights, made on the mesh leaf by leaf (one program for all leaves compiles for minutes)."""

    def leaf(seed: int, like: jax.ShapeDtypeStruct) -> jax.Array:
        scale = 0.1 if like.ndim == 1 else math.prod(like.shape[:-1]) ** -0.5
        return _randomly(like.shape, like.dtype, like.sharding)(seed, scale)

    return {name: leaf(i, like) for i, (name, like) in enumerate(deployment.abstract_params.items())}


@functools.cache  # layers share shapes: a dozen programs make all leaves
def _randomly(shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding | None) -> Callable[[int, float], jax.Array]:
    def make(seed: jax.Array, scale: jax.Array) -> jax.Array:
        return (jax.random.normal(jax.random.key(seed), shape, jnp.float32) * scale).astype(dtype)

    return jax.jit(make, out_shardings=sharding)


def measure(model: Model, *, rows: int, prompt: int, tokens: int, repeats: int) -> list[Measurement]:
    """Prefill of `prompt` tokens, decode of `rows` rows after it, and an image to its first token."""
    rng = np.random.default_rng(0)
    results = []

    def ask(count: int, new: int) -> list:
        prompts = [rng.integers(4, model.config.vocab_size, prompt).tolist() for _ in range(count)]
        requests = [model.engine.submit(p, (), SamplingParams(max_new_tokens=new, stop_tokens=())) for p in prompts]
        for request in requests:
            for _ in request:
                pass
        return requests

    first = statistics.median(ask(1, 1)[0].timings.first_token for _ in range(repeats))
    results.append(Measurement(f"{prompt} tokens to first token", first * 1e3, "ms"))
    rates = []
    for _ in range(repeats):
        requests = ask(rows, tokens)
        # From the first token of the first row to the last of the last, so a late start of a row counts against us.
        begin = min(request.clock.first for request in requests)
        end = max(request.clock.finished for request in requests)
        rates.append(sum(len(request.generated) - 1 for request in requests) / (end - begin))
    results.append(Measurement(f"decode, {rows} row{'s' * (rows > 1)}", statistics.median(rates), "tokens/s"))
    if model.config.vision:
        times = []
        for _ in range(repeats):
            picture = PIL.Image.fromarray(rng.integers(0, 256, (768, 1024, 3), dtype=np.uint8))
            ids = [2, *[SOFT_TOKEN] * model.config.vision.num_soft_tokens, *rng.integers(4, 99, 20).tolist()]
            start = time.perf_counter()
            image = ImageInput(picture, model.config.vision.image_size)
            for _ in model.engine.submit(ids, [image], SamplingParams(max_new_tokens=1, stop_tokens=())):
                pass
            times.append(time.perf_counter() - start)
        results.append(Measurement("one 1024×768 image to first token", statistics.median(times) * 1e3, "ms"))
    return results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", choices=sorted(CONFIGS), help="random weights of this size")
    source.add_argument("--checkpoint", help="a checkpoint, as load() takes it")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="batch sizes to decode at (default: 1 8)")
    parser.add_argument("--context", type=int, default=4096, help="cache length in tokens (default: 4096)")
    parser.add_argument("--prompt", type=int, default=1024, help="prompt length in tokens (default: 1024)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens to decode (default: 256)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--mesh", type=mesh_shape, metavar="DATA,MODEL", help="default: 1, all devices")
    add_verify_argument(parser)
    parser.add_argument("--json", action="store_true")


def main(args: argparse.Namespace) -> int:
    devices = available_devices()
    results = []
    # A model is loaded with as many rows as are measured, as someone who serves one request at a time would.
    for rows in args.rows:
        if args.model:
            config = CONFIGS[args.model]
            mesh = make_mesh(config, args.mesh)
            dtype, _ = resolve_dtype(args.dtype, mesh)
            deployment = Deployment(config, mesh, rows, args.context, dtype)
            make = functools.partial(random_params, deployment)
            model = Model(deployment, everywhere(make, mesh, make), None)
        else:
            options = {"max_context": args.context, "max_rows": rows, "verify": args.verify, "progress": False}
            model = load(args.checkpoint, mesh=args.mesh, dtype=args.dtype, **options)
        shape = {"rows": rows, "prompt": args.prompt, "tokens": args.tokens}
        with model:
            begin = time.perf_counter()
            measure(model, **shape, repeats=1)  # compiles
            compiled = Measurement("first run, which compiles", time.perf_counter() - begin, "s")
            found = [compiled, *measure(model, **shape, repeats=args.repeats)]
        for m in found:
            print(f"  max_rows {rows}: {m.what:36} {m.value:10.1f} {m.unit}", flush=True, file=sys.stderr)
        results += [{"rows": rows, **dataclasses.asdict(m)} for m in found]
    name = args.model or args.checkpoint
    report = {
        "model": name,
        "device": f"{len(devices)} × {devices[0].device_kind}",
        "jax": jax.__version__,
        "context": args.context,
        "results": results,
    }
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"{name} on {report['device']}, jax {jax.__version__}, cache {args.context}, median of {args.repeats}")
    for m in results:
        print(f"  max_rows {m['rows']}: {m['what']:36} {m['value']:10.1f} {m['unit']}")
    return 0


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(_parser)
    sys.exit(main(_parser.parse_args()))
