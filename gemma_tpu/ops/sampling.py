"""Logits → token, with every setting an array per row, so that changing one compiles nothing. V: vocabulary.

The filters apply one after another to what the one before left, as in transformers: temperature, top-k, top-p, min-p.
Each keeps the logits above a threshold, found by bisection on their bit patterns instead of a sort (sorting 262,144
values a step would cost more than a small model). A tie at the threshold is kept whole, by top-k and top-p alike, and
the likeliest token always is.

Rows with a small top-k look at few logits: what it keeps is in the groups of neighbours with the largest maxima. What a
row draws is a matter of its own settings and logits alone, whichever way other rows go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Int, UInt32

_LEAST_TEMPERATURE = 1e-30  # below, a logit over it would overflow float32
_GROUP = 128  # neighbouring logits: the lanes of a TPU's register
_GROUPS = 64  # of them are looked at; and so the largest top-k whose rows look at no more: Gemma's own is 64
LOOKED_AT = _GROUPS * _GROUP  # logits of a row with such a top-k
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
    """One token per row: the likeliest after Gumbel noise (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030).

    A row's draw depends on its seed and on the position of the token alone.
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    on = settings.temperature > 0

    def from_all() -> jax.Array:
        noise = jax.vmap(lambda seed, at: jax.random.gumbel(_key(seed, at), logits.shape[1:]))
        kept = filter_logits(logits, settings)
        return jnp.argmax(kept + noise(settings.seed, position), axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        if logits.shape[1] <= LOOKED_AT:
            return jnp.where(on, from_all(), greedy)
        some, tokens, enough = _likeliest(_tempered(logits, settings))
        kept = _filter_few(some, settings)
        chosen = jnp.argmax(kept + jax.vmap(_noise)(settings.seed, position, tokens), axis=-1)
        drawn = jnp.take_along_axis(tokens, chosen[:, None], axis=1)[:, 0]
        others = on & ~(enough & (settings.top_k > 0) & (settings.top_k <= _GROUPS))
        with jax.named_scope("all"):
            whole = jax.lax.cond(jnp.any(others), from_all, lambda: drawn)
        return jnp.where(on, jnp.where(others, whole, drawn), greedy)

    return jax.lax.cond(jnp.any(on), draw, lambda: greedy)


def _likeliest(
    logits: Float[Array, "B V"],
) -> tuple[Float[Array, "B some"], Int[Array, "B some"], Bool[Array, "B"]]:
    """The groups of logits with the largest maxima, their tokens, and whether the _GROUPS largest are among them.

    As there are as many groups, these have a maximum as large as any of those logits. A tie may leave one out that is
    as large as the smallest.
    """
    missing = -logits.shape[1] % _GROUP
    groups = jnp.pad(logits, ((0, 0), (0, missing)), constant_values=-jnp.inf).reshape(len(logits), -1, _GROUP)
    largest, index = jax.lax.top_k(jnp.max(groups, axis=2), _GROUPS + 1)
    last, next_one = largest[:, -2], largest[:, -1]
    index = index[:, :-1, None]
    tokens = (index * _GROUP + jnp.arange(_GROUP)).reshape(len(logits), -1)
    return (
        jnp.take_along_axis(groups, index, axis=1).reshape(tokens.shape),
        tokens,
        (next_one < last) | (next_one == -jnp.inf),
    )


def _key(seed: UInt32[Array, ""], position: Int[Array, ""]) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), position)


def _noise(seed: UInt32[Array, ""], position: Int[Array, ""], tokens: Int[Array, "N"]) -> Float[Array, "N"]:
    """Gumbel noise of each token, as `jax.random.gumbel` draws it for a whole vocabulary at once."""
    count = tokens.astype(jnp.uint32)
    both = threefry_2x32(jax.random.key_data(_key(seed, position)), jnp.concatenate([jnp.zeros_like(count), count]))
    high, low = jnp.split(both, 2)
    mantissa = ((high ^ low) >> 9) | jnp.uint32(0x3F800000)  # of a float in [1, 2)
    uniform = jnp.maximum(jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1, jnp.finfo(jnp.float32).tiny)
    return -jnp.log(-jnp.log(uniform))


def filter_logits(logits: Float[Array, "B V"], settings: Sampling) -> Float[Array, "B V"]:
    """Logits over temperature, with -inf where a filter excludes a token. Greedy rows come back unfiltered."""
    on, size = settings.temperature > 0, logits.shape[1]
    logits = _tempered(logits, settings)
    top_k = jnp.where(on & (settings.top_k > 0), settings.top_k, size)
    top_p = jnp.where(on, settings.top_p, 1.0)
    logits = jax.lax.cond(jnp.any(top_k < size), _keep_top_k, lambda x, _: x, logits, top_k)
    logits = jax.lax.cond(jnp.any(top_p < 1), _keep_top_p, lambda x, _: x, logits, top_p)
    return _keep_min_p(logits, settings)


def _filter_few(logits: Float[Array, "B some"], settings: Sampling) -> Float[Array, "B some"]:
    """The same of rows whose top-k is in 1 … _GROUPS, of logits over temperature.

    Without a loop: every threshold is among the largest of them.
    """
    largest, _ = jax.lax.top_k(logits, _GROUPS)
    last = jnp.take_along_axis(largest, jnp.clip(settings.top_k, 1, _GROUPS)[:, None] - 1, axis=1)
    logits = jnp.where(logits >= last, logits, -jnp.inf)
    probs = jax.nn.softmax(logits)
    above = jnp.sum(jnp.where(logits[:, None] >= largest[:, :, None], probs[:, None], 0), axis=2)
    enough = above >= settings.top_p[:, None] * jnp.sum(probs, axis=1, keepdims=True)
    # Of p = 1, rounding may leave none that is enough.
    least = jnp.max(jnp.where(enough, largest, last), axis=1, keepdims=True)
    return _keep_min_p(jnp.where(logits >= least, logits, -jnp.inf), settings)


def _tempered(logits: Float[Array, "B N"], settings: Sampling) -> Float[Array, "B N"]:
    temperature = jnp.maximum(settings.temperature, _LEAST_TEMPERATURE)
    return logits / jnp.where(settings.temperature > 0, temperature, 1.0)[:, None]


def _keep_min_p(logits: Float[Array, "B N"], settings: Sampling) -> Float[Array, "B N"]:
    min_p = jnp.where(settings.temperature > 0, settings.min_p, 0.0)
    floor = jnp.max(logits, axis=1) + jnp.log(min_p)
    return jnp.where(logits >= floor[:, None], logits, -jnp.inf)


def _keep_top_k(logits: Float[Array, "B V"], k: Int[Array, "B"]) -> Float[Array, "B V"]:
    return _keep_above(logits, lambda kept: jnp.sum(kept, axis=1) >= k)


def _keep_top_p(logits: Float[Array, "B V"], p: Float[Array, "B"]) -> Float[Array, "B V"]:
    probs = jax.nn.softmax(logits)
    # Against the sum of all of them in the same arithmetic, p = 1 keeps everything.
    least = p * jnp.sum(probs, axis=1)
    return _keep_above(logits, lambda kept: jnp.sum(jnp.where(kept, probs, 0), axis=1) >= least)


def _keep_above(
    logits: Float[Array, "B V"], enough: Callable[[Bool[Array, "B V"]], Bool[Array, "B"]]
) -> Float[Array, "B V"]:
    """Keeps logits ≥ t for the largest t at which `enough` holds of the kept set."""
    pattern = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    order = jnp.where(pattern >= sign, -pattern, pattern | sign)  # as the floats, the two zeros being one

    def find(bit: jax.Array, threshold: jax.Array) -> jax.Array:
        tried = threshold | (sign >> bit.astype(jnp.uint32))
        return jnp.where(enough(order >= tried[:, None]), tried, threshold)

    threshold = jax.lax.fori_loop(0, 32, find, jnp.zeros(len(logits), jnp.uint32))
    threshold = jnp.minimum(threshold, jnp.max(order, axis=1))  # a p that is 0 in float32 is enough with none kept
    return jnp.where(order >= threshold[:, None], logits, -jnp.inf)
