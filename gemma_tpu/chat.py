"""A conversation with a model, turn by turn."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from gemma_tpu.checks import as_tuple
from gemma_tpu.engine.request import Request
from gemma_tpu.options import Completion
from gemma_tpu.prompts import Images, Message, Reading
from gemma_tpu.stream import TextStream
from gemma_tpu.text import MakeReader, answer_text, check_turns, read_calls

if TYPE_CHECKING:
    from gemma_tpu.api import Model


class Chat:
    """A conversation. `messages` is its history; an answer that was cut short stays in it as far as it got.

    `dropped_turns` counts the oldest turns that have left the history for lack of room. One answer is written at a
    time: asking for another one before it has ended, or was closed, is a RuntimeError. The history may be edited in
    between; meanwhile, messages may be appended to it, which come after the answer.
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

        With `continue_final`, and without a text, the last answer goes on where it was cut (at `max_new_tokens`, by
        `timeout`, or by its reader); the completion is what came to it.
        """
        return self.stream(text, images=images, continue_final=continue_final, **options).finish()

    def stream(
        self, text: str | None = None, *, images: Images = None, continue_final: bool = False, **options: Any
    ) -> TextStream:
        """Like `send`, as pieces of text."""
        with self._turn() as history:
            if not continue_final:
                return self._answer(history, [*history, self._question(text, images)], options)
            if text is not None or images is not None:
                raise ValueError("continue_final goes on with the last answer, and takes neither text nor images")
            begun = self._begun(history)
            return self._answer(history, [*history[:-1], {"role": "assistant", "content": begun}], options, begun)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls of functions in the last answer, which wait for `respond`."""
        last = self.messages[-1] if self.messages else None
        return (isinstance(last, Mapping) and last.get("tool_calls")) or []

    def respond(self, responses: Sequence[Any], **options: Any) -> TextStream:
        """Gives the response to each of `calls`, as text or a mapping, and streams what the model says to it."""
        with self._turn() as history:
            responses = as_tuple("responses", responses)
            calls = read_calls({"tool_calls": self.calls}, f"messages[{len(history) - 1}]")
            if len(responses) != len(calls):
                raise ValueError(f"{len(responses)} responses given to {len(calls)} calls")
            answers = [
                {
                    "name": call["name"],
                    "response": dict(response) if isinstance(response, Mapping) else response,
                }
                for call, response in zip(calls, responses, strict=True)
            ]
            return self._answer(history, [*history, {"role": "tool", "content": answers}], options)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[tuple[Any, ...]]:
        """Begins a turn with the history; it ends with its answer (`_ChatStream`), or here if there will be none."""
        if not self._answering.acquire(blocking=False):
            raise RuntimeError(
                "this chat is still answering: read that answer to its end, or close it; threads that talk at the same "
                "time need a chat each"
            )
        try:
            yield as_tuple("messages", self.messages)
        except BaseException:  # Ctrl-C too: no answer will end this turn
            self._answering.release()
            raise

    def _answer(
        self, history: tuple[Any, ...], said: list[Any], options: dict[str, Any], begun: str | None = None
    ) -> TextStream:
        """Streams the answer to `said`, or what comes to the answer in it that was `begun`."""
        check_turns(said, begun is not None, tools="tools" in self._model.format.options)
        reading = dataclasses.replace(self._reading, continue_final=begun is not None)
        options = {**self._options, **options}
        self._model._require_one(options)
        kept, (request,), dropped = self._model._ask(said, None, reading, options, self._drop_oldest)
        messages = cast(list[Message], kept if begun is None else kept[:-1])
        return _ChatStream(self, history, messages, begun or "", request, dropped, self._model._call_reader(options))

    def _question(self, text: str | None, images: Images) -> Message:
        if text is None:
            raise ValueError("there is nothing to answer: send a text")
        parts = [{"type": "image", "image": image.compact()} for image in self._reading.images(images)]
        return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}

    def _begun(self, history: tuple[Any, ...]) -> str:
        """The text of the last answer, which is to go on."""
        last = history[-1] if history else None
        if not isinstance(last, Mapping) or last.get("role") not in ("assistant", "model"):
            raise ValueError("there is no answer to continue yet")
        if last.get("tool_calls"):
            raise ValueError(
                "the last answer is whole: it calls functions, and goes on when it is given their responses"
            )
        return answer_text(last.get("content"), f"messages[{len(history) - 1}]", strip=False)


class _ChatStream(TextStream):
    """Puts question and answer into the history when the answer ends, however it ends.

    Without an answer there is no trace of the question; but turns that were dropped for one that is empty have left.
    """

    def __init__(
        self,
        chat: Chat,
        history: tuple[Any, ...],
        messages: list[Message],
        begun: str,
        request: Request,
        dropped: int,
        call_reader: MakeReader,
    ) -> None:
        self._chat = weakref.ref(chat)  # which has the model; a history that nobody can read needs no answer
        self._history, self._messages = history, messages
        super().__init__(request, chat._model.tokenizer, dropped, begun, call_reader)

    def _keep(self) -> None:
        chat, text = self._chat(), self._begun + self._answer.text
        if chat is None:
            return
        try:
            completion = self.completion
            if not completion.text and completion.finish_reason not in ("stop", "length"):
                return
            now, asked = as_tuple("messages", chat.messages), len(self._history)
            if list(map(id, now[:asked])) != list(map(id, self._history)):
                raise RuntimeError(
                    "the chat's messages were changed while it answered, other than by appending, so the answer is not "
                    "among them: it is the stream's completion"
                )
            chat.dropped_turns += self.dropped_turns
            if not text:
                chat.messages = [*self._messages[:-1], *now[asked:]]
                return
            calls = completion.tool_calls
            before = itertools.takewhile(lambda piece: isinstance(piece, str), self._pieces_of(text))
            answer: Message = {"role": "assistant", "content": "".join(map(str, before))}
            chat.messages = [*self._messages, {**answer, "tool_calls": calls} if calls else answer, *now[asked:]]
        finally:
            chat._answering.release()
