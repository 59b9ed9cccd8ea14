"""A conversation with a model, turn by turn."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from gemma_tpu.image import load_image
from gemma_tpu.runtime.request import Request
from gemma_tpu.stream import Completion, TextStream

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

    def _ask(self, text: str, images: Sequence[Any], options: dict[str, Any]) -> tuple[list[Message], Request, int]:
        """The history with the question, less what there was no room for: that many turns."""
        parts = [{"type": "image", "image": load_image(image)} for image in images]
        question = {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}
        messages = [*self.messages, question]
        settings = self._model._options({**self._options, **options})
        prompt, dropped = self._model._render(messages, None, False), 0
        if self._drop_oldest:
            prompt, dropped = self._model._fit(messages, prompt, settings)
        request = self._model._submit(prompt, settings)
        self.dropped_turns += dropped
        first = int(messages[0]["role"] == "system")
        del messages[first : first + 2 * dropped]
        return messages, request, dropped


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
                self._chat.messages = [*self._messages, {"role": "assistant", "content": "".join(self._text)}]
