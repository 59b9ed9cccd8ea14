"""Speed as a caller sees it, compiled and warm, of a checkpoint or random weights at real size."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Sharding

from gemma_tpu.api import Model
from gemma_tpu.checkpoint import Checkpoint, CheckpointWarning, open_checkpoint, resolve, stored_quantization
from gemma_tpu.checks import check_integer
from gemma_tpu.config import SOFT_TOKEN, GemmaConfig
from gemma_tpu.deployment import Deployment
from gemma_tpu.distributed.processes import everywhere
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.loading import check_deployment, deploy, load
from gemma_tpu.model.linear import QuantizedWeight, Weight
from gemma_tpu.options import SamplingParams
from gemma_tpu.picture import PlacedImage
from gemma_tpu.quantization import Quantization, as_quantization

_TEXT_AFTER_IMAGE = 20  # tokens
_SHORTEST = 64  # tokens of a prompt
_HOST_COPY = 1 << 28  # bytes, where the device is the host


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One figure, as the median of several runs. `curve` and `at` are its place in `gemma_tpu.bench_plot`."""

    what: str
    value: float
    unit: str
    curve: str | None = None
    at: int | None = None


def random_params(deployment: Deployment) -> dict[str, Weight]:
    """Random weights, made on the mesh leaf by leaf (one program for all leaves compiles for minutes)."""

    def leaf(seed: int, like: Any, scale: float) -> jax.Array:
        return _randomly(like.shape, like.dtype, like.sharding)(seed, scale)

    def weight(name: str, seed: int, like: Any) -> Weight:
        scale = 0.1 if len(like.shape) == 1 else math.prod(like.shape[:-1]) ** -0.5
        if (grid := deployment.grid(name)) is None:
            return leaf(seed, like, scale)
        spread = grid.levels / 3  # nearly all of a normal distribution is within three of these
        scales = _all(like.scales.shape, like.scales.dtype, like.scales.sharding)(scale / spread)
        return QuantizedWeight(leaf(seed, like.values, spread), scales, like.dtype)

    return {name: weight(name, i, like) for i, (name, like) in enumerate(deployment.abstract_params.items())}


@functools.cache  # layers share shapes: a dozen programs make all leaves
def _randomly(shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding | None) -> Callable[[int, float], jax.Array]:
    def make(seed: jax.Array, scale: jax.Array) -> jax.Array:
        values = jax.random.normal(jax.random.key(seed), shape, jnp.float32) * scale
        if jnp.issubdtype(dtype, jnp.integer):
            values = jnp.clip(jnp.round(values), -3 * scale, 3 * scale)
        return values.astype(dtype)

    return jax.jit(make, out_shardings=sharding)


@functools.cache
def _all(shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding | None) -> Callable[[float], jax.Array]:
    return jax.jit(lambda value: jnp.full(shape, value, dtype), out_shardings=sharding)


def measure(model: Model, *, rows: int, prompt: int, tokens: int, repeats: int) -> list[Measurement]:
    """Prefill of `prompt` tokens, decode of `rows` rows after it, both together, and an image to its first token.

    Rows begin one after another, and those that have begun decode between the chunks of the others' prompts. So decode
    is what all rows would make in the time of the last one to begin: rows × (tokens - 1) / (last end - last first
    token). Both together are rows × tokens / (last end - submission).
    """
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
    decode, whole = [], []
    for _ in range(repeats):
        clocks = [request.clock for request in ask(rows, tokens)]
        end = max(clock.finished for clock in clocks)
        decode.append(rows * (tokens - 1) / (end - max(clock.first for clock in clocks)))
        whole.append(rows * tokens / (end - min(clock.submitted for clock in clocks)))
    many = f"{rows} row{'s' * (rows > 1)}"
    results.append(Measurement(f"decode, {many}", statistics.median(decode), "tokens/s", "measured", rows))
    results.append(Measurement(f"prompts and answers, {many}", statistics.median(whole), "tokens/s"))
    if model.config.vision and _image_tokens(model.config) < model.engine.deployment.context:
        times = []
        for _ in range(repeats):
            picture = PIL.Image.fromarray(rng.integers(0, 256, (768, 1024, 3), dtype=np.uint8))
            ids = [
                2,
                *[SOFT_TOKEN] * model.config.vision.num_soft_tokens,
                *rng.integers(4, 99, _TEXT_AFTER_IMAGE).tolist(),
            ]
            start = time.perf_counter()
            image = PlacedImage(1, ImageInput(picture, model.config.vision.image_size))
            for _ in model.engine.submit(ids, [image], SamplingParams(max_new_tokens=1, stop_tokens=())):
                pass
            times.append(time.perf_counter() - start)
        results.append(Measurement("one 1024×768 image to first token", statistics.median(times) * 1e3, "ms"))
    return results


def measure_lengths(model: Model, *, context: int, tokens: int, repeats: int) -> list[Measurement]:
    """Prompts of twice as many tokens each, to the longest that the context holds: to the first token, and each after.

    The first of each length compiles what it needs, and is not counted.
    """
    rng, longest = np.random.default_rng(0), context - tokens
    lengths = [*(n for n in (_SHORTEST << i for i in range(32)) if n < longest), longest]
    results = []
    for length in lengths:
        first, each = [], []
        for _ in range(1 + repeats):
            prompt = rng.integers(4, model.config.vocab_size, length).tolist()
            request = model.engine.submit(prompt, (), SamplingParams(max_new_tokens=tokens, stop_tokens=()))
            for _ in request:
                pass
            first.append(1e3 * request.timings.first_token)
            each.append(1e3 * (request.clock.finished - request.clock.first) / (tokens - 1))
        of = f"{length} tokens"
        results.append(Measurement(f"{of} to first token", statistics.median(first[1:]), "ms", "first", length))
        results.append(Measurement(f"each token after {of}", statistics.median(each[1:]), "ms", "each", length))
    return results


def copy_rate(nbytes: int = 1 << 30) -> float:
    """Bytes per second of a copy on the first device, those read and those written.

    `nbytes`: so large that to start a kernel takes no part of the time, and that no cache holds them.
    """
    x = jnp.ones(nbytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: the first write to new memory takes a host longer
    times = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(4):
            x = copy(x)
        jax.block_until_ready(x)
        times.append(time.perf_counter() - start)
    return 4 * 2 * x.nbytes / min(times)


def floor(deployment: Deployment, length: int, rate: float) -> float:
    """Seconds in which `rate` reads what a decode step reads on each device: weights, and rows of `length` tokens."""
    held = dataclasses.replace(deployment, context=length).memory
    return (held.weights + held.global_cache + held.local_cache) / rate


def _image_tokens(config: GemmaConfig) -> int:
    """Tokens of the prompt with an image; 0 without a vision tower."""
    return 1 + config.vision.num_soft_tokens + _TEXT_AFTER_IMAGE if config.vision else 0


def bench(
    source: GemmaConfig | str,
    *,
    rows: Sequence[int],
    context: int,
    prompt: int,
    tokens: int,
    repeats: int,
    dtype: str = "auto",
    quantize: Quantization | str | None = None,
    kv_cache_dtype: str = "auto",
    mesh: tuple[int, int] | None = None,
    verify: bool = True,
    lengths: bool = False,
) -> Iterator[tuple[int, Measurement]]:
    """Measures a checkpoint, or random weights of a config, with each number of `rows`; yields both as it goes.

    Beside decode stands its floor: what it would make if it read weights, keys and values at the rate of a copy, which
    is measured first; a model that fits into a processor's cache can be faster. `lengths`: also times after prompts of
    several lengths, with the fewest rows.

    A model is loaded with as many rows as are measured, as someone who serves one request at a time would.

    Raises ValueError, before anything is measured, for what cannot be: as `load`, or if the context does not hold
    `prompt` and `tokens`. A warning says so if it does not hold an image, which is then left out.
    """
    for name, value, least in (("prompt", prompt, 1), ("tokens", tokens, 2), ("repeats", repeats, 1)):
        check_integer(name, value, least)
    for max_rows in rows:
        check_deployment(mesh, dtype, context, max_rows, kv_cache_dtype=kv_cache_dtype)
    if prompt + tokens > context:
        raise ValueError(f"prompt {prompt} and tokens {tokens} are more than the context of {context} tokens")
    quantization = as_quantization(quantize)
    if isinstance(source, GemmaConfig):
        config = source
    else:
        checkpoint = _open(source)
        config = checkpoint.config
        quantization = stored_quantization(checkpoint) if quantize is None else quantization
    kinds = {"quantization": quantization, "kv_cache_dtype": kv_cache_dtype}
    deployments = [deploy(config, mesh, dtype, context, max_rows, **kinds)[0] for max_rows in rows]
    if (needed := _image_tokens(config) + 1) > context and config.vision:
        warnings.warn(f"no image is measured: that takes a context of {needed} tokens, not {context}", stacklevel=2)
    rate = copy_rate(*[_HOST_COPY] * (deployments[0].platform == "cpu"))
    for max_rows, deployment in zip(rows, deployments, strict=True):
        if isinstance(source, GemmaConfig):
            model = _random_model(deployment)
        else:
            options = {"mesh": mesh, "dtype": dtype, "quantize": quantize, "verify": verify, "progress": False}
            options["kv_cache_dtype"] = kv_cache_dtype
            model = load(source, max_context=context, max_rows=max_rows, **options)
        shape = {"rows": max_rows, "prompt": prompt, "tokens": tokens}
        with model:
            begin = time.perf_counter()
            measure(model, **shape, repeats=1)  # compiles
            yield max_rows, Measurement("first run, which compiles", time.perf_counter() - begin, "s")
            for measurement in measure(model, **shape, repeats=repeats):
                yield max_rows, measurement
            most = max_rows / floor(deployment, prompt + tokens // 2, rate)
            yield (
                max_rows,
                Measurement(f"floor of decode at {rate / 1e9:.0f} GB/s", most, "tokens/s", "floor", max_rows),
            )
            if lengths and max_rows == min(rows):
                for measurement in measure_lengths(model, context=context, tokens=tokens, repeats=repeats):
                    yield max_rows, measurement


def _open(source: str) -> Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # load gives them again
        return open_checkpoint(resolve(source, progress=False))


def _random_model(deployment: Deployment) -> Model:
    make = functools.partial(random_params, deployment)
    return Model(deployment, everywhere(make, deployment.mesh, make), None)
