"""What the device does next, as host values alone: the scheduler plans a `Step`, and runners carry it out.

Processes that share a mesh run the same steps in the same order; steps are sent to them pickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from gemma_tpu.options import MAX_BAD_WORD_LENGTH, SamplingParams, TokenLogprob

NOT_FINITE = -2  # among the tokens read back: the row's logits were NaN or infinity, and it has ended


class PageOwners(NamedTuple):
    """For each page of the cache: which row of a call has it (-1: none), and the position of its first token."""

    row: Int[np.ndarray, "A"]
    start: Int[np.ndarray, "A"]


@dataclasses.dataclass(frozen=True, eq=False)
class Clear:
    """Empties a row (None: none), and pages."""

    row: int | None
    pages: Sequence[int]


COPIES = ("copy", "store", "restore")


@dataclasses.dataclass(frozen=True, eq=False)
class Copy:
    """Gives a row or a stored prefix the first `length` tokens of another, which has them in its rings yet.

    `kind`, one of COPIES: "copy" is from row to row, "store" from a row to a place for prefixes, "restore" the other
    way. Pages are copied from `source_pages` to `target_pages`; none if both are to hold the same ones.
    """

    kind: str
    source: int
    target: int
    length: int
    source_pages: Sequence[int] = ()  # in the order of their tokens, up to the last of `length`
    target_pages: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Encode:
    """A call of the vision tower. `pixels` are in the dtype of the weights, as the tower would first make them."""

    digests: tuple[bytes, ...]
    pixels: Float[np.ndarray, "I side side 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Prefill:
    """Arguments of `gemma_tpu.engine.programs.prefill`.

    `images` are the digests of those that `soft_index` counts, and None up to as many as the call has room for.
    """

    rows: Int[np.ndarray, "B"] | None
    tokens: Int[np.ndarray, "B T"]
    start: Int[np.ndarray, "B"]
    count: Int[np.ndarray, "B"]
    images: tuple[bytes | None, ...]
    soft_index: Int[np.ndarray, "B T"]
    pages: PageOwners
    fresh: bool


@dataclasses.dataclass(frozen=True, eq=False)
class History:
    """What a row has said before it decodes: `answer`, and the `prompt`'s distinct tokens."""

    prompt: Int[np.ndarray, "prompt"]
    answer: Int[np.ndarray, "answer"]


@dataclasses.dataclass(frozen=True, eq=False)
class Activate:
    """Lets a row of `length` cached tokens decode: what to feed next, how many tokens may come, how they are drawn.

    `numbers`: fields of `gemma_tpu.cache.state.RowParams` and of its parts that are one number.
    Lists are as long as what was asked for, and sets of tokens are ids: fewer bytes than a mask of them all. `allowed`
    None is all. `recent`: the end of the answer, if it was begun. `history` is None for a row without penalties.
    `text`: prompt and answer, None unless tokens are guessed from them.
    """

    row: int
    length: int
    last: int
    remaining: int
    numbers: dict[str, np.ndarray]
    stop: Int[np.ndarray, "stop"]
    forbidden: Int[np.ndarray, "forbidden"]
    allowed: Int[np.ndarray, "allowed"] | None
    bias_tokens: Int[np.ndarray, "bias"]
    bias: Float[np.ndarray, "bias"]
    bad_words: Sequence[tuple[int, ...]]
    recent: Int[np.ndarray, "recent"]
    history: History | None
    text: Int[np.ndarray, "text"] | None = None


_SAMPLING = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "min_p": np.float32}
_PENALTIES = dict.fromkeys(("repetition_penalty", "frequency_penalty", "presence_penalty"), np.float32)


def activate(
    row: int,
    length: int,
    last: int,
    remaining: int,
    params: SamplingParams,
    stop: Sequence[int],
    prompt: Sequence[int] = (),
    answer: Sequence[int] = (),
    seed: int = 0,
    *,
    constrained: bool = False,
    keep_text: bool = False,
) -> Activate:
    """With what `params` asks for as arrays; raises what is wrong with it. `answer` may have been begun.

    `seed` is in the place of one that `params` may not have. `constrained`: whether the host has a say in each token.
    `keep_text`: whether tokens are guessed from the text.
    """
    numbers: dict[str, np.ndarray] = {
        name: np.array([getattr(params, name)], kind) for name, kind in (_SAMPLING | _PENALTIES).items()
    }
    numbers["seed"] = np.array([seed], np.uint32)
    more = params.penalized or params.logit_bias or params.bad_words or params.min_tokens
    numbers["more"] = np.array([bool(more) or params.logprobs is not None])
    numbers["ahead"] = ~numbers["more"] & (not constrained)
    numbers["logprobs"] = np.array([-1 if params.logprobs is None else params.logprobs], np.int32)
    numbers["min_length"] = np.array([len(prompt) + params.min_tokens if params.min_tokens else 0], np.int32)
    sequences = [tuple(word) for word in params.bad_words if not isinstance(word, str)]
    single = [word[0] for word in sequences if len(word) == 1]
    allowed, history = params.allowed_token_ids, None
    if params.penalized:
        history = History(np.unique(_ids([token for token in prompt if token >= 0])), _ids(answer))
    return Activate(
        row,
        length,
        last,
        remaining,
        numbers,
        stop=_ids(stop),
        forbidden=_ids([*params.forbidden_tokens, *single]),
        allowed=None if allowed is None else _ids(allowed),
        bias_tokens=_ids([token for token, _ in params.biases]),
        bias=np.array([bias for _, bias in params.biases], np.float32),
        bad_words=[word for word in sequences if len(word) > 1],
        recent=_ids(answer)[-(MAX_BAD_WORD_LENGTH - 1) :],
        history=history,
        text=_ids([*prompt, *answer]) if keep_text else None,
    )


def _ids(tokens: Sequence[int]) -> Int[np.ndarray, "tokens"]:
    return np.array(tokens, np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Decode:
    """Up to `steps` steps, of a token or more, for each of `rows`.

    `picked`: the rows that the program runs on, these first, where it does not run on the whole batch. `count`:
    whether the tokens are counted, for rows with penalties. `logprobs`: whether those are read. `masks`: for each row
    that is held to a grammar, bits of the tokens that may come next; None if there is no such row.
    """

    rows: tuple[int, ...]
    steps: int
    pages: PageOwners
    picked: tuple[int, ...] | None
    count: bool = False
    logprobs: bool = False
    masks: Mapping[int, UInt8[np.ndarray, "bytes"]] | None = None

    def column(self, row: int) -> int:
        """Where a row is in what was drawn."""
        return row if self.picked is None else self.picked.index(row)


class Drawn(NamedTuple):
    """What comes of a decode call, as arrays of jax or NumPy: `tokens`, and their `gemma_tpu.ops.logprobs` if read.

    `guesses`: how many tokens were guessed for each row, and how many of them stood; None where none ever are.
    """

    tokens: Any  # int32[steps, B]
    logprobs: Any = None  # float32[steps, B]
    top_tokens: Any = None  # int32[steps, B, top]
    top_logprobs: Any = None  # float32[steps, B, top]
    guesses: Any = None  # int32[2, B]


def token_logprobs(drawn: Drawn, column: int, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Of the `tokens` of a row, the first of `column`, with as many likeliest tokens as asked for."""
    logprobs = drawn.logprobs[: len(tokens), column].tolist()
    likeliest = (part[: len(tokens), column, :top].tolist() for part in (drawn.top_tokens, drawn.top_logprobs))
    pairs = (tuple(zip(*one, strict=True)) for one in zip(*likeliest, strict=True))
    return [TokenLogprob(*one) for one in zip(tokens, logprobs, pairs, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Calls of the device, in the order of the fields.

    `release` stops rows that decode, `forget` drops the soft tokens of images. `before` and `after` the prefill, the
    cache changes hands.
    """

    release: tuple[int, ...] = ()
    before: tuple[Clear | Copy, ...] = ()
    encode: tuple[Encode, ...] = ()
    prefill: tuple[Prefill, ...] = ()
    after: tuple[Clear | Copy, ...] = ()
    activate: tuple[Activate, ...] = ()
    decode: Decode | None = None
    forget: tuple[bytes, ...] = ()

    @property
    def empty(self) -> bool:
        return not any(vars(self).values())

    @property
    def long(self) -> bool:
        """Whether it keeps the device busy for a while."""
        return bool(self.prefill or self.decode)
