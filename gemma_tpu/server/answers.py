"""The answers of one request: begun, read together, and counted."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import aclosing
from typing import Any

from gemma_tpu.api import Model
from gemma_tpu.options import Completion, TokenLogprob
from gemma_tpu.prompts import SinglePrompt
from gemma_tpu.server.metrics import Metrics
from gemma_tpu.server.schema import Sampling
from gemma_tpu.server.tools import ToolCall, ToolUse


class Answers:
    """`n` answers to each of some prompts, in that order. Leaving one of its methods stops the work.

    With a seed, the i-th answer to a prompt has the seed plus i: the first is that of a request for one.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[SinglePrompt],
        options: dict[str, Any],
        metrics: Metrics,
        *,
        n: int = 1,
        seed: int | None = None,
        use: ToolUse = ToolUse(),
        client: Hashable = None,
    ) -> None:
        self._model, self._metrics, self._n, self.tokenizer = model, metrics, n, model.tokenizer
        options = options | use.options(model) | {"client": client}
        seeds = [None if seed is None else (seed + i) % 2**32 for i in range(n)]
        self._streams = [model.astream(prompt, seed=seed, **options) for prompt in prompts for seed in seeds]
        self.parts = [use.parts(model.format) for _ in self._streams]
        self._wake = asyncio.Event()
        self._tokens_taken, self._logprobs_taken = ([0] * len(self._streams) for _ in range(2))

    async def start(self) -> None:
        """Submits them. Raises as `Model.stream`."""
        try:
            for stream in self._streams:  # one after the other, in the order in which they are to be given rows
                await stream.start(self._wake)
        except BaseException:
            self._cancel()
            raise

    async def pieces(self) -> AsyncGenerator[tuple[int, str | ToolCall | None]]:
        """The answer's number with a piece of its text, a call or, at its end, None. For `contextlib.aclosing`."""
        left, count = dict(enumerate(self._streams)), [0] * len(self._streams)
        times = [time.perf_counter()] * len(self._streams)
        try:
            while left:
                nothing = True
                for index, stream in list(left.items()):
                    if (piece := stream.take()) == "":
                        continue
                    nothing, before, last = False, count[index], times[index]
                    count[index], times[index] = stream.num_tokens, time.perf_counter()
                    if piece and before:  # the first token's time is counted apart
                        self._metrics.tokens(count[index] - before, times[index] - last)
                    parts = self.parts[index]
                    for part in parts.push(piece) if piece else parts.flush():
                        yield index, part
                    if piece is None:
                        self._metrics.finished(left.pop(index).completion)
                        yield index, None
                if nothing:
                    await self._wake.wait()
                    self._wake.clear()  # before looking: what comes now sets it again
        finally:
            self._cancel()
            for stream in left.values():
                self._metrics.finished(stream.completion)

    def take_tokens(self, index: int) -> list[int]:
        """Those that `pieces` has come to since the last call."""
        start, self._tokens_taken[index] = self._tokens_taken[index], self._streams[index].num_tokens
        return self._streams[index].tokens(start)

    def take_logprobs(self, index: int) -> list[TokenLogprob]:
        """Those, if asked for, of the tokens that `pieces` has come to since the last call."""
        start, self._logprobs_taken[index] = self._logprobs_taken[index], self._streams[index].num_tokens
        return self._streams[index].logprobs(start)

    def _cancel(self) -> None:
        for stream in self._streams:
            stream.cancel()

    async def finish(self) -> list[Completion]:
        """Waits for all of them."""
        async with aclosing(self.pieces()) as pieces:
            async for _ in pieces:
                pass
        return self.completions

    @property
    def written(self) -> bool:
        """Whether there is a token of any of them."""
        return any(stream.num_tokens for stream in self._streams)

    @property
    def waiting_before(self) -> int | None:
        """How many other answers are begun before the first of these; None if it does not wait for a batch row."""
        places = [self._model.waiting_before(stream) for stream in self._streams]
        waiting = [place for place in places if place is not None]
        return min(waiting) if len(waiting) == len(places) else None

    @property
    def completions(self) -> list[Completion]:
        return [stream.completion for stream in self._streams]

    def prompt_tokens(self, index: int) -> list[int]:
        return self._streams[index].prompt_tokens

    def prompt(self, index: int) -> list[TokenLogprob]:
        """The tokens of an answer's prompt; a log-probability that there is none of, or was not asked for, is NaN."""
        stream = self._streams[index]
        scored = stream.completion.prompt_logprobs or [None] * len(stream.prompt_tokens)
        pairs = zip(stream.prompt_tokens, scored, strict=True)
        return [one or TokenLogprob(token, math.nan) for token, one in pairs]

    def finish_reason(self, index: int) -> str:
        """In OpenAI's words."""
        reason = self._streams[index].completion.finish_reason
        return "tool_calls" if reason == "stop" and self.parts[index].calls else reason

    @property
    def stop_string(self) -> str | None:
        """The one that ended the first answer."""
        return self._streams[0].stop_string

    def chunk_usage(self, body: Sampling) -> dict[str, Any]:
        """What a chunk says of usage: nothing, null where only the last chunk has it, or what there is so far."""
        if not body.include_usage:
            return {}
        return {"usage": self.usage if body.usage_in_chunks else None}

    @property
    def usage(self) -> dict[str, Any]:
        """So far, in OpenAI's shape. A prompt counts once, however many answers it has."""
        usages = [stream.usage for stream in self._streams]
        prompts = usages[:: self._n]
        prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
        completion_tokens, guessed, right = (
            sum(getattr(usage, name) for usage in usages)
            for name in ("completion_tokens", "draft_tokens", "accepted_tokens")
        )
        details = {"accepted_prediction_tokens": right, "rejected_prediction_tokens": guessed - right}
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts)},
            **({"completion_tokens_details": details} if guessed else {}),
        }
