"""The tokens of one decode step: what each row asks for, from its logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma_tpu.cache.state import State
from gemma_tpu.engine.step import Drawn
from gemma_tpu.ops.logits import adjust
from gemma_tpu.ops.logprobs import log_probs
from gemma_tpu.ops.sampling import sample
from gemma_tpu.options import MAX_LOGPROBS, NO_TOKEN


def nothing_drawn(steps: int, rows: int, vocab_size: int) -> Drawn:
    """Room for what so many steps draw."""
    top = steps, rows, min(MAX_LOGPROBS, vocab_size)
    return Drawn(jnp.full(top[:2], NO_TOKEN, jnp.int32), jnp.zeros(top[:2]), jnp.zeros(top, jnp.int32), jnp.zeros(top))


def draw(logits: Float[Array, "B V"], active: Bool[Array, "B"], state: State, earlier: Int[Array, "steps B"]) -> Drawn:
    """A token for each row, and its log-probabilities, which mean nothing unless an active row asks for them.

    `earlier`: tokens that this decode call has drawn, and numbers below 0. A step at which no active row asks for more
    than sampling does nothing else: it keeps no second copy of the logits.
    """
    position, params = state.length + 1, state.row_params
    temperature = jnp.where(active, params.sampling.temperature, 0)  # rows that rest need no draw
    sampling = dataclasses.replace(params.sampling, temperature=temperature)
    none = tuple(x[0] for x in nothing_drawn(1, *logits.shape)[1:])

    def tokens(logits: jax.Array) -> jax.Array:
        with jax.named_scope("sample"):
            return sample(jnp.where(params.adjustments.allowed, logits, -jnp.inf), position, sampling)

    def with_more() -> Drawn:
        adjusted = adjust(logits, active, position, params.stop, earlier, params.adjustments, state.history)
        token, probs = tokens(adjusted), jnp.any(active & (params.logprobs >= 0))
        return Drawn(token, *jax.lax.cond(probs, lambda: log_probs(logits, token), lambda: none))

    with jax.named_scope("more"):
        return jax.lax.cond(jnp.any(active & params.more), with_more, lambda: Drawn(tokens(logits), *none))
