"""Answers as they are written: tokens of a request → pieces of text."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from gemma_tpu.runtime.request import Request, Timings, Usage
from gemma_tpu.text import Detokenizer, StopStrings, Thoughts, Tokenizer, parse_calls
from gemma_tpu.text.special import FUNCTION_PIECES


@dataclasses.dataclass(frozen=True)
class Completion:
    """An answer. `tokens` are without the stop token, and up to the one that completed a stop string.

    `finish_reason` is "stop", "length" or "cancelled". `dropped_turns` are those that the model was not told, for lack
    of room. `thinking` is what MedGemma thought before it answered, which `text` is without. `tool_calls` are
    FunctionGemma's calls in `text`, as messages have them; where a `Chat` continues an answer, those in all of it.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    usage: Usage
    timings: Timings
    dropped_turns: int = 0
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class TextStream(Iterator[str]):
    """An answer as it is written: iterate for pieces of text, then read `completion`.

    Leaving it early (`close`, `cancel`, or letting go of it) stops the work; `completion` then holds what there is.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, dropped_turns: int = 0, begun: str = "") -> None:
        self._request, self._tokenizer, self.dropped_turns, self._begun = request, tokenizer, dropped_turns, begun
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._hit_stop = self._closing = False
        self._detokenizer, self._stops = Detokenizer(tokenizer), StopStrings(request.options.stop)
        self._thoughts = Thoughts(tokenizer)
        self._reading = threading.Lock()
        self._pieces: Generator[str, None, None] = self._run()

    def __next__(self) -> str:
        with self._reading:
            return next(self._pieces)

    def cancel(self) -> None:
        """Stops the work and returns at once, from any thread. What was written by then can still be read."""
        self._request.cancel()

    def close(self) -> None:
        """Stops the work. From any thread: one that waits for the next piece sees the end soon after.

        What the model had written by then belongs to `completion`, whether or not it was waited for: it is in the
        cache, and a conversation goes on from there without reading anything again.
        """
        self.cancel()  # also when iteration never began
        if self._reading.acquire(blocking=False):  # else another thread is reading, and comes to the end
            try:
                self._closing = True
                self._pieces.close()
            finally:
                self._reading.release()

    def __del__(self) -> None:
        """Stops the work, and waits for nothing: this may be the engine's thread."""
        self._request.cancel()

    def finish(self) -> Completion:
        """Waits for the end; returns the whole answer."""
        for _ in self:
            pass
        return self.completion

    @property
    def completion(self) -> Completion:
        """The answer so far; whole once the iteration has ended."""
        reason = "stop" if self._hit_stop else self._request.finish_reason or "cancelled"
        usage = dataclasses.replace(self._request.usage, completion_tokens=len(self._tokens))
        text, timings = "".join(self._text), self._request.timings
        calls = parse_calls(self._begun + text) if self._tokenizer.find(FUNCTION_PIECES[0]) is not None else []
        return Completion(
            text, list(self._tokens), reason, usage, timings, self.dropped_turns, self._thoughts.text, calls
        )

    def _run(self) -> Generator[str, None, None]:
        events = iter(self._request)
        try:
            for tokens in events:
                if piece := self._take(tokens):
                    yield piece
                if self._hit_stop:
                    self._request.cancel()
                    for _ in events:  # until the engine has let go of the row
                        pass
                    return
        except (GeneratorExit, KeyboardInterrupt) as end:
            self._request.cancel()
            if self._closing or isinstance(end, KeyboardInterrupt):
                with contextlib.suppress(Exception):  # nobody waits for this answer any more
                    for tokens in self._request:
                        self._take(tokens)
                self._take_rest()
            raise
        if piece := self._take_rest():
            yield piece

    def _take(self, tokens: Sequence[int]) -> str:
        """Adds tokens to the answer, none after one that completes a stop string; returns their text."""
        piece = ""
        for token in tokens:
            if self._hit_stop:
                break
            self._tokens.append(token)
            text, self._hit_stop = self._stops.push(self._detokenizer.push(self._thoughts.split([token])))
            piece += text
        if piece:
            self._text.append(piece)
        return piece

    def _take_rest(self) -> str:
        """Adds what was held back of the text; returns it."""
        if self._hit_stop:
            return ""
        piece, self._hit_stop = self._stops.push(self._detokenizer.flush())
        if piece := piece + ("" if self._hit_stop else self._stops.flush()):
            self._text.append(piece)
        return piece
