"""What a caller asks of a model, and what an answer comes with. No jax: importing these takes no time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

from gemma_tpu.checks import as_ids, as_tuple, brief, check_flag, check_integer, check_number
from gemma_tpu.grammar import Grammar

MAX_STOP_TOKENS = 64  # of one request
MAX_LOGIT_BIAS = 512  # tokens of one request
MAX_BAD_WORDS = 64  # of one request, of several tokens
MAX_BAD_WORD_LENGTH = 8  # tokens
MAX_LOGPROBS = 20  # likeliest tokens of one token
NO_TOKEN = -1  # fills arrays of tokens where there is none


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How to generate. Greedy by default; top_k and top_p are those Google recommends for temperature 1.

    temperature ≥ 0 (0: greedy), top_k ≥ 0 (0: off), 0 < top_p ≤ 1, 0 ≤ min_p ≤ 1. `seed` None draws one.
    These are the library's defaults; a checkpoint's own are `Model.defaults`. `stop_tokens` None means the
    tokenizer's end of turn and eos. ValueError for a value out of range.

    `logit_bias` adds to the logits of tokens. `presence_penalty` and `frequency_penalty` are taken from the logits of
    tokens in the answer, once and for each time; `repetition_penalty` divides the logits of tokens in prompt or answer
    (multiplies those below 0). No stop token is drawn before `min_tokens`, and none of the tokenizer's with
    `ignore_eos`. Only `allowed_token_ids` are drawn, if given, and never `forbidden_tokens`; `bad_words` are strings
    or sequences of tokens that are not written: their last token is not drawn after those before it. A string is as it
    stands at the beginning of a line, and after a space.

    `logprobs` asks for the log-probability of each token of the answer, and of so many likeliest tokens in its place:
    by the model's own logits, before temperature and whatever else changes them. `prompt_logprobs` asks for the same of
    the prompt's tokens, which takes a pass over the whole prompt, and compiles for a new length as `Model.logits` does.

    `n` answers to one prompt have the seeds `seed`, `seed` + 1, …

    `grammar` holds the answer to it. An answer that is complete by its grammar ends, before `min_tokens` too.

    `timeout` is how many seconds after its submission an answer ends with what there is of it, also while it waits for
    a batch row, as soon as the device call that runs by then has ended. None: none.
    """

    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_k: int = 64
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_tokens: Sequence[int] | None = None
    forbidden_tokens: Sequence[int] = ()
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    ignore_eos: bool = False
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str | Sequence[int]] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    grammar: Grammar | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, 1)
        check_number("temperature", self.temperature, 0, 1000)
        check_integer("top_k", self.top_k, 0, 2**31 - 1)
        check_number("top_p", self.top_p, 0, 1, low_open=True)
        check_number("min_p", self.min_p, 0, 1)
        if self.seed is not None:
            check_integer("seed", self.seed, 0, 2**32 - 1)
        # A lone string is a stop string, not a sequence of letters.
        stop = (self.stop,) if isinstance(self.stop, str) else as_tuple("stop", self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise ValueError(f"stop must be non-empty strings, got {brief(self.stop)}")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "forbidden_tokens", as_ids("forbidden_tokens", self.forbidden_tokens))
        if self.stop_tokens is not None:
            object.__setattr__(self, "stop_tokens", as_ids("stop_tokens", self.stop_tokens))
            if len(self.stop_tokens) > MAX_STOP_TOKENS:
                raise ValueError(f"{len(self.stop_tokens)} stop_tokens given, at most {MAX_STOP_TOKENS} are supported")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 0, MAX_LOGPROBS)
        check_integer("n", self.n, 1, 1024)
        if not isinstance(self.grammar, Grammar | None):
            raise ValueError(f"grammar must be made by gemma_tpu.Grammar, got {brief(self.grammar)}")
        if self.timeout is not None:
            check_number("timeout", self.timeout, 0, 2**31 - 1, low_open=True)
        self._check_logits()

    def _check_logits(self) -> None:
        """What changes logits."""
        check_number("presence_penalty", self.presence_penalty, -2, 2)
        check_number("frequency_penalty", self.frequency_penalty, -2, 2)
        check_number("repetition_penalty", self.repetition_penalty, 0, 100, low_open=True)
        check_integer("min_tokens", self.min_tokens, 0)
        if self.min_tokens > self.max_new_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, and max_new_tokens {self.max_new_tokens}")
        check_flag("ignore_eos", self.ignore_eos)
        object.__setattr__(self, "logit_bias", _as_bias(self.logit_bias))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", as_ids("allowed_token_ids", self.allowed_token_ids))
        object.__setattr__(self, "bad_words", _as_bad_words(self.bad_words))

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs."""
        return cast(tuple[tuple[int, float], ...], self.logit_bias)

    @property
    def penalized(self) -> bool:
        """Whether logits depend on what has been said."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)


def _as_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of a token and what is added to its logit."""
    pairs = tuple(value.items()) if isinstance(value, Mapping) else as_tuple("logit_bias", value)
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"logit_bias must map token ids to numbers, got {brief(value)}")
    tokens = as_ids("logit_bias", [token for token, _ in pairs])
    for token, bias in pairs:
        check_number(f"logit_bias of token {token}", bias, -100, 100)
    if len(set(tokens)) != len(tokens):
        raise ValueError("logit_bias has a token twice")
    if len(tokens) > MAX_LOGIT_BIAS:
        raise ValueError(f"logit_bias has {len(tokens)} tokens, at most {MAX_LOGIT_BIAS} are supported")
    return tuple(zip(tokens, (float(bias) for _, bias in pairs), strict=True))


def _as_bad_words(value: Any) -> tuple[str | tuple[int, ...], ...]:
    words = (value,) if isinstance(value, str) else as_tuple("bad_words", value)
    words = tuple(word if isinstance(word, str) else as_ids("bad_words", word) for word in words)
    if not all(words):
        raise ValueError("bad_words must be non-empty strings or sequences of token ids")
    return words


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability, and the likeliest tokens with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Usage:
    """Token counts; `image_tokens` and `cached_tokens` (left by an earlier turn) are part of the prompt.

    `draft_tokens` were guessed ahead, and `accepted_tokens` of them were right: so many decode steps fewer.
    """

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int
    draft_tokens: int = 0
    accepted_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds: waiting for a row, from there to the end of the prompt, from submission to the first token, decoding."""

    queue: float
    prefill: float
    first_token: float
    decode: float
    tokens_per_second: float


@dataclasses.dataclass(frozen=True)
class Completion:
    """An answer. `tokens` are without the stop token, and up to the one that completed a stop string.

    `finish_reason` is "stop", "length", "timeout" (see `SamplingParams`), "cancelled" (its reader left it) or "error"
    (its reader got one instead of the rest). `dropped_turns` are those that the model was not told, for lack of room.
    `thinking` is what MedGemma thought before it answered, which `text` is without. `tool_calls` are the calls of
    functions in `text`, as messages have them; where a `Chat` continues an answer, those in all of it.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    usage: Usage
    timings: Timings
    dropped_turns: int = 0
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = dataclasses.field(default_factory=list)
