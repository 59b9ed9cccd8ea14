"""Answers as they are written: tokens of a request → pieces of text."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from gemma_tpu.engine.errors import check_process
from gemma_tpu.engine.request import Request, StopWatch
from gemma_tpu.options import Completion, TokenLogprob, Usage
from gemma_tpu.text import Call, Detokenizer, MakeReader, StopStrings, Thoughts, Tokenizer


class AnswerText:
    """Tokens of an answer → its text, up to the token that completes a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], begun: str = "") -> None:
        self._detokenizer, self._stops = Detokenizer(tokenizer), StopStrings(stop)
        self._thoughts = Thoughts(tokenizer)
        self._stands = begun[len(begun.rstrip()) :]  # the format has no space at the end: the model may write it again
        self._pieces: list[str] = []
        self.tokens: list[int] = []
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> str:
        """The text that became certain with them."""
        piece = ""
        # One by one, if need be: the answer ends with the token that completes a stop string.
        for some in ([token] for token in tokens) if self._stops else [tokens]:
            if self.stopped:
                break
            self.tokens += some
            text, self.stopped = self._stops.push(self._detokenizer.push(self._thoughts.split(some)))
            piece += text
        return self._joined(piece)

    def flush(self) -> str:
        """The rest of the text, when no more tokens come."""
        if self.stopped:
            return ""
        piece, self.stopped = self._stops.push(self._detokenizer.flush())
        piece += "" if self.stopped else self._stops.flush()
        return self._joined(piece)

    def _joined(self, piece: str) -> str:
        """What comes to the text: `piece` without the space that stands there already."""
        while piece and self._stands:
            same = piece[0] == self._stands[0]
            piece, self._stands = piece[same:], self._stands[1:] if same else ""
        self._pieces.append(piece)
        return piece

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def stop_string(self) -> str | None:
        """The one that ended it."""
        return self._stops.stopped

    @property
    def thinking(self) -> str:
        return self._thoughts.text


def stop_watch(tokenizer: Tokenizer, stop: Sequence[str]) -> StopWatch:
    """Has the engine end an answer where a stop string is complete, whether or not it is being read by then."""
    answer = AnswerText(tokenizer, stop)

    def watch(tokens: list[int]) -> int | None:
        before = len(answer.tokens)
        answer.push(tokens)
        return len(answer.tokens) - before if answer.stopped else None

    return watch


class TextStream(Iterator[str]):
    """An answer as it is written: iterate for pieces of text, then read `completion`.

    Leaving it early (`close`, `cancel`, or letting go of it) stops the work; `completion` then holds what there is. It
    does not keep its model: one that is let go of ends its streams with a RuntimeError. `call_reader` makes what finds
    calls in it.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        dropped_turns: int = 0,
        begun: str = "",
        call_reader: MakeReader = lambda: None,
    ) -> None:
        self._request, self._tokenizer, self.dropped_turns, self._begun = request, tokenizer, dropped_turns, begun
        self._call_reader = call_reader
        self._events = iter(request)
        self._answer = AnswerText(tokenizer, request.sampling_params.stop, begun)
        self._reading = threading.Lock()
        self._reader: int | None = None  # the thread that has the lock
        self._ended = False

    def __next__(self) -> str:
        check_process(self._request.pid)  # before the lock, which a forked child may have inherited as taken
        with self._reading:
            self._reader = threading.get_ident()
            while not self._ended:
                if piece := self._read():
                    return piece
        raise StopIteration

    def cancel(self) -> None:
        """Stops the work and returns at once, from any thread. What was written by then can still be read."""
        self._request.cancel()

    def close(self) -> None:
        """Stops the work, and returns when it has ended. From any thread, also while another one reads.

        What the model had written by then belongs to `completion`, unless nothing of the answer was read: it is in the
        cache, and a conversation goes on from there without reading anything again.
        """
        self.cancel()
        check_process(self._request.pid)  # as in __next__
        if self._reading.locked() and self._reader == threading.get_ident():
            return  # a signal's handler, say: this thread is reading, and will come to the end
        with self._reading:
            self._take_rest()

    def __del__(self) -> None:
        if hasattr(self, "_ended"):
            self.cancel()
            self._end()  # without waiting: this may be the engine's thread

    def finish(self) -> Completion:
        """Waits for the end; returns the whole answer."""
        try:
            for _ in self:
                pass
        finally:
            self.close()
        return self.completion

    @property
    def usage(self) -> Usage:
        """Of the answer so far."""
        return dataclasses.replace(self._request.usage, completion_tokens=len(self._answer.tokens))

    @property
    def completion(self) -> Completion:
        """The answer so far; whole once the iteration has ended."""
        answer = self._answer
        reason = "stop" if answer.stopped else self._request.finish_reason or "cancelled"
        text, timings, usage = answer.text, self._request.timings, self.usage
        calls = [piece for piece in self._pieces_of(self._begun + text) if isinstance(piece, dict)]
        tokens = list(answer.tokens)
        logprobs = self._request.logprobs[: len(tokens)], self._request.prompt_logprobs
        return Completion(text, tokens, reason, usage, timings, self.dropped_turns, answer.thinking, calls, *logprobs)

    def _pieces_of(self, text: str) -> list[str | Call]:
        """Text, and the calls in it."""
        reader = self._call_reader()
        return [*reader.push(text), *reader.flush()] if reader else [text]

    def _read(self) -> str:
        """The next piece, perhaps an empty one; after the last, the stream has ended."""
        try:
            tokens = next(self._events, None)
            piece = self._answer.flush() if tokens is None else self._answer.push(tokens)
            if self._answer.stopped:
                self._request.cancel()
        except Exception:
            self._end()
            raise
        except BaseException:  # Ctrl-C is another way to leave it
            self.cancel()
            self._take_rest()
            raise
        if tokens is None:
            self._end()
        return piece

    def _take_rest(self) -> None:
        """Takes all that was written, from its beginning: a reader may have been interrupted between any two steps."""
        try:
            if not self._ended and self._answer.tokens:
                self._request.wait()
                answer = AnswerText(self._tokenizer, self._request.sampling_params.stop, self._begun)
                answer.push(self._request.generated)
                answer.flush()
                self._answer = answer
        finally:
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._keep()

    def _keep(self) -> None:
        """Called once, when no more will be read; for who keeps what was said."""


class _Wakes:
    """Sets events of an asyncio loop from the engine's thread, those that come together with one call of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._events: collections.deque[asyncio.Event] = collections.deque()
        self._called = False

    def set(self, event: asyncio.Event) -> None:
        self._events.append(event)
        if not self._called and (loop := self._loop()):
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(self._set_all)

    def _set_all(self) -> None:
        self._called = False  # first: an event that comes now is either found below or calls again
        while self._events:
            self._events.popleft().set()


_of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Wakes] = weakref.WeakKeyDictionary()


def _wakes() -> _Wakes:
    """Of the running loop."""
    loop = asyncio.get_running_loop()
    return _of_loops.setdefault(loop, _Wakes(loop))


class AsyncTextStream(AsyncIterator[str]):
    """An answer as it is written, for asyncio: `async for` pieces of text, then read `completion`.

    No thread waits for it. `submit` makes the stream; it runs on a thread of asyncio's, as reading and resizing images
    take a while. Leaving the loop, a task that is cancelled, `cancel` and letting go of it stop the work.
    """

    def __init__(self, submit: Callable[[], TextStream]) -> None:
        self._submit: Callable[[], TextStream] | None = submit
        self._stream: TextStream | None = None
        self._wake = asyncio.Event()

    async def start(self, wake: asyncio.Event | None = None) -> AsyncTextStream:
        """Submits the prompt, unless that is done; for who wants to know what is wrong with it before the first piece.

        `wake` is set whenever `take` has something; for who reads several streams. Raises as `Model.stream`.
        """
        if self._submit:
            submit, self._submit = self._submit, None  # which has the model and the prompt
            self._wake = wake or self._wake
            self._stream = await asyncio.to_thread(submit)
            self._stream._request.on_event(functools.partial(_wakes().set, self._wake))
        return self

    def take(self) -> str | None:
        """The next piece, if it is there: "" if it is not, None after the last."""
        stream = self._started
        while stream._request.readable and not stream._ended:
            if piece := stream._read():
                return piece
        return None if stream._ended else ""

    async def __anext__(self) -> str:
        await self.start()
        try:
            while (piece := self.take()) == "":
                await self._wake.wait()
                self._wake.clear()  # before looking: what comes now sets it again
        except asyncio.CancelledError:
            self.cancel()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    def cancel(self) -> None:
        """Stops the work and returns at once. What was written by then can still be read."""
        if self._stream is not None:
            self._stream.cancel()

    @property
    def completion(self) -> Completion:
        """The answer so far; whole once the iteration has ended. RuntimeError before it has begun."""
        return self._started.completion

    @property
    def usage(self) -> Usage:
        """Of the answer so far."""
        return self._started.usage

    @property
    def num_tokens(self) -> int:
        """How many tokens of the answer have been read."""
        return len(self._started._answer.tokens)

    def tokens(self, start: int = 0) -> list[int]:
        """Those that have been read, from one on."""
        return self._started._answer.tokens[start:]

    @property
    def prompt_tokens(self) -> list[int]:
        """As the model was given them."""
        return self._started._request.tokens

    def logprobs(self, start: int = 0) -> list[TokenLogprob]:
        """Of the tokens that have been read, from one on; empty unless they were asked for."""
        return self._started._request.logprobs[start : self.num_tokens]

    @property
    def stop_string(self) -> str | None:
        """The one of `stop` that ended the answer; None if another thing did, or nothing yet."""
        return self._started._answer.stop_string

    @property
    def _request(self) -> Request:
        return self._started._request

    @property
    def _started(self) -> TextStream:
        if self._stream is None:
            raise RuntimeError("this stream has not been started")
        return self._stream
