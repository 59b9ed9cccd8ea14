"""The tokens of a decode step: what each row asks for, from its logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma_tpu.cache.state import RowParams, State
from gemma_tpu.engine.step import Drawn
from gemma_tpu.ops.logits import adjust
from gemma_tpu.ops.logprobs import log_probs
from gemma_tpu.ops.sampling import sample
from gemma_tpu.options import MAX_LOGPROBS, NO_TOKEN


def nothing_drawn(steps: int, rows: int, vocab_size: int) -> Drawn:
    """Room for what so many steps draw."""
    top = steps, rows, min(MAX_LOGPROBS, vocab_size)
    return Drawn(jnp.full(top[:2], NO_TOKEN, jnp.int32), jnp.zeros(top[:2]), jnp.zeros(top, jnp.int32), jnp.zeros(top))


def sampled(
    logits: Float[Array, "B T V"], position: Int[Array, "B T"], active: Bool[Array, "B"], params: RowParams
) -> Int[Array, "B T"]:
    """Tokens at successive positions of each row, by its sampling settings alone."""
    T = logits.shape[1]
    temperature = jnp.where(active, params.sampling.temperature, 0)  # rows that rest need no draw
    settings = dataclasses.replace(params.sampling, temperature=temperature)
    settings = jax.tree.map(lambda x: jnp.repeat(x, T, axis=0), settings)
    allowed = jnp.where(params.adjustments.allowed[:, None], logits, -jnp.inf)
    with jax.named_scope("sample"):
        drawn = sample(allowed.reshape(-1, allowed.shape[2]), position.reshape(-1), settings)
    return drawn.reshape(position.shape)


def draw(
    logits: Float[Array, "B T V"], active: Bool[Array, "B"], state: State, earlier: Int[Array, "steps B"]
) -> Drawn:
    """Tokens int32[B, T], and log-probabilities of the first, which mean nothing unless an active row asks for them.

    `earlier`: tokens that this decode call has drawn, and numbers below 0. A step at which no active row asks for more
    than sampling does nothing else: it keeps no second copy of the logits. What is asked for beyond that holds for the
    first token, and not for those that would follow it.
    """
    B, T, V = logits.shape
    params, first = state.row_params, logits[:, 0]
    position = state.length[:, None] + 1 + jnp.arange(T)
    none = tuple(x[0] for x in nothing_drawn(1, B, V)[1:4])

    def tokens(logits: jax.Array) -> jax.Array:
        return sampled(logits, position, active, params)

    def with_more() -> Drawn:
        now = position[:, 0]
        adjusted = adjust(first, active, now, params.stop, earlier, params.adjustments, state.history)
        token = tokens(jnp.concatenate([adjusted[:, None], logits[:, 1:]], axis=1))
        probs = jnp.any(active & (params.logprobs >= 0))
        return Drawn(token, *jax.lax.cond(probs, lambda: log_probs(first, token[:, 0]), lambda: none))

    with jax.named_scope("more"):
        return jax.lax.cond(jnp.any(active & params.more), with_more, lambda: Drawn(tokens(logits), *none))
