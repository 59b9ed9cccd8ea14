"""What goes wrong for one request, in a program, or on the engine's thread: who is told, and what goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import PIL.Image
import pytest
from small_models import TEXT, gated, make_deployment, make_engine, mesh_of
from test_engine import CONTEXT, MULTIMODAL, NO_STOP, images, prompt, run

from gemma_tpu.engine import programs
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.errors import ProcessesLostError
from gemma_tpu.engine.request import ImageInput, Request
from gemma_tpu.engine.step import Step
from gemma_tpu.options import SamplingParams
from gemma_tpu.picture import PlacedImage

LONG = dataclasses.replace(NO_STOP, max_new_tokens=60)
SOON = 60  # seconds for what must not hang


@pytest.fixture(scope="module", params=[False, True], ids=["rows alone", "rows together"])
def engine(request):
    engine = make_engine(MULTIMODAL, max_context=CONTEXT, batch_always=request.param)
    yield engine
    engine.close()


@pytest.fixture
def failing_engine():
    """One to be damaged."""
    engine = make_engine(TEXT, mesh_of(1, 1), max_context=CONTEXT)
    yield engine
    engine.close()


class Unprepared(ImageInput):
    """A picture whose pixels cannot be made."""

    @property
    def pixels(self) -> np.ndarray:
        raise MemoryError("no room for the pixels")


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        ([1, 2.0], {}),
        ([1, True], {}),
        ([1, "2"], {}),
        ([1, None], {}),
        ([1, 10**30], {}),
        ([1], {"forbidden_tokens": [30.0]}),
        ([1], {"forbidden_tokens": [False]}),
        ([1], {"stop_tokens": [3, np.float32(5)]}),
        ([1], {"stop_tokens": [None]}),
        ([1], {"forbidden_tokens": [[1]]}),
    ],
)
def test_ids_that_are_no_integers_are_refused_at_once(engine: Engine, tokens: list, options: dict) -> None:
    request = object.__new__(SamplingParams)  # whatever its own checks let through
    for field, value in (dataclasses.asdict(NO_STOP) | options).items():
        object.__setattr__(request, field, value)
    with pytest.raises(ValueError, match=r"ids in \[0, 64\), got"):
        inspect.unwrap(Engine.submit)(engine, tokens, (), request)  # as users have it: not checked by its annotations


def test_what_is_wrong_with_one_request_is_its_own_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels, its options, its stop strings; the others have their solo answers, from the state there was."""
    alone = {n: run(engine.submit(prompt(n), (), LONG)) for n in (4, 9)}
    resets: list[int] = []
    monkeypatch.setattr(engine._runner, "reset", lambda: resets.append(1))

    def raising(tokens: list[int]) -> None:
        raise ZeroDivisionError("cannot watch")

    for _ in range(3):
        others = [(alone[n], engine.submit(prompt(n), (), LONG)) for n in (4, 9)]
        (picture,) = images(1)
        unprepared = engine.submit(
            prompt(17, 3), [PlacedImage(3, Unprepared(PIL.Image.new("RGB", (40, 60), "red"), picture.side))], NO_STOP
        )
        unseen = object.__new__(SamplingParams)
        for field, value in (dataclasses.asdict(NO_STOP) | {"temperature": "hot"}).items():
            object.__setattr__(unseen, field, value)
        wrong = engine.submit(prompt(5), (), unseen)
        watched = engine.submit(prompt(6), (), NO_STOP, raising)
        for request, error in ((unprepared, MemoryError), (wrong, ValueError), (watched, ZeroDivisionError)):
            with pytest.raises(error):
                run(request)
            assert request.finish_reason == "error"
        for answer, request in others:
            assert run(request) == answer
    assert not resets
    assert not any(row.request for row in engine._scheduler.rows)


def test_a_task_that_fails_is_its_callers_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[int] = []
    monkeypatch.setattr(engine._runner, "reset", lambda: resets.append(1))
    beside = engine.submit(prompt(4), (), LONG)
    (picture,) = images(1)
    with pytest.raises(MemoryError):
        engine.encode_images([Unprepared(PIL.Image.new("RGB", (40, 60), "red"), picture.side)])
    with pytest.raises(ValueError, match="0 places for soft tokens"):
        engine.logits([[1, 2, 3]], np.zeros((1, 1), int), images(1))
    assert len(run(beside)) == 60
    assert not resets


def _caches() -> list[jax.Array]:
    d = make_deployment(TEXT, max_context=CONTEXT, max_rows=4)
    shape = d.pages, TEXT.num_kv_heads, d.page, TEXT.head_dim  # of a global layer
    return [array for array in jax.live_arrays() if array.shape == shape]


@pytest.mark.parametrize("program", ["prefill", "activate", "decode", "release"])
@pytest.mark.parametrize("consumed", [True, False])
def test_after_a_failed_program_one_state_takes_the_place_of_the_other(
    program: str, consumed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the errors that callers keep refer to what the program was given."""
    before = len(_caches())
    engine = make_engine(TEXT, mesh_of(1, 1), max_context=CONTEXT)
    one = len(_caches()) - before
    real, init = getattr(programs, program), programs.init_state
    alive: list[int] = []

    def fail(*args, **kwargs):
        if consumed:
            real(*args, **kwargs)
        raise jax.errors.JaxRuntimeError("INTERNAL: the program failed")

    def build(**static):
        alive.append(len(_caches()) - before)
        return init(**static)

    errors = []
    try:
        answer = run(engine.submit(prompt(4), (), LONG))
        monkeypatch.setattr(programs, "init_state", build)
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(programs, program, fail)
                held = gated(engine) if program == "release" else contextlib.nullcontext()
                with held:
                    request = engine.submit(prompt(4), (), LONG)
                    if program == "release":
                        next(events := iter(request))
                        cancelled, request = request, engine.submit(prompt(4), (), LONG)
                        cancelled.cancel()
                        del events, cancelled
                    with pytest.raises(RuntimeError, match="the program failed") as error:
                        run(request)
                errors.append(error)
            assert run(engine.submit(prompt(4), (), LONG)) == answer
        assert alive == [0, 0]
        assert len(_caches()) - before == one > 0
    finally:
        engine.close()


def test_an_error_before_a_program_is_called_leaves_the_state(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On several hosts it could not be made anew."""
    resets: list[int] = []
    answer = run(engine.submit(prompt(4), (), LONG))
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "reset", lambda: resets.append(1))
        for method in ("_decode", "_prefill", "_activate", "run"):

            def fail(*_, **__):
                raise TypeError("cannot be sent")

            def failing_with_work(step: Step, run=engine._runner.run) -> object:  # as one that cannot be sent
                return fail() if step.decode else run(step)

            begun, patched = threading.Event(), threading.Event()

            def hold(tokens: list[int], begun=begun, patched=patched) -> None:  # it does not end before
                if begun.is_set():
                    assert patched.wait(SOON)
                begun.set()

            next(events := iter(engine.submit(prompt(9), (), LONG, hold)))
            with patch.context() as inner:
                inner.setattr(engine._runner, method, failing_with_work if method == "run" else fail)
                requests = [engine.submit(prompt(5, seed=i), (), LONG) for i in range(6)]
                patched.set()
                for request in requests:
                    with pytest.raises(TypeError, match="cannot be sent"):
                        run(request)
                with pytest.raises(TypeError, match="cannot be sent"):
                    list(events)
            assert [run(one) for one in [engine.submit(prompt(4), (), LONG) for _ in range(5)]] == [answer] * 5
    assert not resets


def test_a_program_that_fails_while_its_tokens_are_waited_for(failing_engine: Engine, monkeypatch) -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        raise ValueError("in the program")

    def decode(_: object) -> jax.Array:
        shape = jax.ShapeDtypeStruct((4, 4), np.int32)
        return jax.jit(lambda x: jax.pure_callback(broken, shape, x))(np.zeros(3, np.int32))

    answer = run(failing_engine.submit(prompt(4), (), LONG))
    with monkeypatch.context() as patch:
        patch.setattr(failing_engine._runner, "_decode", decode)
        with pytest.raises(jax.errors.JaxRuntimeError, match="in the program"):
            run(failing_engine.submit(prompt(4), (), LONG))
    assert run(failing_engine.submit(prompt(4), (), LONG)) == answer


def test_a_warm_up_that_consumed_the_state_does_not_spoil_what_follows(failing_engine: Engine, monkeypatch) -> None:
    answer = run(failing_engine.submit(prompt(4), (), LONG))
    real = programs.decode

    def fail(*args, **kwargs):
        real(*args, **kwargs)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")

    with monkeypatch.context() as patch:
        patch.setattr(programs, "decode", fail)
        with pytest.raises(RuntimeError, match="no room"):
            failing_engine.warmup()
    assert run(failing_engine.submit(prompt(4), (), LONG)) == answer


class Own(BaseException):
    pass


@pytest.mark.parametrize("where", ["init_state", "blank_image"])
def test_too_little_memory_for_the_state_is_explained(where: str, monkeypatch) -> None:
    def fail(**_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore lines")

    monkeypatch.setattr(programs, where, fail)
    with pytest.raises(RuntimeError, match=r"no room for.*max_rows.*It was RESOURCE_EXHAUSTED: [^\n]* 9 bytes\.$"):
        make_engine(MULTIMODAL, mesh_of(1, 1), max_context=CONTEXT)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), Own("of a user")])
@pytest.mark.parametrize("where", ["decode", "task", "watch", "reset"])
def test_an_error_of_any_class_leaves_nobody_waiting(failing_engine: Engine, error, where: str, monkeypatch) -> None:
    engine, stuck, hold = failing_engine, threading.Event(), threading.Event()

    def fail(*_):
        stuck.set()
        hold.wait(SOON)
        raise error

    def out_of_memory(*_):
        stuck.set()
        hold.wait(SOON)
        monkeypatch.setattr(engine._runner, "reset", fail)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")

    if where in ("decode", "reset"):
        monkeypatch.setattr(engine._runner, "_decode", fail if where == "decode" else out_of_memory)
    with ThreadPoolExecutor(12) as pool:
        waiting = []
        if where == "task":  # first: it holds up the requests
            waiting.append(pool.submit(engine._call, fail))
            assert stuck.wait(SOON)
        calls = [engine.submit(prompt(4, seed=i), (), LONG, fail if where == "watch" else None) for i in range(6)]
        waiting += [pool.submit(run, request) for request in calls]
        assert stuck.wait(SOON)
        waiting += [pool.submit(engine.encode_images, []) for _ in range(2)]
        while len(engine._waited_for) < 2 + (where == "task"):
            time.sleep(0.001)
        hold.set()
        for one in waiting:
            with pytest.raises(RuntimeError, match=r"of a user|Interrupt|Exit|no room"):
                one.result(SOON)
    engine._thread.join(SOON)
    assert not engine._thread.is_alive()
    for later in (lambda: engine.submit([1]), engine.warmup, lambda: engine.logits([[1]], np.zeros((1, 1), int))):
        with pytest.raises(
            RuntimeError, match=r"failed for good: (Own of a user|KeyboardInterrupt|SystemExit 3|GeneratorExit)$"
        ):
            later()
    assert engine._runner._state is None


def test_a_lost_process_is_named_whichever_thread_notices_first(failing_engine: Engine, monkeypatch) -> None:
    submitted = threading.Event()

    def lost(*_):
        assert submitted.wait(SOON)
        raise ProcessesLostError("process 2 on host is lost: restart all processes")

    monkeypatch.setattr(failing_engine._runner, "run", lost)
    waiting = [failing_engine.submit(prompt(4, seed=i), (), LONG) for i in range(2)]
    submitted.set()
    for call in (*(functools.partial(run, one) for one in waiting), lambda: failing_engine.submit([1])):
        with pytest.raises(RuntimeError, match=r"^process 2 on host is lost"):
            call()
        failing_engine._thread.join(SOON)


def test_one_who_is_interrupted_while_he_waits_is_waited_for_no_more(failing_engine: Engine, monkeypatch) -> None:
    done: list[int] = []

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("concurrent.futures.Future.result", interrupted)
        with failing_engine._wake, pytest.raises(KeyboardInterrupt):
            failing_engine._call(lambda: done.append(1))
    assert failing_engine._call(lambda: 7) == 7
    assert not done


def test_a_finished_task_is_not_kept(failing_engine: Engine) -> None:
    """A result may be of gigabytes."""
    result = failing_engine._call(lambda: Request([1], [], NO_STOP))
    gone = weakref.ref(result)
    failing_engine._call(lambda: None)
    del result
    assert gone() is None


def test_closing_from_the_engines_own_thread_does_not_wait_for_itself() -> None:
    engine = make_engine(TEXT, mesh_of(1, 1), max_context=CONTEXT)
    with gated(engine):
        request = engine.submit(prompt(4), (), LONG)
        engine._call(engine.close)
    with pytest.raises(RuntimeError, match="closed"):
        run(request)
    engine._thread.join(SOON)
    assert not engine._thread.is_alive()
