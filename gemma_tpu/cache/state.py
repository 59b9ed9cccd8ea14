"""What the device keeps between calls: the cache, and for each batch row its length, row_params and history.

R: rows of the cache; V: vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from gemma_tpu.ops.logits import Adjustments, History
from gemma_tpu.ops.sampling import Leaf, Sampling
from gemma_tpu.options import MAX_BAD_WORD_LENGTH, MAX_BAD_WORDS, MAX_LOGIT_BIAS, MAX_STOP_TOKENS, NO_TOKEN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowParams:
    """What the caller of a row asked for. `stop` is padded with NO_TOKEN; `logprobs` below 0 asks for none.

    `more`: whether it asks for more than allowed tokens and sampling. `ahead`: whether tokens after the next may be
    guessed.
    """

    sampling: Sampling
    stop: Leaf  # int32[R, MAX_STOP_TOKENS]
    adjustments: Adjustments
    logprobs: Leaf  # int32[R]
    more: Leaf  # bool[R]
    ahead: Leaf  # bool[R]

    @classmethod
    def neutral(cls, rows: int, vocab_size: int) -> RowParams:
        """As they are where nothing is asked for."""

        def full(value: float, *shape: int, dtype: str = "i4") -> jax.Array:
            return jnp.full((rows, *shape), value, dtype)

        zero, one = full(0, dtype="f4"), full(1, dtype="f4")
        sampling = Sampling(zero, full(0), one, zero, full(0, dtype="u4"))
        adjustments = Adjustments(
            repetition_penalty=one,
            frequency_penalty=zero,
            presence_penalty=zero,
            bias_tokens=full(NO_TOKEN, MAX_LOGIT_BIAS),
            bias=full(0, MAX_LOGIT_BIAS, dtype="f4"),
            bad_words=full(NO_TOKEN, MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH),
            min_length=full(0),
            allowed=full(True, vocab_size, dtype="?"),
        )
        off = full(False, dtype="?")
        return cls(sampling, full(NO_TOKEN, MAX_STOP_TOKENS), adjustments, full(-1), off, off)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The one value that every program takes and returns.

    `length`: tokens in the cache. `last`: the token to feed next, at position `length`. `remaining`: tokens a row may
    still produce; a row with 0 rests. `draft` is the cache of a draft model, `text` the tokens in which a row looks for
    what may come next: both are None unless a deployment has them.
    """

    cache: Any  # a KVCache, or another class with its methods
    length: Leaf  # int32[R]
    last: Leaf  # int32[R]
    remaining: Leaf  # int32[R]
    row_params: RowParams
    history: History
    draft: Any = None
    text: Leaf | None = None  # int32[R, context]

    @classmethod
    def empty(cls, cache: Any, rows: int, vocab_size: int, draft: Any = None, text: Leaf | None = None) -> State:
        """All rows at rest beside empty caches."""

        length, last, remaining = (jnp.zeros(rows, jnp.int32) for _ in range(3))
        history = History(
            counts=jnp.zeros((rows, vocab_size), jnp.int16),
            recent=jnp.full((rows, MAX_BAD_WORD_LENGTH - 1), NO_TOKEN, jnp.int32),
        )
        return cls(cache, length, last, remaining, RowParams.neutral(rows, vocab_size), history, draft, text)

    def shardings(self, mesh: Mesh) -> State:
        """The caches' own; the few numbers per row are on every device."""
        rest = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), self._rest())
        return rest._with_caches(lambda cache: cache.shardings(), self)

    def take(self, rows: Int[Array, "B"]) -> State:
        """The state of these rows alone."""
        return jax.tree.map(lambda x: x[rows], self._rest())._with_caches(lambda cache: cache.take(rows), self)

    def put(self, rows: Int[Array, "B"], taken: State) -> State:
        """This state with what a decode call changes of `rows` as it is in `taken`."""
        recent = self.history.recent.at[rows].set(taken.history.recent)
        return State(
            cache=self.cache.put(rows, taken.cache),
            length=self.length.at[rows].set(taken.length),
            last=self.last.at[rows].set(taken.last),
            remaining=self.remaining.at[rows].set(taken.remaining),
            row_params=self.row_params,
            history=dataclasses.replace(self.history, recent=recent),
            draft=None if self.draft is None else self.draft.put(rows, taken.draft),
            text=None if self.text is None else self.text.at[rows].set(taken.text),
        )

    def map_caches(self, change: Callable[[Any], Any]) -> State:
        """With its cache changed, and the draft model's in the same way."""
        return self._with_caches(change, self)

    def _rest(self) -> State:
        return dataclasses.replace(self, cache=None, draft=None)

    def _with_caches(self, change: Callable[[Any], Any], of: State) -> State:
        draft = None if of.draft is None else change(of.draft)
        return dataclasses.replace(self, cache=change(of.cache), draft=draft)
