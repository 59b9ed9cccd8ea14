"""Conversations: their turns, the part in the model's context, and the answer being generated."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from demo import markdown
from demo.texts import text

if TYPE_CHECKING:
    from gemma_tpu import Completion, Model, TextStream

_LOG = logging.getLogger(__name__)
_RESTORING = 30.0  # seconds that a page may take to restore itself
_TRUNCATED = ("length", "cancelled")  # finish reasons of incomplete answers


class Answer:
    """An answer being generated, read on its own thread, so that it occupies none of the web server's.

    `text` begins with `prefix`, the answer it continues, and grows until `done`; `error` is set if generation failed.
    `sampling_params` are the arguments of `stream`; `waiting_before` is the model's method. `forgotten` counts the
    earlier turns that were dropped from the prompt.
    """

    def __init__(
        self,
        stream: TextStream,
        sampling_params: dict[str, Any],
        waiting_before: Callable[[TextStream], int | None],
        prefix: str = "",
        forgotten: int = 0,
    ) -> None:
        self._stream, self._waiting_before, self.forgotten = stream, waiting_before, forgotten
        self._pieces = [prefix]
        self._max_tokens, self._seed = sampling_params.get("max_new_tokens", 0), effective_seed(sampling_params)
        self.done = False
        self.error: Exception | None = None
        threading.Thread(target=self._read, name="demo-answer", daemon=True).start()

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def completion(self) -> Completion:
        return self._stream.completion

    @property
    def queue_position(self) -> int | None:
        """How many answers are ahead in the queue; None once this one has started."""
        return None if self.done else self._waiting_before(self._stream)

    @property
    def can_continue(self) -> bool:
        """Whether it is incomplete and the context has room to continue it."""
        completion = self.completion
        truncated = completion.finish_reason in _TRUNCATED and not context_full(completion, self._max_tokens)
        return self.done and bool(self.text) and truncated

    def stop(self) -> None:
        """Cancels generation; `done` follows soon."""
        self._stream.cancel()

    def statistics(self, lang: str) -> str:
        """The line under the answer, once it is done."""
        return statistics(self.completion, self._seed, self.forgotten, lang, self._max_tokens)

    def _read(self) -> None:
        try:
            for piece in self._stream:
                self._pieces.append(piece)
        except Exception as error:  # shown on the page
            _LOG.exception("an answer broke off")
            self.error = error
        finally:
            self.done = True


class AnyAnswer(Protocol):
    """An `Answer`, or one restored from an earlier visit (`demo.session_storage.StoredAnswer`)."""

    error: Exception | None
    forgotten: int

    @property
    def text(self) -> str: ...
    @property
    def done(self) -> bool: ...
    @property
    def can_continue(self) -> bool: ...
    @property
    def queue_position(self) -> int | None: ...
    def stop(self) -> None: ...
    def statistics(self, lang: str) -> str: ...


class Asked:
    """A question from the moment it is sent; `answer` follows. It ends when the visitor leaves the page (`left`)."""

    def __init__(self) -> None:
        self.answer: AnyAnswer | None = None
        self.left = False

    def started(self, answer: AnyAnswer) -> None:
        self.answer = answer
        if self.left:  # while it was being started
            answer.stop()

    def leave(self) -> None:
        self.left = True
        if self.answer is not None:
            self.answer.stop()


class ActiveAnswers:
    """The questions being answered, by session, so that the answers stop when the visitor leaves the page."""

    def __init__(self) -> None:
        self._asked: dict[str, list[Asked]] = {}

    @contextlib.contextmanager
    def track(self, session: str) -> Iterator[Asked]:
        """Stops the answer on exit if it is not done."""
        asked = Asked()
        self._asked.setdefault(session, []).append(asked)
        try:
            yield asked
        finally:
            asked.leave()
            self._asked[session].remove(asked)
            if not self._asked[session]:
                del self._asked[session]

    def stop(self, session: str) -> None:
        for asked in self._asked.get(session, []):
            asked.leave()


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A turn as the model sees it. `pictures`: paths or data URLs."""

    question: str
    pictures: tuple[str, ...]
    answer: str


def submit(
    model: Model,
    history: Sequence[Exchange],
    question: str,
    pictures: Sequence[str | None],
    sampling_params: dict[str, Any],
) -> tuple[TextStream, tuple[str, ...], int]:
    """Starts an answer. Returns its stream, the pictures in its message, and how many turns of `history` were dropped.

    `pictures` are those attached now; the message includes the ones that `history` does not.
    """
    history, before = list(history), len(history)
    wanted = dict.fromkeys(path for path in pictures if path)
    while True:
        new = tuple(path for path in wanted if path not in _pictures_in(history))
        messages = [message for exchange in history for message in _exchange(exchange)]
        stream = model.stream([*messages, _question(question, new)], **sampling_params)
        dropped, history = history[: stream.dropped_turns], history[stream.dropped_turns :]
        wanted = _pictures_in(dropped) | wanted
        if wanted.keys() <= {*_pictures_in(history), *new}:
            return stream, new, before - len(history)
        stream.cancel()  # a wanted picture was dropped with its turn: send it again


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question with the pictures in its message (paths), and its answer.

    `fresh`: it starts a new context, because the turns before it were about other pictures. `lost` counts pictures
    whose files no longer exist.
    """

    question: str
    pictures: tuple[str, ...]
    answer: AnyAnswer
    fresh: bool = False
    lost: int = 0

    @property
    def exchange(self) -> Exchange:
        return Exchange(self.question, self.pictures, self.answer.text)


class Conversation:
    """One visitor's conversation in one tab; thread-safe.

    All turns stay on the page. The model's context begins where a picture was last replaced or removed, so that it does
    not confuse old pictures with new ones; adding a second picture keeps the context. With `drop_oldest`, turns that do
    not fit are dropped from the context, and their pictures are sent again.
    """

    def __init__(self) -> None:
        self.restored = asyncio.Event()  # set once the page shows what an earlier visit stored
        self._turns: list[Turn] = []
        self._attached: tuple[str, ...] = ()
        self._context_start = 0
        self._lock = threading.Lock()
        self.lang = "en"  # of the page; it may change during an answer

    def __deepcopy__(self, memo: dict) -> Conversation:
        return Conversation()  # gr.State copies its initial value for each visitor

    async def wait_until_restored(self) -> bool:
        """Waits, for a few seconds at most, so that a visitor's first question follows the conversation before it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RESTORING):
                await self.restored.wait()
        return self.restored.is_set()

    @property
    def writing(self) -> bool:
        return bool(self._turns) and not self._turns[-1].answer.done

    @property
    def last_question(self) -> str:
        return self._turns[-1].question if self._turns else ""

    def has_picture(self, pictures: Sequence[str | None]) -> bool:
        """Whether a question with `pictures` has a picture in its context."""
        return any(pictures) or any(turn.pictures for turn in self._context())

    def ask(self, model: Model, question: str, pictures: Sequence[str | None], params: dict[str, Any]) -> Turn:
        """Starts an answer. `pictures` are those attached now; `params` are sampling parameters.

        ValueError if the model cannot take the question; the conversation then stays unchanged.
        """
        with self._lock:
            attached = tuple(path for path in pictures if path)
            extended = bool(self._attached) and attached[: len(self._attached)] == self._attached
            fresh = bool(attached) and not extended
            context = [] if fresh else self._context()
            history = [turn.exchange for turn in context]
            stream, new, forgotten = submit(model, history, question, pictures, params)
            answer = Answer(stream, params, model.waiting_before, forgotten=forgotten)
            turn = Turn(question, new, answer, fresh and bool(self._turns))
            kept = context[forgotten:]
            self._context_start = self._turns.index(kept[0]) if kept else len(self._turns)
            self._attached = attached or self._attached
            self._turns.append(turn)
            return turn

    @property
    def can_continue(self) -> bool:
        """Whether the last answer can be continued."""
        return bool(self._turns) and self._turns[-1].answer.can_continue

    def continue_answer(self, model: Model, params: dict[str, Any]) -> Turn:
        """Starts to continue the last answer, without dropping turns.

        ValueError if there is no room; the conversation then stays unchanged.
        """
        with self._lock:
            *context, last = self._context()
            prefix = last.answer.text.rstrip()
            messages = [message for turn in context for message in _exchange(turn.exchange)]
            messages += [_question(last.question, last.pictures), {"role": "assistant", "content": prefix}]
            stream = model.stream(messages, continue_final=True, **(params | {"drop_oldest": False}))
            turn = dataclasses.replace(last, answer=Answer(stream, params, model.waiting_before, prefix))
            self._turns[-1] = turn
            return turn

    def stop(self) -> None:
        """Stops the answer being generated, if any."""
        if self._turns:
            self._turns[-1].answer.stop()

    def clear(self) -> None:
        with self._lock:
            self.stop()
            self._turns, self._attached, self._context_start = [], (), 0

    @property
    def attached(self) -> tuple[str, ...]:
        """The pictures attached to the last question that had any, in order."""
        return self._attached

    @property
    def state(self) -> tuple[list[Turn], int, tuple[str, ...]]:
        """The turns, the index of the first in the model's context, and `attached`."""
        return self._turns, self._context_start, self._attached

    def restore(self, turns: Sequence[Turn], context_start: int, attached: Sequence[str]) -> None:
        """Restores a `state`, unless this conversation has turns already."""
        with self._lock:
            if not self._turns:
                self._turns, self._context_start, self._attached = list(turns), context_start, tuple(attached)

    def messages(self, lang: str) -> list[dict[str, Any]]:
        """The conversation as messages of gr.Chatbot."""
        messages: list[dict[str, Any]] = []
        for turn in self._turns:
            parts: list[dict[str, Any]] = [_part("***\n" + text("fresh", lang))] if turn.fresh else []
            parts += [_picture(path, text("picture", lang)) for path in turn.pictures]
            parts += [_part("*" + text("lost_picture", lang) + "*")] * turn.lost
            messages.append({"role": "user", "content": [*parts, _part(markdown.literal(turn.question))]})
            placeholder = text("no_answer", lang) if turn.answer.done else "…"
            messages.append({"role": "assistant", "content": [_part(markdown.answer(turn.answer.text) or placeholder)]})
        return messages

    def footer(self, lang: str) -> str:
        """The line under the conversation: the state of its last answer."""
        if not self._turns:
            return text("prompt_keys", lang)
        answer = self._turns[-1].answer
        if answer.done:
            return answer.statistics(lang)
        ahead = answer.queue_position
        return text("writing" if answer.text else "waiting", lang) if ahead is None else queue_text(ahead, lang)

    def _context(self) -> list[Turn]:
        """The turns that the model is shown: those with an answer."""
        return [turn for turn in self._turns[self._context_start :] if turn.answer.text]


def effective_seed(sampling_params: dict[str, Any]) -> int | None:
    """The seed, unless decoding is greedy."""
    return sampling_params["seed"] if sampling_params["temperature"] > 0 else None


def _pictures_in(exchanges: Sequence[Exchange]) -> dict[str, None]:
    return dict.fromkeys(path for exchange in exchanges for path in exchange.pictures)


def _question(question: str, pictures: Sequence[str]) -> dict[str, Any]:
    parts = [{"type": "image", "image": path} for path in pictures]
    return {"role": "user", "content": [*parts, _part(question)]}


def _exchange(exchange: Exchange) -> list[dict[str, Any]]:
    return [_question(exchange.question, exchange.pictures), {"role": "assistant", "content": exchange.answer}]


def _picture(path: str, alt_text: str) -> dict[str, Any]:
    """A picture for gr.Chatbot, as a component because plain files have no alternative text."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    props = {"alt_text": alt_text}
    return {"type": "component", "component": "image", "value": file, "constructor_args": {}, "props": props}


def _part(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def queue_text(ahead: int, lang: str) -> str:
    """Says that `ahead` other answers come first."""
    return text({0: "queued_next", 1: "queued_one"}.get(ahead, "queued"), lang, count=ahead)


def context_full(completion: Completion, max_tokens: int) -> bool:
    """Whether the context, not the limit of `max_tokens`, ended an answer."""
    return completion.finish_reason == "length" and completion.usage.completion_tokens < max_tokens


def statistics(completion: Completion, seed: int | None, forgotten: int, lang: str, max_tokens: int = 0) -> str:
    """One line about an answer: length, speed, cached prompt, dropped turns, and why it ended early (`max_tokens`)."""
    usage, timings = completion.usage, completion.timings
    count = usage.completion_tokens
    parts = [text("stat_token", lang) if count == 1 else text("stat_tokens", lang, count=f"{count:,}")]
    if timings.tokens_per_second > 0:
        speed = timings.tokens_per_second
        parts.append(text("stat_speed", lang, speed=f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"))
    if math.isfinite(timings.first_token):
        parts.append(text("stat_first", lang, seconds=f"{timings.first_token:.2f}"))
    key = "stat_cached" if usage.cached_tokens else "stat_prompt"
    parts.append(text(key, lang, cached=f"{usage.cached_tokens:,}", prompt=f"{usage.prompt_tokens:,}"))
    if forgotten:
        parts.append(text("stat_forgotten", lang, count=forgotten))
    if seed is not None:
        parts.append(text("stat_seed", lang, seed=seed))
    if completion.finish_reason in _TRUNCATED:
        full = context_full(completion, max_tokens)
        parts.append(text("ended_context" if full else f"ended_{completion.finish_reason}", lang))
    return " · ".join(parts)
