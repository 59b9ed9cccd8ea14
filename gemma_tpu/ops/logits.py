"""What a request changes about its logits before a token is drawn. V: vocabulary.

Every setting is an array per row. In order: the repetition penalty (Keskar et al. 2019, CTRL, section 4.1), the
frequency and presence penalties as OpenAI defines them, the bias of tokens, and tokens that may not come next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from gemma_tpu.ops.sampling import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adjustments:
    """Settings of each row; lists of tokens are filled up with NO_TOKEN.

    A bad word is a sequence of tokens, filled up at its beginning. `min_length` is the first position at which a stop
    token may stand.
    """

    repetition_penalty: Leaf  # float32[B]; 1 is off
    frequency_penalty: Leaf  # float32[B]; 0 is off
    presence_penalty: Leaf  # float32[B]; 0 is off
    bias_tokens: Leaf  # int32[B, MAX_LOGIT_BIAS]
    bias: Leaf  # float32[B, MAX_LOGIT_BIAS]
    bad_words: Leaf  # int32[B, MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH]
    min_length: Leaf  # int32[B]
    allowed: Leaf  # bool[B, V]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """What each row has said before the decode call under way.

    `counts`: twice how often the answer has each token, and 1 more for a token of the prompt; it holds for rows with a
    penalty alone. `recent`: the last tokens of the answer, after NO_TOKEN where it has fewer.
    """

    counts: Leaf  # int16[B, V]
    recent: Leaf  # int32[B, MAX_BAD_WORD_LENGTH - 1]


def packed_bytes(vocab_size: int) -> int:
    """Bytes that hold a bit for each token, for `unpack`."""
    return -(-vocab_size // 128) * 16


def unpack(bits: UInt8[Array, "B bytes"], vocab_size: int) -> Bool[Array, "B V"]:
    """Bit t % 8 of byte t // 8 belongs to token t.

    The bytes are repeated by a product: a TPU has no cheap way from one lane to the next.
    """
    groups = bits.reshape(bits.shape[0], -1, 16).astype(jnp.bfloat16)  # exact
    lane = jnp.arange(128)
    repeat = (jnp.arange(16)[:, None] == lane // 8).astype(jnp.bfloat16)
    repeated = jnp.einsum("bgi,il->bgl", groups, repeat, preferred_element_type=jnp.float32).astype(jnp.int32)
    return ((repeated >> lane % 8) & 1).reshape(bits.shape[0], -1)[:, :vocab_size].astype(bool)


def _penalized(asked: Adjustments) -> Bool[Array, "B"]:
    neutral = (asked.repetition_penalty == 1) & (asked.frequency_penalty == 0) & (asked.presence_penalty == 0)
    return ~neutral


def _biased(asked: Adjustments) -> Bool[Array, "B"]:
    return asked.bias_tokens[:, 0] >= 0


def _watched(position: Int[Array, "B"], asked: Adjustments) -> Bool[Array, "B"]:
    return (position < asked.min_length) | (asked.bad_words[:, 0, -1] >= 0)


def adjust(
    logits: Float[Array, "B V"],
    active: Bool[Array, "B"],
    position: Int[Array, "B"],
    stop: Int[Array, "B stop"],
    new: Int[Array, "steps B"],
    asked: Adjustments,
    history: History,
) -> Float[Array, "B V"]:
    """Logits of the tokens at `position`, with -inf where bad words and `min_length` allow none.

    `stop`: stop tokens. `new`: tokens that this decode call has drawn so far, and numbers below 0. Where what is banned
    and what is not `allowed` leave a row no token, nothing is banned. Each kind of change costs time only where an
    active row asks for it.
    """

    def changed(where: Bool[Array, "B"], change: Callable[[jax.Array], jax.Array], logits: jax.Array) -> jax.Array:
        return jax.lax.cond(jnp.any(active & where), change, lambda x: x, logits)

    logits = changed(_penalized(asked), lambda x: penalize(x, new, asked, history), logits)
    logits = changed(_biased(asked), lambda x: _add(x, asked.bias_tokens, asked.bias), logits)
    return changed(_watched(position, asked), lambda x: _ban(x, position, stop, new, asked, history), logits)


def penalize(
    logits: Float[Array, "B V"], new: Int[Array, "steps B"], asked: Adjustments, history: History
) -> Float[Array, "B V"]:
    more = jnp.sum(new[:, :, None] == jnp.arange(logits.shape[1]), axis=0)
    count, seen = (history.counts >> 1) + more, (history.counts > 0) | (more > 0)
    penalty = jnp.where(seen, asked.repetition_penalty[:, None], 1)
    logits = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return logits - asked.frequency_penalty[:, None] * count - asked.presence_penalty[:, None] * (count > 0)


def last_tokens(history: History, new: Int[Array, "steps B"]) -> Int[Array, "B recent"]:
    """`recent`, with those that have been drawn since. Numbers below 0 after them are no tokens."""
    size = history.recent.shape[1]
    end = jnp.sum(new >= 0, axis=0)[:, None] + jnp.arange(size)
    return jnp.take_along_axis(jnp.concatenate([history.recent, new.T], axis=1), end, axis=1)


def _ban(
    logits: jax.Array,
    position: Int[Array, "B"],
    stop: Int[Array, "B stop"],
    new: Int[Array, "steps B"],
    asked: Adjustments,
    history: History,
) -> jax.Array:
    begun, last = asked.bad_words[:, :, :-1], asked.bad_words[:, :, -1]
    complete = jnp.all((begun == last_tokens(history, new)[:, None]) | (begun < 0), axis=-1)
    early = (position < asked.min_length)[:, None]
    tokens = jnp.concatenate([jnp.where(early, stop, -1), jnp.where(complete, last, -1)], axis=1)
    left = _add(logits, tokens, jnp.full(tokens.shape, -jnp.inf))
    any_left = jnp.any(asked.allowed & (left > -jnp.inf), axis=-1, keepdims=True)
    return jnp.where(any_left, left, logits)


def _add(logits: Float[Array, "B V"], tokens: Int[Array, "B N"], values: Float[Array, "B N"]) -> jax.Array:
    """`values` on top of the logits of `tokens`; those below 0 are none."""
    rows = jnp.arange(logits.shape[0])[:, None]
    return logits.at[rows, jnp.where(tokens < 0, logits.shape[1], tokens)].add(values, mode="drop")
