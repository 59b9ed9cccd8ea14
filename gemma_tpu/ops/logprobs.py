"""Log-probabilities of drawn tokens and of the likeliest ones, by the logits as the model gives them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gemma_tpu.options import MAX_LOGPROBS

_GROUP = 64  # tokens, neighbours in the vocabulary


def log_probs(
    logits: Float[Array, "B V"], token: Int[Array, "B"]
) -> tuple[Float[Array, "B"], Int[Array, "B top"], Float[Array, "B top"]]:
    """That of `token`; the MAX_LOGPROBS likeliest tokens (or all V, if those are fewer), best first; and theirs."""
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.sum(jnp.where(jnp.arange(logits.shape[1]) == token[:, None], logits, 0), axis=-1)
    tokens, top = likeliest(logits, min(MAX_LOGPROBS, logits.shape[1]))
    return chosen - total, tokens, top - total[:, None]


def likeliest(logits: Float[Array, "B V"], k: int) -> tuple[Int[Array, "B k"], Float[Array, "B k"]]:
    """The k tokens with the largest logits, and these.

    They are among the members of the k groups with the largest maxima. So devices that share the vocabulary send each
    other a maximum for each group instead of all logits.
    """
    B, V = logits.shape
    if V % _GROUP or k > V // _GROUP:
        top, tokens = jax.lax.top_k(logits, k)
        return tokens, top
    grouped = logits.reshape(B, -1, _GROUP)
    _, groups = jax.lax.top_k(jnp.max(grouped, axis=-1), k)
    members = jnp.take_along_axis(grouped, groups[:, :, None], axis=1)
    tokens = groups[:, :, None] * _GROUP + jnp.arange(_GROUP)
    top, at = jax.lax.top_k(members.reshape(B, -1), k)
    return jnp.take_along_axis(tokens.reshape(B, -1), at, axis=1), top
