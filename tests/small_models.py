"""Small random models for tests."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gemma_tpu.config import SOFT_TOKEN, GemmaConfig, VisionConfig, gemma3_layers
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.engine.step import Step
from gemma_tpu.model import Params, as_draft, param_shapes
from gemma_tpu.model.linear import QuantizedWeight, Weight
from gemma_tpu.picture import PlacedImage
from gemma_tpu.sharding import make_mesh, param_sharding

# The window of 8 wraps soon. A local layer and a global one: XLA compiles each layer anew.
TEXT = GemmaConfig(
    vocab_size=64,
    embed_dim=32,
    hidden_dim=64,
    layers=gemma3_layers(7, window=8)[4:6],
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    query_scale=0.3,
    max_context=512,
)
# It has fewer tokens, and guesses right now and then (`near`).
DRAFT = dataclasses.replace(TEXT, vocab_size=60, layers=gemma3_layers(7, window=5)[4:6])
VISION = VisionConfig(width=32, depth=2, mlp_dim=48, num_heads=8, image_size=56, num_soft_tokens=4)


def config_of(values: dict[str, Any], **others: Any) -> GemmaConfig:
    """The config of one of tests/reference/models.py; `others` are what those do not say."""
    values = values | {"vision": VisionConfig(**values["vision"]) if values["vision"] else None}
    layers, window, scale = (values.pop(name) for name in ("num_layers", "sliding_window", "global_rope_scale"))
    assert (values.pop("local_rope_base"), values.pop("global_rope_base")) == (10_000, 1_000_000)
    return GemmaConfig(**values, layers=gemma3_layers(layers, window=window, rope_scale=scale), **others)


@functools.cache
def random_params(config: GemmaConfig, seed: int = 0) -> dict[str, jax.Array]:
    """Every parameter random, norm scales and biases too; large enough that greedy choices vary.

    Embeddings are smaller, or a few layers would not add enough to the last token's to have another one follow it.
    """
    rng = np.random.default_rng(seed)

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array:
        std = 0.1 if name == "embedder.table" else 0.5 if len(shape) == 1 else 0.25
        turned = re.fullmatch(r"layers\.\d+\.mlp\.down", name)  # of numbers with which greedy choices do vary
        drawn = rng.standard_normal(shape[::-1]).T if turned else rng.standard_normal(shape)
        return jnp.asarray(drawn * std, jnp.float32)

    return {name: leaf(name, struct.shape) for name, struct in sorted(param_shapes(config).items())}


def near(params: Params, config: GemmaConfig = DRAFT) -> dict[str, jax.Array]:
    """Parameters of a draft model for those of another: the same to about a tenth, as far as it has any."""

    def one(noise: jax.Array, like: jax.Array) -> jax.Array:
        like = like[: len(noise)]
        return (0.1 * noise).at[: len(like)].add(like)

    return {name: one(noise, jnp.asarray(params[name])) for name, noise in random_params(config).items()}


def quantized(params: Params) -> dict[str, Weight]:
    """int8 in place of every weight that is multiplied by or looked up, with a scale for each output channel."""
    # Weights whose last dimension is summed over; of the others it is the output.
    last = re.compile(r"embedder\.|qkv$|gate_up$|^layers\.\d+\.mlp\.down$")

    def one(name: str, value: jax.Array) -> Weight:
        if name.endswith(("scale", "bias", "positions")):
            return value
        summed = (value.ndim - 1,) if last.search(name) else tuple(range(value.ndim - 1))
        scales = jnp.max(jnp.abs(value), axis=summed, keepdims=True) / 127
        return QuantizedWeight(jnp.round(value / scales).astype(jnp.int8), scales, value.dtype)

    return {name: one(name, value) for name, value in params.items()}


def whole(weight: Weight) -> jax.Array:
    """The float32 weight that a quantised one stands for."""
    return weight.values * weight.scales if isinstance(weight, QuantizedWeight) else weight


def mesh_of(data: int, model: int, config: GemmaConfig = TEXT) -> Mesh:
    return make_mesh(config, (data, model), jax.devices()[: data * model])


def make_deployment(
    config: GemmaConfig,
    mesh: Mesh | None = None,
    *,
    max_context: int = 192,
    max_rows: int = 1,
    chunks: Sequence[int] | None = None,
    **options: Any,
) -> Deployment:
    """In float32, on one device unless a mesh is given. `options`: of `Deployment`."""
    return Deployment(config, mesh or mesh_of(1, 1), max_rows, max_context, jnp.float32, chunks, **options)


def make_engine(config: GemmaConfig, mesh: Mesh | None = None, params: Params | None = None, **options: Any) -> Engine:
    """`options`: of `make_deployment` and `Engine`. A draft model is `near` the model."""
    mesh, params = mesh or mesh_of(1, 1), params or random_params(config)

    def on_mesh(params: Params) -> dict[str, Weight]:
        def put(name: str, weight: Weight) -> Weight:
            return jax.tree.map(lambda part: jax.device_put(part, param_sharding(name, part.shape, mesh)), weight)

        return {name: put(name, weight) for name, weight in params.items()}

    draft = options.get("draft")
    params = on_mesh(params) | (as_draft(on_mesh(near(params, draft))) if draft else {})
    shape: dict[str, Any] = {"max_context": 128, "max_rows": 4, "chunks": (8, 16), "draft_tokens": 0, "draft": None}
    shape |= {"cache_tokens": None, "stored_prefixes": 0, "kv_cache_dtype": "auto"}
    shape |= {name: options.pop(name) for name in shape.keys() & options.keys()}
    options = {"steps_per_call": 4} | options
    return Engine(make_deployment(config, mesh, **shape), params, **options)


def placed(tokens: list[int], shown: list[ImageInput]) -> list[PlacedImage[ImageInput]]:
    """Images at the soft tokens of a prompt, which do not touch."""
    starts = [i for i, token in enumerate(tokens) if token == SOFT_TOKEN and tokens[i - 1] != SOFT_TOKEN]
    return [PlacedImage(start, image) for start, image in zip(starts, shown, strict=True)]


class Gate:
    """Holds an engine's answers at `tokens` tokens each, until one is cancelled or late or the engine is closed.

    What a test does before an answer ends is then done in time on a machine of any speed. A call that is under way
    still adds its tokens. With `pause`, a call is held for so many seconds only.
    """

    def __init__(self, engine: Engine, tokens: float, pause: float) -> None:
        self.tokens, self._pause = tokens, pause
        self._engine, self._run = engine, engine._runner.run

    def run(self, step: Step) -> jax.Array | None:
        until = time.monotonic() + self._pause
        while step.decode and self._holds() and time.monotonic() < until:
            time.sleep(0.001)
        return self._run(step)

    def _holds(self) -> bool:
        scheduler = self._engine._scheduler
        running, waiting = [row.request for row in scheduler.rows if row.request], list(scheduler.waiting)
        now = self._engine._loop._clock()
        if self._engine._closed or any(request.ended_early(now) for request in running + waiting):
            return False  # it ends once the next step is planned
        if waiting and len(running) < len(scheduler.rows):
            return False  # it is given a row once the next step is planned
        return all(len(request.generated) >= self.tokens for request in running)


@contextlib.contextmanager
def gated(engine: Engine, tokens: float = 16, pause: float = math.inf) -> Iterator[Gate]:
    """By default, at as many tokens as surely have some text."""
    gate = Gate(engine, tokens, pause)
    with mock.patch.object(engine._runner, "run", gate.run):
        try:
            yield gate
        finally:
            gate.tokens = math.inf
