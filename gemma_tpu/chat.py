"""A conversation with a model, turn by turn."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemma_tpu.image import load_image
from gemma_tpu.runtime.request import Request
from gemma_tpu.stream import Completion, TextStream
from gemma_tpu.text import before_calls

if TYPE_CHECKING:
    from gemma_tpu.api import Message, Model


class Chat:
    """A conversation. `messages` is its history; an answer that was cut short stays in it as far as it got.

    `dropped_turns` counts the oldest turns that have left the history for lack of room.
    """

    def __init__(self, model: Model, system: str | None, options: dict[str, Any], drop_oldest: bool) -> None:
        self._model, self._options, self._drop_oldest = model, options, drop_oldest
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.dropped_turns = 0

    def send(self, text: str, *, images: Sequence[Any] = (), **options: Any) -> Completion:
        """Says something, with images shown before it, and returns the answer."""
        return self.stream(text, images=images, **options).finish()

    def stream(self, text: str, *, images: Sequence[Any] = (), **options: Any) -> TextStream:
        """Like `send`, as pieces of text."""
        return _ChatStream(self, *self._ask(text, images, options))

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls of functions in the last answer, which wait for `respond`."""
        return self.messages[-1].get("tool_calls", []) if self.messages else []

    def respond(self, responses: Sequence[Any], **options: Any) -> TextStream:
        """Gives the response to each of `calls`, as text or a mapping, and streams what the model says to it."""
        if len(responses) != len(self.calls):
            raise ValueError(f"{len(responses)} responses given to {len(self.calls)} calls")
        answers = [
            {
                "name": call["function"]["name"],
                "response": dict(response) if isinstance(response, Mapping) else response,
            }
            for call, response in zip(self.calls, responses, strict=True)
        ]
        return _ChatStream(self, *self._submit([*self.messages, {"role": "tool", "content": answers}], options))

    def _ask(self, text: str, images: Sequence[Any], options: dict[str, Any]) -> tuple[list[Message], Request, int]:
        """The history with the question, less what there was no room for: that many turns."""
        parts = [{"type": "image", "image": load_image(image)} for image in images]
        question = {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}
        return self._submit([*self.messages, question], options)

    def _submit(self, messages: Sequence[Message], options: dict[str, Any]) -> tuple[list[Message], Request, int]:
        options = {**self._options, **options}
        settings = self._model._options(options)
        prompt, dropped = self._model._render(messages, None, False, options), 0
        if self._drop_oldest:
            messages, prompt, dropped = self._model._fit(messages, prompt, settings, options)
        request = self._model._submit(prompt, settings)
        self.dropped_turns += dropped
        return list(messages), request, dropped


class _ChatStream(TextStream):
    """Puts question and answer into the history when the answer ends, however it ends; no answer leaves no trace."""

    def __init__(self, chat: Chat, messages: list[Message], request: Request, dropped: int) -> None:
        self._chat, self._messages = chat, messages
        super().__init__(request, chat._model.tokenizer, dropped)

    def _run(self) -> Generator[str, None, None]:
        try:
            yield from super()._run()
        finally:
            if self._text:
                text, calls = "".join(self._text), self.completion.tool_calls
                answer: Message = {"role": "assistant", "content": before_calls(text) if calls else text}
                self._chat.messages = [*self._messages, answer | ({"tool_calls": calls} if calls else {})]
