"""A conversation with a model, turn by turn."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from gemma_tpu.checks import as_tuple
from gemma_tpu.engine.request import Request
from gemma_tpu.options import Completion
from gemma_tpu.prompts import Images, Message, Reading
from gemma_tpu.stream import TextStream
from gemma_tpu.text import text_before_calls

if TYPE_CHECKING:
    from gemma_tpu.api import Model


class Chat:
    """A conversation. `messages` is its history; an answer that was cut short stays in it as far as it got.

    `dropped_turns` counts the oldest turns that have left the history for lack of room. One answer is written at a
    time: asking for another one before it has ended, or was closed, is a RuntimeError.
    """

    def __init__(
        self, model: Model, system: str | None, options: dict[str, Any], drop_oldest: bool, reading: Reading
    ) -> None:
        if not isinstance(system, str | list | None):
            raise ValueError(f"system must be a string, got {type(system).__name__}")
        self._model, self._options, self._drop_oldest, self._reading = model, options, drop_oldest, reading
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.dropped_turns = 0
        self._answering = threading.Lock()  # held from the question to the end of its answer

    def send(
        self, text: str | None = None, *, images: Images = None, continue_final: bool = False, **options: Any
    ) -> Completion:
        """Says something, with images shown before it, and returns the answer.

        With `continue_final`, and without a text, the last answer goes on where it was cut (at `max_new_tokens`, or by
        its reader); the completion is what came to it.
        """
        return self.stream(text, images=images, continue_final=continue_final, **options).finish()

    def stream(
        self, text: str | None = None, *, images: Images = None, continue_final: bool = False, **options: Any
    ) -> TextStream:
        """Like `send`, as pieces of text."""
        with self._turn():
            if not continue_final:
                return self._answer([*self.messages, self._question(text, images)], options)
            if text is not None or images is not None:
                raise ValueError("continue_final goes on with the last answer, and takes neither text nor images")
            before, begun = self._reopened()
            return self._answer([*before, {"role": "assistant", "content": begun}], options, begun)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls of functions in the last answer, which wait for `respond`."""
        return self.messages[-1].get("tool_calls", []) if self.messages else []

    def respond(self, responses: Sequence[Any], **options: Any) -> TextStream:
        """Gives the response to each of `calls`, as text or a mapping, and streams what the model says to it."""
        with self._turn():
            responses = as_tuple("responses", responses)
            if len(responses) != len(self.calls):
                raise ValueError(f"{len(responses)} responses given to {len(self.calls)} calls")
            answers = [
                {
                    "name": call["function"]["name"],
                    "response": dict(response) if isinstance(response, Mapping) else response,
                }
                for call, response in zip(self.calls, responses, strict=True)
            ]
            return self._answer([*self.messages, {"role": "tool", "content": answers}], options)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Begins a turn, which ends with its answer (`_ChatStream`), or here if there will be none."""
        if not self._answering.acquire(blocking=False):
            raise RuntimeError(
                "this chat is still answering: read that answer to its end, or close it; threads that talk at the same "
                "time need a chat each"
            )
        try:
            yield
        except BaseException:  # Ctrl-C too: no answer will end this turn
            self._answering.release()
            raise

    def _answer(self, said: list[Message], options: dict[str, Any], begun: str | None = None) -> TextStream:
        """Streams the answer to `said`, or what comes to the answer in it that was `begun`."""
        reading = dataclasses.replace(self._reading, continue_final=begun is not None)
        options = {**self._options, **options}
        kept, request, dropped = self._model._ask(said, None, reading, options, self._drop_oldest)
        messages = cast(list[Message], kept if begun is None else kept[:-1])
        return _ChatStream(self, messages, begun or "", request, dropped)

    def _question(self, text: str | None, images: Images) -> Message:
        if text is None:
            raise ValueError("there is nothing to answer: send a text")
        parts = [{"type": "image", "image": image.compact()} for image in self._reading.images(images)]
        return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}

    def _reopened(self) -> tuple[list[Message], str]:
        """The history without its last answer, and that answer as the chat format writes it."""
        *before, last = self.messages or [{}]
        if last.get("role") != "assistant":
            raise ValueError("there is no answer to continue yet")
        if last.get("tool_calls"):
            raise ValueError(
                "the last answer is whole: it calls functions, and goes on when it is given their responses"
            )
        return before, last["content"].strip()


class _ChatStream(TextStream):
    """Puts question and answer into the history when the answer ends, however it ends.

    Without an answer there is no trace of the question; but turns that were dropped for one that is empty have left.
    """

    def __init__(self, chat: Chat, messages: list[Message], begun: str, request: Request, dropped: int) -> None:
        self._chat = weakref.ref(chat)  # which has the model; a history that nobody can read needs no answer
        self._messages = messages
        super().__init__(request, chat._model.tokenizer, dropped, begun)

    def _keep(self) -> None:
        chat, text = self._chat(), self._begun + self._answer.text
        if chat is None:
            return
        try:
            completion = self.completion
            if not completion.text and completion.finish_reason not in ("stop", "length"):
                return
            chat.dropped_turns += self.dropped_turns
            if not text:
                chat.messages = self._messages[:-1]
                return
            calls = completion.tool_calls
            answer: Message = {"role": "assistant", "content": text_before_calls(text) if calls else text}
            chat.messages = [*self._messages, {**answer, "tool_calls": calls} if calls else answer]
        finally:
            chat._answering.release()
