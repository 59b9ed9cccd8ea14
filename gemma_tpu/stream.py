"""Answers as they are written: tokens of a request → pieces of text."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator
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

    Leaving it early (`close`, or letting go of it) stops the work; `completion` then holds what there is.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, dropped_turns: int = 0, begun: str = "") -> None:
        self._request, self._tokenizer, self.dropped_turns, self._begun = request, tokenizer, dropped_turns, begun
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._hit_stop = False
        self._thoughts = Thoughts(tokenizer)
        self._pieces: Generator[str, None, None] = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stops the work. From any thread: one that waits for the next piece sees the end soon after."""
        self._request.cancel()  # also when iteration never began
        with contextlib.suppress(ValueError):  # another thread is inside the generator, and will leave it
            self._pieces.close()

    __del__ = close

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
        detokenizer, stops = Detokenizer(self._tokenizer), StopStrings(self._request.options.stop)
        events = iter(self._request)
        for tokens in events:
            piece = ""
            for token in tokens:  # one by one: the answer ends with the token that completes a stop string
                self._tokens.append(token)
                text, self._hit_stop = stops.push(detokenizer.push(self._thoughts.split([token])))
                piece += text
                if self._hit_stop:
                    break
            if piece:
                self._text.append(piece)
                yield piece
            if self._hit_stop:
                self._request.cancel()
                for _ in events:  # until the engine has let go of the row
                    pass
                return
        piece, self._hit_stop = stops.push(detokenizer.flush())
        if piece := piece + ("" if self._hit_stop else stops.flush()):
            self._text.append(piece)
            yield piece
