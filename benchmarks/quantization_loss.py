"""What rounding weights, or keys and values, does to a model's predictions: KL divergence from those of float32.

    python benchmarks/quantization_loss.py --model gemma3-270m

Random weights of the real size, of which each product keeps the variance; logits of a standard deviation of about 2.
Trained weights have outliers that these lack. "groups of 32" is llama.cpp's Q4_0, as in Google's QAT files, and "int8
of these" what `quantize="int8"` makes of such a checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gemma_tpu.config import CONFIGS, GemmaConfig
from gemma_tpu.engine.forward import forward
from gemma_tpu.model import param_shapes, text_model
from gemma_tpu.model.linear import QuantizedWeight, Weight
from gemma_tpu.ops.int8 import to_int8
from gemma_tpu.ops.masks import attend, attention_mask
from gemma_tpu.quantization import Grid, Quantization, quantize

EVERY = Quantization("int8", "int8")
Rounding = Callable[[np.ndarray, str, Grid], Weight]


def random_weights(config) -> dict[str, np.ndarray]:
    rng, weights = np.random.default_rng(0), {}
    for name, like in param_shapes(config).items():
        grid = EVERY.grid(name, "cpu")
        summed = math.prod(like.shape[axis] for axis in grid.summed) if grid else 0
        deviation = 0.1 if grid is None else (2 if name.startswith("embedder.") else 1) * summed**-0.5
        weights[name] = rng.standard_normal(like.shape, np.float32) * np.float32(deviation)
    return weights


def by_channel(width: str) -> Rounding:
    def rounded(weight: np.ndarray, name: str, _: Grid) -> Weight:
        grid = Quantization(width).grid(name, "cpu")
        assert grid
        values, scales = quantize(weight, grid)
        return QuantizedWeight(jnp.asarray(values), jnp.asarray(scales), jnp.dtype("float32"))

    return rounded


def in_groups(weight: np.ndarray, name: str, grid: Grid) -> np.ndarray:
    """On the grid of Q4_0, groups along what a product sums over. Embeddings stay as they are."""
    if name.startswith("embedder."):
        return weight
    first = [axis for axis in range(weight.ndim) if axis not in grid.summed]
    turned = weight.transpose(*first, *grid.summed)
    groups = turned.reshape(-1, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1, keepdims=True), 1)
    scales = (largest / -8).astype(np.float16).astype(np.float32)
    stored = np.clip(np.trunc(groups / scales + 8.5), 0, 15) - 8
    return (stored * scales).reshape(turned.shape).transpose(np.argsort((*first, *grid.summed)))


FORMS: dict[str, Rounding] = {
    "bfloat16": lambda weight, _, __: jnp.asarray(weight, jnp.bfloat16),
    "int8": by_channel("int8"),
    "int4, embeddings int8": by_channel("int4"),
    "groups of 32, 4 bits": lambda weight, name, grid: jnp.asarray(in_groups(weight, name, grid)),
    "int8 of these": lambda weight, name, grid: by_channel("int8")(in_groups(weight, name, grid), name, grid),
}


def with_int8_cache(config: GemmaConfig, params: dict[str, Weight], tokens: np.ndarray) -> jax.Array:
    """Logits where every key and value is as such a cache holds it."""
    model, position = text_model(config, params), jnp.arange(tokens.shape[1])[None]

    def attend_layer(layer: int, query: jax.Array, *kept: jax.Array) -> jax.Array:
        key, value = (to_int8(jnp.moveaxis(x, 1, 2)) for x in kept)
        mask = attention_mask(position, position, window=config.layers[layer].window)
        return attend(query, key.values * key.scales[..., None], value.values * value.scales[..., None], mask)

    return model.embedder.decode(model(model.embed(jnp.asarray(tokens)), position, attend_layer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONFIGS, default="gemma3-270m")
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    config = dataclasses.replace(CONFIGS[args.model], vision=None)
    weights = random_weights(config)
    tokens = np.random.default_rng(1).integers(4, config.vocab_size, (1, args.tokens))

    def predicted(rounded: Rounding, dtype: str = "float32", run: Callable[..., jax.Array] = forward) -> np.ndarray:
        params: dict[str, Weight] = {}
        for name, weight in weights.items():
            grid = EVERY.grid(name, "cpu")
            params[name] = rounded(weight, name, grid) if grid else jnp.asarray(weight, dtype)
        return np.asarray(jax.nn.log_softmax(run(config, params, tokens)[0]), np.float64)

    def show(form: str, found: np.ndarray) -> None:
        divergence = (np.exp(exact) * (exact - found)).sum(axis=-1)
        same = (exact.argmax(axis=-1) == found.argmax(axis=-1)).mean()
        print(f"| {form} | {divergence.mean():.1e} | {divergence.max():.1e} | {same:.0%} |", flush=True)

    exact = predicted(_as_they_are)
    print(f"{args.model}, random weights, {args.tokens} positions: KL from float32, nats")
    print("| weights | mean | largest | most likely token the same |")
    print("|---|---|---|---|")
    for form, rounded in FORMS.items():
        show(form, predicted(rounded, "bfloat16" if form == "bfloat16" else "float32"))
    show("float32, cache int8", predicted(_as_they_are, run=with_int8_cache))


def _as_they_are(weight: np.ndarray, _: str, __: Grid) -> Weight:
    return jnp.asarray(weight)


if __name__ == "__main__":
    main()
