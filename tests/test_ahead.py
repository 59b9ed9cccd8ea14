"""Programs that are compiled from shapes while weights are read: warm-up then compiles nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.monitoring
import pytest
from small_models import TEXT, VISION, mesh_of, random_params
from test_engine import NO_STOP, prompt, run

import gemma_tpu
from gemma_tpu.checkpoint import save_params
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine import ahead as engine_ahead
from gemma_tpu.engine import programs
from gemma_tpu.engine.ahead import Ahead
from gemma_tpu.engine.ahead import _Compiler as Compiler
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.step import Step
from gemma_tpu.engine.warmup import warmup_steps
from gemma_tpu.sharding import param_sharding

MULTIMODAL = dataclasses.replace(TEXT, vision=VISION)


@contextlib.contextmanager
def compiled() -> Iterator[list[tuple[str, str]]]:
    """The name of the thread that compiles and of what, once for each program."""
    found: list[tuple[str, str]] = []

    def listen(name: str, *_, fun_name: str = "", **__) -> None:
        if "backend_compile" in name:
            thread = threading.current_thread().name.partition("_")[0]  # the rest numbers the threads of a pool
            found.append((thread, fun_name.removeprefix("jit(").removesuffix(")")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    ("context", "sides", "together", "more"),
    [(72, (1, 1), False, {}), (76, (2, 4), True, {}), (68, (1, 1), False, {"draft_tokens": 2})],
)
def test_warm_up_finds_what_was_compiled_ahead(
    context: int, sides: tuple[int, int], together: bool, more: dict[str, Any]
) -> None:
    """The contexts are those of no other test, whose programs would be found."""
    mesh = mesh_of(*sides)
    deployment = Deployment(MULTIMODAL, mesh, 4, context, "float32", (8, 16), stored_prefixes=2, **more)
    options = {"steps_per_call": 4, "batch_always": together}
    with compiled() as ahead_of_weights:
        ahead = Ahead(deployment, deployment.abstract_params, **options)
        for number in range(len(warmup_steps(deployment, deployment.calls(together)))):
            ahead.wait(number)
    assert len(ahead_of_weights) > 15
    assert {thread for thread, _ in ahead_of_weights} == {"gemma-compile"}
    params = {
        name: jax.device_put(value, param_sharding(name, value.shape, mesh))
        for name, value in random_params(MULTIMODAL).items()
    }
    with compiled() as later:
        engine = Engine(deployment, params, ahead=ahead, **options)
        try:
            engine.warmup()
            assert len(run(engine.submit(prompt(30), (), NO_STOP))) == 20
        finally:
            engine.close()
    assert later == []


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_params(random_params(TEXT), TEXT, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_weights_are_read_meanwhile(checkpoint: Path, monkeypatch) -> None:
    """Reading ends when one program is compiled, the others when warm-up has begun: it waits for them."""
    warming, run_step = threading.Event(), Compiler.run

    def run_later(self: Compiler, step: Step) -> None:
        warming.wait()
        run_step(self, step)

    def progress(done: int, total: int) -> None:
        while not during:
            time.sleep(0.001)

    monkeypatch.setattr(Compiler, "run", run_later)
    with compiled() as during:
        model = gemma_tpu.load(checkpoint, max_context=80, compile_ahead=True, progress=progress)
    assert "gemma-compile" in dict(during)
    with model, compiled() as after:
        model.warmup(lambda *_: warming.set())
    assert set(dict(after)) == {"gemma-compile"}


def test_nothing_more_is_compiled_for_weights_that_cannot_be_read(checkpoint: Path, monkeypatch) -> None:
    step = threading.Event()
    begun: list[int] = []

    def run_step(self, _) -> None:
        begun.append(1)
        step.wait()

    def progress(done: int, total: int) -> None:
        raise OSError("no disk")

    monkeypatch.setattr(Compiler, "run", run_step)
    threads = set(threading.enumerate())
    with pytest.raises(OSError, match="no disk"):
        gemma_tpu.load(checkpoint, max_context=88, compile_ahead=True, progress=progress)
    (thread,) = (one for one in set(threading.enumerate()) - threads if one.name == "gemma-compile")
    step.set()
    thread.join(60)
    assert len(begun) <= 1


def test_the_process_waits_for_the_program_that_is_compiled(checkpoint: Path, monkeypatch) -> None:
    """Also if a thread that it does not wait for loads the model, as that of a loader."""
    step, models = threading.Event(), []
    monkeypatch.setattr(Compiler, "run", lambda *_: step.wait())

    def load() -> None:
        models.append(gemma_tpu.load(checkpoint, max_context=92, compile_ahead=True, progress=False))

    loading = threading.Thread(target=load, daemon=True)
    loading.start()
    loading.join(60)
    (model,) = models
    (thread,) = (one for one in threading.enumerate() if one.name == "gemma-compile")
    assert not thread.daemon
    model.close()
    step.set()
    thread.join(60)


_ENDS_AT_ONCE = """
import sys, threading, time, gemma_tpu
from gemma_tpu.engine import ahead

ending, compile_one, seen = threading.Event(), ahead._Compiler._compile, []
def told(self, lowered):
    seen.append(self)
    if len(seen) > 1:  # loading needs the first one
        ending.wait()
    if self.wanted:
        print("compiles", flush=True)
    return compile_one(self, lowered)
ahead._AT_ONCE, ahead._Compiler._compile = 1, told
model = gemma_tpu.load(sys.argv[1], max_context=84, compile_ahead=True, progress=False)
while len(seen[0]._known) < 8:
    time.sleep(0.01)
print("ends", flush=True)
ending.set()
"""


def test_a_process_that_ends_compiles_nothing_more(checkpoint: Path) -> None:
    """But what is being compiled; and says nothing."""
    done = subprocess.run(
        [sys.executable, "-c", _ENDS_AT_ONCE, checkpoint], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "WARNING:gemma" not in done.stderr
    said = done.stdout.split()
    assert len(said) - said.index("ends") <= 2  # one may just have been begun


def test_what_cannot_be_compiled_is_said_by_warm_up(checkpoint: Path, monkeypatch) -> None:
    fail = mock.Mock(side_effect=jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room"))
    monkeypatch.setattr(Compiler, "run", fail)
    with gemma_tpu.load(checkpoint, max_context=96, compile_ahead=True, progress=False) as model:
        monkeypatch.setattr(model.engine._runner, "run", fail)
        with pytest.raises(RuntimeError, match="no room for weights, caches and programs"):
            model.warmup()


def test_a_request_waits_for_the_programs_that_it_needs(checkpoint: Path, monkeypatch) -> None:
    """One whose turn has not come is compiled by the request's own thread."""
    compile_one, find, begun = Compiler._compile, Ahead.compiled, list[int]()
    reached, asked = threading.Event(), threading.Event()

    def slowly(self, lowered) -> Any:
        begun.append(1)
        if len(begun) == 5:  # a state, masks, decode steps of all rows, counts, decode steps of one
            reached.set()
            asked.wait(20)
        return compile_one(self, lowered)

    def ask(self, program, *args) -> Any:
        if program is programs.decode:
            reached.wait(60)
            asked.set()
        return find(self, program, *args)

    monkeypatch.setattr(engine_ahead, "_AT_ONCE", 1)
    monkeypatch.setattr(Compiler, "_compile", slowly)
    monkeypatch.setattr(Ahead, "compiled", ask)
    with compiled() as found, gemma_tpu.load(checkpoint, max_context=84, compile_ahead=True, progress=False) as model:
        assert len(run(model.engine.submit(prompt(5), (), NO_STOP))) == 20
        model.warmup()
    assert ("gemma-engine", "prefill") in found
    assert ("gemma-compile", "decode") in found
    assert ("gemma-engine", "decode") not in found
