"""Conversations: what is forgotten when the context is full, answers that are empty, many threads in one chat."""

from __future__ import annotations

import io
import math
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_models import gated
from test_api import FREE, PICTURE, TOKENIZER, make_model

import gemma_tpu
from gemma_tpu import prompts
from gemma_tpu.stream import AnswerText
from gemma_tpu.text import render_messages


@pytest.fixture(scope="module")
def model():
    with make_model() as model:
        yield model


def talk(turns: int) -> list[dict[str, str]]:
    """Turns of differing lengths after a system message, and a last question."""
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in range(turns):
        messages.append({"role": "user", "content": "a word " * (1 + turn % 3)})
        messages.append({"role": "assistant", "content": "another " * (1 + turn % 2)})
    return [*messages, {"role": "user", "content": "And now?"}]


def without(messages: list[dict[str, str]], dropped: int) -> list[dict[str, str]]:
    return [messages[0], *messages[1 + 2 * dropped :]]


@pytest.mark.parametrize("turns", [0, 1, 5, 23, 40, 41])
def test_the_fewest_turns_are_forgotten_in_few_renders(
    turns: int, model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = talk(turns)
    room = model.deployment.context - FREE["max_new_tokens"]
    lengths = [len(render_messages(without(messages, n), TOKENIZER, None).tokens) for n in range(turns + 1)]
    expected = next(n for n, length in enumerate(lengths) if length <= room)
    rendered: list[object] = []
    render = prompts.render
    monkeypatch.setattr(prompts, "render", lambda *args: rendered.append(args) or render(*args))
    answer = model.stream(messages, drop_oldest=True, **FREE).finish()
    assert (answer.dropped_turns, answer.usage.prompt_tokens) == (expected, lengths[expected])
    assert len(rendered) <= 3 + math.log2(turns + 1)
    assert (turns < 23) == (expected == 0)


def test_a_picture_is_read_once_however_many_turns_are_forgotten(model: gemma_tpu.Model) -> None:
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    reads: list[int] = []

    class Upload(io.BytesIO):
        def read(self, *size: int) -> bytes:
            reads.append(1)
            return super().read(*size)

    part = {"type": "image", "image": Upload(file.getvalue())}
    question = {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}
    assert model.stream([*talk(40)[:-1], question], drop_oldest=True, **FREE).finish().dropped_turns > 0
    assert len(reads) == 1


def test_turns_dropped_for_an_empty_answer_are_counted_once(model: gemma_tpu.Model) -> None:
    chat = model.chat(drop_oldest=True, **FREE)
    answers = [chat.send("a word " * 8) for _ in range(8)]
    before = chat.messages
    (first, *_) = model.generate([*before, {"role": "user", "content": "a word " * 8}], drop_oldest=True, **FREE).tokens
    empty = chat.send("a word " * 8, stop_tokens=[first])
    assert (empty.text, empty.finish_reason) == ("", "stop")
    assert empty.dropped_turns > 0
    assert chat.messages == before[2 * empty.dropped_turns :]  # and no trace of the question
    answers += [empty, chat.send("a word " * 8)]
    assert chat.dropped_turns == sum(answer.dropped_turns for answer in answers)


@pytest.mark.parametrize("ask", ["send", "stream"])
def test_threads_in_one_chat_lose_no_turn(ask: str, model: gemma_tpu.Model) -> None:
    chat = model.chat(max_new_tokens=2, stop_tokens=())
    start, refused = threading.Barrier(4), []

    def talk(number: int) -> list[str]:
        said = []
        start.wait()
        for turn in range(2):
            text = f"{number}.{turn}"
            try:
                answer = chat.send(text) if ask == "send" else chat.stream(text).finish()
            except RuntimeError as error:
                refused.append(str(error))
            else:
                said.append((text, answer.text))
        return said

    with ThreadPoolExecutor(4) as pool:
        said = [turn for turns in pool.map(talk, range(4)) for turn in turns]
    kept = [
        (question["content"], answer["content"]) for question, answer in zip(*[iter(chat.messages)] * 2, strict=True)
    ]
    assert sorted(kept) == sorted(said)
    assert said
    assert all("still answering" in error for error in refused)
    assert len(said) + len(refused) == 8


def test_an_answer_that_is_left_or_refused_lets_the_chat_go_on(model: gemma_tpu.Model) -> None:
    chat = model.chat(**FREE)
    unread = chat.stream("One")
    with pytest.raises(RuntimeError, match="still answering"):
        chat.send("Two")
    unread.close()
    for piece in chat.stream("Three"):
        assert piece
        break  # and with it goes the last reference
    with pytest.raises(ValueError, match="max_context"):
        chat.send("a word " * 300)
    with pytest.raises(ValueError, match="takes neither text"):
        chat.send("Four", continue_final=True)
    assert chat.send("Five").text
    assert [message["content"] for message in chat.messages[::2]] == ["Three", "Five"]


def test_an_interrupt_leaves_no_hole_in_the_answer(model: gemma_tpu.Model) -> None:
    """Ctrl-C may come when tokens have been taken from the queue and are nowhere else yet."""
    options = {"max_new_tokens": 60, "stop_tokens": ()}
    chat = model.chat(**options)
    stream = chat.stream("Hello")
    next(stream)

    class Interrupted(queue.SimpleQueue):
        def get(self, *args: object) -> object:
            super().get(*args)
            raise KeyboardInterrupt

    events, stream._request._events = stream._request._events, Interrupted()
    while not events.empty():
        stream._request._events.put(events.get())
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    said = chat.messages[-1]["content"]
    assert said == stream.completion.text == TOKENIZER.decode(stream._request.generated)
    assert model.generate("Hello", **options).text.startswith(said)


def test_a_chat_goes_on_when_another_thread_has_closed_its_answer(model: gemma_tpu.Model) -> None:
    chat = model.chat(max_new_tokens=100, stop_tokens=())
    begun = threading.Event()

    def read() -> None:
        for _ in stream:
            begun.set()

    with gated(model.engine) as gate, ThreadPoolExecutor(1) as pool:
        stream = chat.stream("One")
        reading = pool.submit(read)
        assert begun.wait(60)
        stream.close()
        gate.tokens = 100
        assert chat.send("Two", max_new_tokens=2).tokens
        reading.result(60)
    assert [message["content"] for message in chat.messages[::2]] == ["One", "Two"]


def test_what_a_cut_answer_goes_on_with_joins_it(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it was cut, also before or after a space, the pieces are what one answer would have been."""
    chat, question = model.chat(stop_tokens=()), {"role": "user", "content": "Hello"}
    pieces = [chat.send("Hello", max_new_tokens=1).text]
    for _ in range(6):
        pieces += chat.stream(continue_final=True, max_new_tokens=1)
        assert chat.messages[-1]["content"] == "".join(pieces)
    for begun in (" 4 + ", [{"type": "text", "text": " 4"}, {"type": "text", "text": " + "}]):
        chat.messages = [question, {"role": "model", "content": begun}]
        rest = chat.send(continue_final=True, max_new_tokens=4)
        assert chat.messages == [question, {"role": "assistant", "content": " 4 + " + rest.text}]
    whole = model.generate([question, {"role": "assistant", "content": " 4 +"}], continue_final=True, **FREE)
    cut = model.generate([question, {"role": "assistant", "content": " 4 +  "}], continue_final=True, **FREE)
    assert cut.tokens == whole.tokens


@pytest.mark.parametrize("split", [1, 2, 3, 20])
def test_space_that_stands_is_not_written_twice(split: int) -> None:
    for begun, written, joined in (
        ("4 + ", " 4 = 8", "4 + 4 = 8"),
        ("4 +", " 4 = 8", "4 + 4 = 8"),
        ("a\n\n", "\n\n\nb", "a\n\n\nb"),
        ("a\n ", "\nb", "a\n b"),
        ("a ", "b", "a b"),
        ("  ", " ", "  "),
    ):
        answer, tokens = AnswerText(TOKENIZER, (), begun), TOKENIZER.encode(written)
        pieces = [answer.push(tokens[i : i + split]) for i in range(0, len(tokens), split)]
        assert begun + "".join([*pieces, answer.flush()]) == begun + answer.text == joined


USER = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize("continue_final", [False, True])
@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages must be a list, got None"),
        ("hello", "messages must be a list, got 'hello'"),
        (["hello"], r"messages\[0\]: expected|no answer to continue"),
        ([USER, "hello"], r"messages\[1\]: expected|no answer to continue"),
        ([USER, {"role": "assistant"}], r"messages\[1\]: (lacks|.*got NoneType)"),
        ([USER, {"role": "assistant", "content": None}], r"messages\[1\]: content must be .* got NoneType"),
        (
            [USER, {"role": "assistant", "content": [{"type": "image", "image": PICTURE}]}],
            r"\[1\].*an image in",
        ),
        ([{"content": "x"}, {"role": "assistant", "content": "x"}], r"messages\[0\]: lacks role"),
    ],
)
def test_a_history_edited_wrongly_is_refused(
    model: gemma_tpu.Model, messages: object, message: str, continue_final: bool
) -> None:
    chat = model.chat(**FREE)
    chat.messages = messages
    with pytest.raises(ValueError, match=message):
        chat.send(None if continue_final else "And?", continue_final=continue_final)
    chat.messages = [USER, {"role": "model", "content": "Yes", "tool_calls": None}]
    assert chat.calls == []
    assert chat.send(None if continue_final else "And?", continue_final=continue_final).text


def test_messages_appended_while_it_answers_stay(model: gemma_tpu.Model) -> None:
    chat, note = model.chat(**FREE), {"role": "user", "content": "By the way"}
    stream = chat.stream("Hello")
    next(stream)
    chat.messages.append(note)
    answer = stream.finish()
    assert chat.messages == [USER, {"role": "assistant", "content": answer.text}, note]
    chat.messages.pop()
    stream = chat.stream("And?")
    next(stream)
    chat.messages = []
    with pytest.raises(RuntimeError, match="messages were changed while it answered"):
        stream.finish()
    assert stream.completion.text
    assert chat.messages == []
    assert chat.send("Hello").text == answer.text
