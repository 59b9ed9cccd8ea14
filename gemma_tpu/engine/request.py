"""What a caller asks of the engine, and what it gets back."""

from __future__ import annotations

import dataclasses
import math
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import PIL.Image

from gemma_tpu.engine.errors import check_process
from gemma_tpu.options import SamplingParams, Timings, TokenLogprob, Usage
from gemma_tpu.picture import Picture, PlacedImage


class ImageInput:
    """An image on its way to a vision tower that takes `side` × `side` pixels.

    It holds the picture or, once it is prepared, its resized pixels.
    """

    def __init__(self, image: Picture | PIL.Image.Image, side: int) -> None:
        picture = Picture.of(image)
        self._held: Picture | np.ndarray = picture
        self.side, self.digest = side, picture.digest  # equal for equal images

    @property
    def pixels(self) -> np.ndarray:
        """float32[side, side, 3] in [-1, 1]."""
        held = self._held
        return held.pixels(self.side) if isinstance(held, Picture) else held

    def prepare(self) -> None:
        """Computes `pixels`, so that who reads them later need not wait."""
        self._held = self.pixels


@dataclasses.dataclass
class _Clock:
    submitted: float
    assigned: float = math.nan  # to a batch row
    prefilled: float = math.nan
    first: float = math.nan
    finished: float = math.nan


# Is told an answer's tokens as the engine reads them: how many of these belong to the answer if they complete a stop
# string, None if they do not.
StopWatch = Callable[[list[int]], int | None]


@runtime_checkable
class Constraint(Protocol):
    """What an answer is held to (`gemma_tpu.grammar.Constraint`). Errors are those of the request alone."""

    def mask(self) -> np.ndarray:
        """Bits, uint8, of the tokens that may come next (`gemma_tpu.ops.logits.unpack`)."""
        ...

    def push(self, tokens: list[int]) -> bool:
        """Takes the next tokens; whether the answer is complete with them."""
        ...


class Request:
    """One sequence on its way through the engine, and the caller's end of it. Iterating yields lists of new tokens.

    `keys` are what the cache of the prompt depends on: its tokens, with the images' digests where they stand. `client`
    is who asks.

    Leaving the iteration early (break, an exception, a garbage-collected generator) cancels the work.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        images: Sequence[PlacedImage[ImageInput]],
        sampling_params: SamplingParams,
        stop_watch: StopWatch | None = None,
        constraint: Constraint | None = None,
        client: Hashable = None,
        *,
        num_soft_tokens: int = 0,
    ) -> None:
        self.number = 0  # of requests before it
        self.tokens = list(tokens)
        self.images = list(images)
        self.sampling_params = sampling_params
        self.seed = secrets.randbits(32) if sampling_params.seed is None else sampling_params.seed
        self.keys: list[int | bytes] = list(tokens)
        for placed in images:
            self.keys[placed.start : placed.start + num_soft_tokens] = [placed.image.digest] * num_soft_tokens
        self.generated: list[int] = []
        self.logprobs: list[TokenLogprob] = []  # of `generated`, if asked for
        self.prompt_logprobs: list[TokenLogprob | None] = []  # kept here for who reads the answer
        self.finish_reason: str | None = None  # see `gemma_tpu.options.Completion`
        self.cached_tokens = 0
        self.image_tokens = num_soft_tokens * len(images)
        self.draft_tokens = self.accepted_tokens = 0
        self.clock = _Clock(time.perf_counter())
        timeout = sampling_params.timeout
        self.deadline = math.inf if timeout is None else self.clock.submitted + float(timeout)  # by that clock
        self.cancelled = False
        self.pid = os.getpid()
        self._stop_watch, self.constraint, self.client = stop_watch, constraint, client
        self._ended = threading.Event()
        self._events: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
        self._notify: Callable[[], None] | None = None

    def on_event(self, notify: Callable[[], None]) -> None:
        """Has `notify` called whenever there is something new to iterate over, and once now; on the engine's thread."""
        self._notify = notify
        notify()

    @property
    def readable(self) -> bool:
        """Whether the iteration goes on without waiting."""
        return not self._events.empty()

    def __iter__(self) -> Iterator[list[int]]:
        try:
            while True:
                check_process(self.pid)
                event = self._events.get()
                if event is None:
                    return
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Asks the engine to stop; the row is free a step later. Harmless after the end."""
        self.cancelled = True

    def wait(self) -> None:
        """Until the end, of which `finish_reason` tells; `generated` then holds all tokens."""
        check_process(self.pid)
        self._ended.wait()

    # The engine's end.

    def ended_early(self, now: float) -> str | None:
        """The `finish_reason` of a request that is to end whatever it has written; None if it goes on."""
        if self.cancelled:
            return "cancelled"
        return "timeout" if now >= self.deadline else None

    def assign(self, cached_tokens: int) -> None:
        """It has a batch row, whose cache holds so many of its tokens already; perhaps not for the first time."""
        if math.isnan(self.clock.assigned):
            self.reuse(cached_tokens)
            self.clock.assigned = time.perf_counter()

    def reuse(self, cached_tokens: int) -> None:
        """Its row holds so many tokens of the prompt that it has not prefilled."""
        if math.isnan(self.clock.prefilled):
            self.cached_tokens = cached_tokens

    def prefilled(self) -> None:
        """Its prompt is in the cache, as far as the host is concerned."""
        if math.isnan(self.clock.prefilled):
            self.clock.prefilled = time.perf_counter()

    def count_guesses(self, made: int, accepted: int) -> None:
        """How many tokens were guessed in a decode call, and how many of them stood."""
        self.draft_tokens += made
        self.accepted_tokens += accepted

    def push(self, tokens: list[int], logprobs: Sequence[TokenLogprob] = ()) -> bool:
        """Hands tokens to the reader, up to the one that completes a stop string; whether one did."""
        count = self._stop_watch(tokens) if self._stop_watch else None
        if not self.generated:
            self.clock.first = time.perf_counter()
        tokens = tokens[:count]
        self.logprobs += logprobs[:count]
        self.generated += tokens
        self._put(tokens)
        return count is not None

    def fail(self, error: BaseException) -> None:
        self.finish("error", error)

    def finish(self, reason: str, error: BaseException | None = None) -> None:
        self.images = []  # who keeps an answer need not keep what it was about
        self.finish_reason = reason
        self.clock.finished = time.perf_counter()
        self._ended.set()
        self._put(error)

    def _put(self, event: list[int] | BaseException | None) -> None:
        self._events.put(event)
        if self._notify:
            self._notify()

    @property
    def usage(self) -> Usage:
        counts = len(self.tokens), self.image_tokens, self.cached_tokens, len(self.generated)
        return Usage(*counts, self.draft_tokens, self.accepted_tokens)

    @property
    def timings(self) -> Timings:
        clock, after_first = self.clock, len(self.generated) - 1
        decode = clock.finished - clock.first
        return Timings(
            queue=clock.assigned - clock.submitted,
            prefill=clock.prefilled - clock.assigned,
            first_token=clock.first - clock.submitted,
            decode=decode,
            tokens_per_second=after_first / decode if after_first > 0 and decode > 0 else 0.0,
        )
