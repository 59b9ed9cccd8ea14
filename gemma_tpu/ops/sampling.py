"""Logits → token, with every setting an array per row, so that changing one compiles nothing. V: vocabulary.

The filters apply one after another to what the one before left, as in transformers: temperature, top-k, top-p, min-p.
Each keeps the logits above a threshold, found by bisection on their bit patterns instead of a sort (32 passes over
the logits whatever V is; sorting 262,144 values a step would cost more than a small model). A tie at the threshold
is kept whole, by top-k and top-p alike, and the likeliest token always is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_LEAST_TEMPERATURE = 1e-30  # below, a logit over it would overflow float32
Leaf = Any  # of a pytree: an array, or the sharding or shape that a transformation of the tree puts in its place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of each row. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off."""

    temperature: Leaf  # float32[B]
    top_k: Leaf  # int32[B]
    top_p: Leaf  # float32[B]
    min_p: Leaf  # float32[B]
    seed: Leaf  # uint32[B]


def sample(logits: Float[Array, "B V"], position: Int[Array, "B"], settings: Sampling) -> Int[Array, "B"]:
    """One token per row. A row's draw depends on its seed and on the position of the token alone."""
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        kept = filter_logits(logits, settings)
        noise = jax.vmap(
            lambda seed, at: jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), at), kept.shape[1:])
        )
        drawn = jnp.argmax(kept + noise(settings.seed, position), axis=-1).astype(jnp.int32)
        return jnp.where(settings.temperature > 0, drawn, greedy)

    return jax.lax.cond(jnp.any(settings.temperature > 0), draw, lambda: greedy)


def filter_logits(logits: Float[Array, "B V"], settings: Sampling) -> Float[Array, "B V"]:
    """Logits over temperature, with -inf where a filter excludes a token. Greedy rows come back unfiltered."""
    on = settings.temperature > 0
    temperature = jnp.maximum(settings.temperature, _LEAST_TEMPERATURE)
    logits = logits / jnp.where(on, temperature, 1.0)[:, None]
    top_k = jnp.where(on & (settings.top_k > 0), settings.top_k, logits.shape[-1])
    top_p = jnp.where(on, settings.top_p, 1.0)
    logits = jax.lax.cond(jnp.any(top_k < logits.shape[-1]), _keep_top_k, lambda x, _: x, logits, top_k)
    logits = jax.lax.cond(jnp.any(top_p < 1), _keep_top_p, lambda x, _: x, logits, top_p)
    floor = jnp.max(logits, axis=-1) + jnp.log(jnp.where(on, settings.min_p, 0.0))
    return jnp.where(logits >= floor[:, None], logits, -jnp.inf)


def _keep_top_k(logits: jax.Array, k: jax.Array) -> jax.Array:
    return _keep_above(logits, lambda kept: jnp.sum(kept, axis=-1) >= k)


def _keep_top_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    probs = jax.nn.softmax(logits, axis=-1)
    # Against the sum of all of them in the same arithmetic, p = 1 keeps everything.
    total = jnp.sum(probs, axis=-1)
    return _keep_above(logits, lambda kept: jnp.sum(jnp.where(kept, probs, 0), axis=-1) >= p * total)


def _keep_above(logits: jax.Array, enough: Callable[[Bool[Array, "B V"]], Bool[Array, "B"]]) -> jax.Array:
    """Keeps logits ≥ t for the largest t at which `enough` holds of the kept set."""
    bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.int32)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # enough at low, not enough at high
        middle = (low & high) + ((low ^ high) >> 1)  # (low + high) / 2 without overflow
        ok = enough(order >= middle[:, None])
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    limits = jnp.iinfo(jnp.int32)
    full = jnp.full(logits.shape[0], limits.min), jnp.full(logits.shape[0], limits.max)
    threshold, _ = jax.lax.fori_loop(0, 32, halve, full)
    threshold = jnp.minimum(threshold, jnp.max(order, axis=-1))  # a p that is 0 in float32 is enough with none kept
    return jnp.where(order >= threshold[:, None], logits, -jnp.inf)
