"""What a caller asks of a model, and what an answer comes with. No jax: importing these takes no time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gemma_tpu.checks import as_ids, as_tuple, brief, check_integer, check_number

MAX_STOP_TOKENS = 64  # of one request
NO_TOKEN = -1  # fills arrays of tokens where there is none


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How to generate. Greedy by default; top_k and top_p are those Google recommends for temperature 1.

    temperature ≥ 0 (0: greedy), top_k ≥ 0 (0: off), 0 < top_p ≤ 1, 0 ≤ min_p ≤ 1. `seed` None draws one.
    These are the library's defaults; a checkpoint's own are `Model.defaults`. `stop_tokens` None means the
    tokenizer's end of turn and eos. ValueError for a value out of range.
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


@dataclasses.dataclass(frozen=True)
class Usage:
    """Token counts; `image_tokens` and `cached_tokens` (left by an earlier turn) are part of the prompt."""

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int


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

    `finish_reason` is "stop", "length", "cancelled" (its reader left it) or "error" (its reader got one instead of the
    rest). `dropped_turns` are those that the model was not told, for lack of room. `thinking` is what MedGemma thought
    before it answered, which `text` is without. `tool_calls` are the calls of functions in `text`, as messages have
    them; where a `Chat` continues an answer, those in all of it.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    usage: Usage
    timings: Timings
    dropped_turns: int = 0
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)
