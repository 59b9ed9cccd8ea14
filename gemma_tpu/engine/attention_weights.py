"""The device program of `Engine.attention`: the plain path, of which a few queries' attention is kept."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma_tpu.deployment import Deployment
from gemma_tpu.engine.forward import hidden_states
from gemma_tpu.engine.programs import on_all
from gemma_tpu.model import Params
from gemma_tpu.ops.masks import Queries, attention_weights


@functools.partial(jax.jit, static_argnames=("deployment", "whole"))
def attention(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    images: tuple[Float[Array, "soft D"], ...],
    soft_index: Int[Array, "B T"],
    at: Int[Array, "B kept"],
    *,
    deployment: Deployment,
    whole: bool,
) -> tuple[Float[Array, "B kept N T"], ...]:
    """Of each layer, the weights of all keys for the queries at some positions of each row.

    An array for each layer: as one, they would be on the device twice while it is made. `whole` as of `programs.head`.
    """
    found = []

    def watch(query: Queries, key: Float[Array, "B K T H"], mask: Bool[Array, "B T T"]) -> None:
        B, _, K, G, _ = query.shape
        chosen = jnp.take_along_axis(query, at[:, :, None, None, None], axis=1)
        weights = attention_weights(chosen, key, jnp.take_along_axis(mask, at[:, :, None], axis=1))
        weights = jnp.moveaxis(weights.reshape(B, K * G, at.shape[1], -1), 1, 2)
        found.append(on_all(weights, deployment) if whole else weights)

    soft_tokens = jnp.stack(images) if images else None
    hidden_states(deployment.config, params, tokens, lengths, soft_tokens, soft_index, watch=watch)
    return tuple(found)
