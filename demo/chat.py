"""Conversations: what was said, what the model is told of it, and the answer under way."""

from __future__ import annotations

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
_CUT = ("length", "cancelled")  # how an answer ends before its end


class Answer:
    """An answer being written, read on a thread of its own, so that many can wait without one each in the web server.

    `text` grows until `done`, from what an earlier answer has `begun`; then `error` says if it broke off. `options` are
    those it is written with; `waiting_before` is the model's. `forgotten` counts the turns before it that the model is
    no longer told.
    """

    def __init__(
        self,
        stream: TextStream,
        options: dict[str, Any],
        waiting_before: Callable[[TextStream], int | None],
        begun: str = "",
        forgotten: int = 0,
    ) -> None:
        self._stream, self._waiting_before, self.forgotten = stream, waiting_before, forgotten
        self._pieces = [begun]
        self._most, self._seed = options.get("max_new_tokens", 0), drawn_seed(options)
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
    def waiting_for(self) -> int | None:
        """How many other answers are begun before it; None if the model is at work on it."""
        return None if self.done else self._waiting_before(self._stream)

    @property
    def cut(self) -> bool:
        """Whether it ended before its end, so that the model could go on with it."""
        ended = self.completion
        return self.done and bool(self.text) and ended.finish_reason in _CUT and not context_full(ended, self._most)

    def stop(self) -> None:
        """Stops the model's work; `done` follows soon."""
        self._stream.cancel()

    def statistics(self, lang: str) -> str:
        """The line about it once it is done."""
        return statistics(self.completion, self._seed, self.forgotten, lang, self._most)

    def _read(self) -> None:
        try:
            for piece in self._stream:
                self._pieces.append(piece)
        except Exception as error:  # the page's to show
            _LOG.exception("an answer broke off")
            self.error = error
        finally:
            self.done = True


class Written(Protocol):
    """What a conversation knows of an answer: an `Answer`, or one that was written in an earlier visit."""

    error: Exception | None
    forgotten: int

    @property
    def text(self) -> str: ...
    @property
    def done(self) -> bool: ...
    @property
    def cut(self) -> bool: ...
    @property
    def waiting_for(self) -> int | None: ...
    def stop(self) -> None: ...
    def statistics(self, lang: str) -> str: ...


class Readers:
    """Who waits for which answer, so that it can be stopped when he leaves the page."""

    def __init__(self) -> None:
        self._answers: dict[str, list[Written]] = {}

    @contextlib.contextmanager
    def reading(self, session: str, answer: Written) -> Iterator[None]:
        """Stops `answer` in the end, in case that it has not come to its own."""
        self._answers.setdefault(session, []).append(answer)
        try:
            yield
        finally:
            answer.stop()
            waited_for = self._answers.get(session, [])
            if answer in waited_for:
                waited_for.remove(answer)
            if not waited_for:
                self._answers.pop(session, None)

    def leave(self, session: str) -> None:
        for answer in self._answers.pop(session, []):
            answer.stop()


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What the model is told of a turn. `pictures`: paths or data URLs."""

    question: str
    pictures: tuple[str, ...]
    answer: str


def submit(
    model: Model, told: Sequence[Exchange], question: str, pictures: Sequence[str | None], options: dict[str, Any]
) -> tuple[TextStream, tuple[str, ...], int]:
    """Begins an answer: its stream, the pictures shown with the question, how many of `told` there was no room for.

    `pictures` are those laid out now; the model is shown the ones that it has not seen in what it is told.
    """
    told, before = list(told), len(told)
    wanted = dict.fromkeys(path for path in pictures if path)
    while True:
        new = tuple(path for path in wanted if path not in _shown(told))
        messages = [message for one in told for message in _exchange(one)]
        stream = model.stream([*messages, _question(question, new)], **options)
        forgotten, told = told[: stream.dropped_turns], told[stream.dropped_turns :]
        wanted = _shown(forgotten) | wanted
        if wanted.keys() <= {*_shown(told), *new}:
            return stream, new, before - len(told)
        stream.cancel()  # it was not shown what this is about


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question with the pictures shown in it (paths), and its answer.

    `fresh`: the model is not told the turns before it, which were about other pictures. `lost` counts pictures that
    were shown in it and are no longer here.
    """

    question: str
    pictures: tuple[str, ...]
    answer: Written
    fresh: bool = False
    lost: int = 0

    @property
    def exchange(self) -> Exchange:
        return Exchange(self.question, self.pictures, self.answer.text)


class Conversation:
    """The conversation of one tab of the page, for one visitor; thread-safe.

    All turns stay on the screen. The model is told those since a picture was last changed or taken away: that is a new
    subject, and old pictures would only be mistaken for it. A second picture may come to the first. What it has no room
    for it is told no more, if the options say so (`drop_oldest`), but pictures are then shown to it again.
    """

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._laid: tuple[str, ...] = ()
        self._start = 0
        self._lock = threading.Lock()
        self.lang = "en"  # of the page, which may change while an answer is being written

    def __deepcopy__(self, memo: dict) -> Conversation:
        return Conversation()  # gr.State copies the one that it is given for each visitor

    @property
    def writing(self) -> bool:
        return bool(self._turns) and not self._turns[-1].answer.done

    @property
    def question(self) -> str:
        """The last one."""
        return self._turns[-1].question if self._turns else ""

    def has_picture(self, pictures: Sequence[str | None]) -> bool:
        """Whether a question with `pictures` would have one to be about."""
        return any(pictures) or any(turn.pictures for turn in self._told())

    def ask(self, model: Model, question: str, pictures: Sequence[str | None], options: dict[str, Any]) -> Turn:
        """Begins an answer. `pictures` are those laid out now; the model is shown the ones it has not seen yet.

        ValueError if the model cannot take it; the conversation is then as before.
        """
        with self._lock:
            laid = tuple(path for path in pictures if path)
            kept = bool(self._laid) and laid[: len(self._laid)] == self._laid
            fresh = bool(laid) and not kept
            told = [] if fresh else self._told()
            exchanges = [turn.exchange for turn in told]
            stream, new, forgotten = submit(model, exchanges, question, pictures, options)
            answer = Answer(stream, options, model.waiting_before, forgotten=forgotten)
            turn = Turn(question, new, answer, fresh and bool(self._turns))
            self._start = self._turns.index(told[forgotten]) if forgotten < len(told) else len(self._turns)
            self._laid = laid or self._laid
            self._turns.append(turn)
            return turn

    @property
    def cut(self) -> bool:
        """Whether the last answer can be continued."""
        return bool(self._turns) and self._turns[-1].answer.cut

    def go_on(self, model: Model, options: dict[str, Any]) -> Turn:
        """Begins to continue the last answer, which is `cut`. Nothing is forgotten for it.

        ValueError if there is no room; the conversation is then as before.
        """
        with self._lock:
            *told, last = self._told()
            begun = last.answer.text.rstrip()
            messages = [message for turn in told for message in _exchange(turn.exchange)]
            messages += [_question(last.question, last.pictures), {"role": "assistant", "content": begun}]
            stream = model.stream(messages, continue_final=True, **(options | {"drop_oldest": False}))
            turn = dataclasses.replace(last, answer=Answer(stream, options, model.waiting_before, begun))
            self._turns[-1] = turn
            return turn

    def stop(self) -> None:
        """Stops the answer that is being written, if one is."""
        if self._turns:
            self._turns[-1].answer.stop()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self.stop()
            self._turns, self._laid, self._start = [], (), 0

    @property
    def laid(self) -> tuple[str, ...]:
        """The pictures that were laid out when last asked about, in the order of their places."""
        return self._laid

    @property
    def state(self) -> tuple[list[Turn], int, tuple[str, ...]]:
        """The turns, the number of the first that the model is told, and `laid`."""
        return self._turns, self._start, self._laid

    def restore(self, turns: Sequence[Turn], start: int, laid: Sequence[str]) -> None:
        """Takes up a conversation where its `state` was this, unless it goes on already."""
        with self._lock:
            if not self._turns:
                self._turns, self._start, self._laid = list(turns), start, tuple(laid)

    def shown(self, lang: str) -> list[dict[str, Any]]:
        """The conversation for gr.Chatbot."""
        messages: list[dict[str, Any]] = []
        for turn in self._turns:
            about: list[dict[str, Any]] = [_part("***\n" + text("fresh", lang))] if turn.fresh else []
            about += [_picture(path, text("picture", lang)) for path in turn.pictures]
            about += [_part("*" + text("lost_picture", lang) + "*")] * turn.lost
            messages.append({"role": "user", "content": [*about, _part(markdown.literal(turn.question))]})
            nothing = text("no_answer", lang) if turn.answer.done else "…"
            messages.append({"role": "assistant", "content": [_part(markdown.answer(turn.answer.text) or nothing)]})
        return messages

    def footer(self, lang: str) -> str:
        """The line under the conversation: about its last answer, if it has one."""
        if not self._turns:
            return text("prompt_keys", lang)
        answer = self._turns[-1].answer
        if answer.done:
            return answer.statistics(lang)
        before = answer.waiting_for
        return text("writing" if answer.text else "waiting", lang) if before is None else in_line(before, lang)

    def _told(self) -> list[Turn]:
        """An unanswered question has left no trace in the model's memory."""
        return [turn for turn in self._turns[self._start :] if turn.answer.text]


def drawn_seed(options: dict[str, Any]) -> int | None:
    """The seed that an answer depends on, if it does."""
    return options["seed"] if options["temperature"] > 0 else None


def _shown(exchanges: Sequence[Exchange]) -> dict[str, None]:
    """The pictures in them, in order."""
    return dict.fromkeys(path for one in exchanges for path in one.pictures)


def _question(question: str, pictures: Sequence[str]) -> dict[str, Any]:
    parts = [{"type": "image", "image": path} for path in pictures]
    return {"role": "user", "content": [*parts, _part(question)]}


def _exchange(one: Exchange) -> list[dict[str, Any]]:
    return [_question(one.question, one.pictures), {"role": "assistant", "content": one.answer}]


def _picture(path: str, alternative: str) -> dict[str, Any]:
    """A picture for gr.Chatbot, which shows the alternative text of components alone, not of mere files."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    props = {"alt_text": alternative}
    return {"type": "component", "component": "image", "value": file, "constructor_args": {}, "props": props}


def _part(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def in_line(before: int, lang: str) -> str:
    """That `before` other answers are begun first."""
    return text({0: "queued_next", 1: "queued_one"}.get(before, "queued"), lang, count=before)


def context_full(completion: Completion, most: int) -> bool:
    """Whether an answer of `most` tokens at most ended because the context has no room for more."""
    return completion.finish_reason == "length" and completion.usage.completion_tokens < most


def statistics(completion: Completion, seed: int | None, forgotten: int, lang: str, most: int = 0) -> str:
    """One line about an answer: its length, speed, what was cached or forgotten, how it ended if not by itself.

    `most` is the number of tokens that it was allowed.
    """
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
    if completion.finish_reason in _CUT:
        full = context_full(completion, most)
        parts.append(text("ended_context" if full else f"ended_{completion.finish_reason}", lang))
    return " · ".join(parts)
