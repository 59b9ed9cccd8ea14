"""Streams that are let go of, models that are let go of, and stop strings that nobody reads."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import jax
import pytest
import xla_flags
from small_models import gated
from test_api import CONFIG, FREE, PICTURE, TOKENIZER, make_model

import gemma_tpu
from gemma_tpu.engine.request import Request
from gemma_tpu.stream import TextStream

HERE = Path(__file__).parent
LONG = {"max_new_tokens": 150, "stop_tokens": ()}
SOON = 60


@pytest.fixture(scope="module")
def model():
    with make_model() as model:
        yield model


@pytest.fixture(autouse=True)
def _no_garbage_collector():
    """What is let go of goes at once, not when the collector comes."""
    gc.disable()
    yield
    gc.enable()


def settled(model: gemma_tpu.Model) -> None:
    """Waits until nothing runs."""
    until = time.monotonic() + SOON
    while model.engine._loop.has_work:
        assert time.monotonic() < until, "rows are still busy"
        time.sleep(0.001)


@pytest.fixture
def submitted(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that a test makes."""
    requests: list[Request] = []
    submit = model.engine.submit

    def record(*args, **kwargs) -> Request:
        requests.append(submit(*args, **kwargs))
        return requests[-1]

    monkeypatch.setattr(model.engine, "submit", record)
    return requests


def leave_loop(stream) -> None:
    for _ in stream:
        break


def raise_in_loop(stream) -> None:
    with contextlib.suppress(ZeroDivisionError):
        for _ in stream:
            raise ZeroDivisionError


def drop(stream) -> None:
    next(stream)


@pytest.mark.parametrize("leave", [leave_loop, raise_in_loop, drop, lambda stream: None])
@pytest.mark.parametrize("chat", [False, True])
def test_letting_go_of_a_stream_stops_its_work(model: gemma_tpu.Model, submitted, leave, chat: bool) -> None:
    source = model.chat() if chat else model
    with gated(model.engine):
        leave(source.stream("Hello", **LONG))
        settled(model)
    assert submitted[0].finish_reason == "cancelled"
    assert len(submitted[0].generated) < 150
    if chat:
        assert [message["role"] for message in source.messages] == (
            [] if leave.__name__ == "<lambda>" else ["user", "assistant"]
        )


def test_a_batch_that_is_left_ends_all_its_answers(model: gemma_tpu.Model, submitted, monkeypatch) -> None:
    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ValueError, match="wizard"):
        model.generate([[{"role": "user", "content": "a"}], [{"role": "wizard", "content": "b"}]], **LONG)
    with gated(model.engine), monkeypatch.context() as patch:
        patch.setattr(TextStream, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:  # it refers to the streams for as long as it is kept
            model.generate(["one", "two", "three", "four", "five", "six"], **LONG)
        settled(model)
        del kept
    with gated(model.engine), monkeypatch.context() as patch:
        patch.setattr(TextStream, "__next__", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            model.generate("one", **LONG)
        settled(model)
        del kept
    assert len(submitted) == 8
    assert {request.finish_reason for request in submitted} == {"cancelled"}


def test_a_stop_string_ends_its_row_though_nobody_reads(model: gemma_tpu.Model, submitted) -> None:
    whole = model.generate("Hello", **LONG)
    text = whole.text
    stop = text[len(text) // 3 :][:3]
    cut = text[: text.index(stop)]
    read = model.generate("Hello", stop=["nowhere in it", stop], **LONG)
    streams = [model.stream("Hello", stop=[stop], **LONG) for _ in range(3)]
    settled(model)  # by itself
    beginnings = [TOKENIZER.decode(whole.tokens[: n + 1]) for n in range(len(whole.tokens))]
    count = next(n + 1 for n, beginning in enumerate(beginnings) if stop in beginning)
    for completion in [read, *(stream.finish() for stream in streams)]:
        assert completion.text == cut
        assert completion.finish_reason == "stop"
        assert completion.tokens == whole.tokens[:count]
        assert completion.usage.completion_tokens == count
    for request in submitted[1:]:
        assert request.finish_reason == "stop"
        assert request.generated == whole.tokens[:count]
        assert request.usage.completion_tokens == count
    # Rows that were put to rest in the middle of a call are used again, and give what they should.
    again = model.generate(["Hello"] * 6, **LONG)
    assert [one.tokens for one in again] == [whole.tokens] * 6


def test_a_stop_token_and_the_length_still_end_an_answer_that_has_a_stop_string(model: gemma_tpu.Model) -> None:
    whole = model.generate("Hello", **FREE).tokens
    cut = model.generate("Hello", stop=["nowhere in it"], **FREE)
    assert (cut.tokens, cut.finish_reason) == (whole, "length")
    options = FREE | {"stop_tokens": [whole[5]]}
    cut = model.generate("Hello", stop=["nowhere in it"], **options)
    assert (cut.tokens, cut.finish_reason) == (whole[: whole.index(whole[5])], "stop")


def test_without_a_tokenizer_nothing_is_begun() -> None:
    from small_models import make_deployment, random_params

    with gemma_tpu.Model(make_deployment(CONFIG), random_params(CONFIG), None) as model:
        submit, begun = model.engine.submit, []
        model.engine.submit = lambda *args: begun.append(submit(*args)) or begun[-1]
        for call in (model.generate, model.stream):
            with pytest.raises(ValueError, match="has no tokenizer"):
                call([2, 70, 71], **LONG)
        assert not begun


def test_a_stream_that_broke_off_says_so(model: gemma_tpu.Model, monkeypatch) -> None:
    def fail(*_) -> None:
        raise RuntimeError("the device is gone")

    with gated(model.engine) as gate, monkeypatch.context() as patch:
        stream = model.stream("Hello", **LONG)
        said = next(stream)
        patch.setattr(model.engine._runner, "_decode", fail)
        gate.tokens = LONG["max_new_tokens"]
        with pytest.raises(RuntimeError, match="the device is gone"):
            list(stream)
    assert stream.completion.finish_reason == "error"
    assert stream.completion.text.startswith(said)
    assert stream.completion.usage.completion_tokens == len(stream.completion.tokens)


@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_does_not_keep_its_model(chat: bool) -> None:
    model = make_model()
    model.generate("Hello", **FREE)
    with gated(model.engine):
        stream = (model.chat() if chat else model).stream("Hello", images=PICTURE, **LONG)
        next(stream)
        engine, params = weakref.ref(model.engine), [weakref.ref(value) for value in model.params.values()]
        states = [weakref.ref(array) for array in jax.tree.leaves(model.engine._runner._state)]
        gone = weakref.ref(model)
        del model
        assert gone() is None
        with pytest.raises(RuntimeError, match="closed, or let go of"):
            list(stream)
    assert stream.completion.finish_reason == "error"
    del stream
    assert engine() is None
    assert not any(array() for array in states)
    assert params


def test_a_reader_is_told_that_its_model_was_closed() -> None:
    model = make_model()
    started = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for _ in stream:
                started.set()
        except RuntimeError as error:
            errors.append(error)

    with gated(model.engine):
        stream, reader = model.stream("Hello", **LONG), threading.Thread(target=read)
        reader.start()
        assert started.wait(SOON)
        model.close()
    reader.join(SOON)
    assert [str(error) for error in errors] == ["the model was closed, or let go of, before this was done"]
    for call in (lambda: model.generate("x"), lambda: model.logits([[2]]), lambda: model.encode_images(PICTURE)):
        with pytest.raises(RuntimeError, match="this model has been closed"):
            call()
    model.close()  # again


# In processes of their own: what is said at exit, and what a forked child may do.

LOAD = """
import os, sys, gemma_tpu
model = gemma_tpu.load(sys.argv[1], progress=False, max_context=128, max_rows=2, text_only=True)
stream = model.stream("Hello", max_new_tokens=100, stop_tokens=())
print(len(next(stream)) > 0, len(next(stream)) > 0, flush=True)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_models import random_params

    from gemma_tpu.checkpoint import save_params

    path = tmp_path_factory.mktemp("lifetime") / "checkpoint"
    save_params(random_params(CONFIG), CONFIG, path, tokenizer=(HERE / "goldens/text/tokenizer.model").read_bytes())
    return path


def script(checkpoint: Path, code: str) -> subprocess.CompletedProcess:
    environment = os.environ | xla_flags.PROCESS | {"PYTHONPATH": str(HERE.parent), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", LOAD + code, str(checkpoint)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


@pytest.mark.parametrize(
    ("code", "said", "status"),
    [
        ("", "", 0),
        ("raise ValueError('boom')", "ValueError: boom", 1),
        (
            """
chat = model.chat().stream("Hello", max_new_tokens=100, stop_tokens=())
next(chat)
holder = [stream, chat]
holder.append(holder)
del stream, chat
""",
            "",
            0,
        ),
    ],
    ids=["at the end", "after an exception", "in cycles"],
)
def test_nothing_is_said_at_exit(checkpoint: Path, code: str, said: str, status: int) -> None:
    done = script(checkpoint, code)
    assert done.returncode == status, done.stderr
    assert done.stdout.strip() == "True True"
    lines = done.stderr.strip().splitlines()
    assert (lines[-1] if lines else "") == said
    assert "Exception ignored" not in done.stderr


FORK = """
import threading
chat = model.chat()
calls = {
    "generate": lambda: model.generate("x"), "batch": lambda: model.generate(["x", "y"]),
    "stream": lambda: list(model.stream("x")), "open stream": lambda: list(stream), "chat": lambda: chat.send("x"),
    "logits": lambda: model.logits([[2]]), "warmup": model.warmup, "close": model.close,
    "submit": lambda: model.engine.submit([2]), "occupancy": model.engine.occupancy,
    "place": lambda: model.engine.waiting_before(None),
}
# As a fork may find it: held by a thread that the child has not.
taken, release = threading.Event(), threading.Event()
def hold():
    with model.engine._wake:
        taken.set()
        release.wait()
threading.Thread(target=hold).start()
taken.wait()
def try_all():
    for name, call in calls.items():
        try:
            call()
            print(name, "returned", flush=True)
        except RuntimeError as error:
            print(name, "forked child" in str(error), flush=True)
"""


@pytest.mark.parametrize(
    "code",
    [
        """
child = os.fork()
release.set()
if child == 0:
    try_all()
    os._exit(0)  # as multiprocessing's children end: at any other exit, XLA itself waits for its threads
assert os.waitpid(child, 0)[1] == 0
""",
        """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=try_all)
child.start()
release.set()
child.join()
assert child.exitcode == 0
""",
    ],
    ids=["os.fork", "multiprocessing"],
)
def test_a_forked_child_gets_an_error_and_ends(checkpoint: Path, code: str) -> None:
    done = script(
        checkpoint, FORK + code + "print('parent', len(model.generate('x', max_new_tokens=3, stop_tokens=()).tokens))"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    names = ["generate", "batch", "stream", "open stream", "chat", "logits", "warmup", "close", "submit"]
    names += ["occupancy", "place"]
    assert lines == ["True True", *(f"{name} True" for name in names), "parent 3"]
    assert "Exception ignored" not in done.stderr
