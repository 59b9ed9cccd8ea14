"""Compiles a model's programs from the shapes of their arguments: several at a time, and while its weights are read.

What an earlier process compiled is taken from the disk instead (gemma_tpu.engine.executables).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, cast

import jax
from jax.sharding import NamedSharding, PartitionSpec

from gemma_tpu.cache.state import State
from gemma_tpu.deployment import STEPS_PER_CALL, Deployment
from gemma_tpu.devices import free_memory
from gemma_tpu.engine import executables
from gemma_tpu.engine.forward import in_32_bits
from gemma_tpu.engine.runner import Runner
from gemma_tpu.engine.step import Step
from gemma_tpu.engine.warmup import warmup_steps
from gemma_tpu.model import Params

_LOG = logging.getLogger(__name__)
_THREAD = "gemma-compile"
_AT_ONCE = 8  # programs; about ten take long
_MEMORY = 4 << 30  # bytes of the host that one of them may need
_Make = Callable[["Future[Any]"], None]  # puts what is to be called there


class _Shape(jax.ShapeDtypeStruct):
    """What a program will give."""

    def copy_to_host_async(self) -> None:
        pass


class _Compiler(Runner):
    """Has `work` compile what a runner would call, which finds it by the shapes of its arguments.

    Tracing and lowering hold Python's lock, so the caller's thread does that.
    """

    def __init__(self, deployment: Deployment, params: Params, *, max_steps: int) -> None:
        super().__init__(deployment, params, max_steps=max_steps)
        self._kept = executables.of_deployment(deployment)
        self._known = dict[Any, tuple[Future[Any], Any]]()
        self._left = queue.SimpleQueue[tuple[Future[Any], _Make] | None]()
        self._called: list[Future[Any]] = []
        self.stopped = False

    def begin(self, step: Step) -> list[Future[Any]]:
        """Those of the programs that a step calls."""
        self._called = []
        self.run(step)
        return self._called

    @property
    def wanted(self) -> bool:
        return not self.stopped and threading.main_thread().is_alive()

    def begun(self, program: Any, args: Any, static: dict[str, Any]) -> Future[Any] | None:
        """Of what is to be called with `args`, or None where that failed. None for what has not been begun with."""
        known = self._known.get(_key(program, args, static))
        return known and known[0]

    def _call(self, program: Any, *args: Any, **static: Any) -> Any:
        key = _key(program, args, static)
        if key not in self._known:
            results, make = self._find(program, args, static) or self._lower(program, args, static)
            self._known[key] = Future[Any](), results
            self._left.put((self._known[key][0], make))
        compiled, results = self._known[key]
        self._called.append(compiled)
        return results

    def work(self) -> None:
        """Compiles one program after another, until `end` has been called as often as this."""
        while item := self._left.get():
            future, make = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if self.wanted:
                    make(future)
            except Exception:  # raised again where the program is called, or compiled again by the next process
                _LOG.debug("not compiled ahead, or not kept", exc_info=True)
            finally:
                if not future.done():
                    future.set_result(None)

    def end(self) -> None:
        self._left.put(None)

    def prune(self) -> None:
        """What is on the disk, if it has become too much."""
        if self._kept:
            with contextlib.suppress(OSError):  # another process deletes as well
                self._kept.prune()

    def _find(self, *call: Any) -> tuple[Any, _Make] | None:
        """As `_lower`, of a program that is on the disk."""
        if not (store := self._kept) or not (kept := store.find(*call)):
            return None

        def load(future: Future[Any]) -> None:
            try:
                compiled = store.load(kept)
            except Exception:  # XLA says what it was compiled for, and that is not here
                _LOG.debug("%s cannot be loaded", kept.path, exc_info=True)
                self._lower(*call)[1](future)
            else:
                future.set_result(compiled)

        return self._results(kept.results), load

    @in_32_bits  # on a worker's thread too
    def _lower(self, program: Any, args: Any, static: dict[str, Any]) -> tuple[Any, _Make]:
        """Shapes of what a program gives, and what compiles it."""
        path = self._kept and self._kept.path(program, args, static)
        lowered = program.lower(*args, **static)
        results = self._results(lowered.out_info)

        def make(future: Future[Any]) -> None:
            with executables.compiling() as anew:
                compiled = self._compile(lowered)
            try:
                data = self._kept.written(args, compiled, results) if self._kept and path and anew() else None
            finally:
                future.set_result(compiled)
            # What it follows from may have changed meanwhile.
            if data and self._kept and path and path == self._kept.path(program, args, static):
                self._kept.keep(path, data)

        return results, make

    def _compile(self, lowered: Any) -> Any:
        return lowered.compile()

    def _results(self, shapes: Any) -> Any:
        """Every program leaves the state where it is, and all else whole on each device."""
        whole = NamedSharding(self._deployment.mesh, PartitionSpec())

        def placed(x: Any) -> Any:
            if isinstance(x, State):
                return jax.tree.map(_placed, x, x.shardings(self._deployment.mesh))
            return _placed(x, whole)

        return jax.tree.map(placed, shapes, is_leaf=lambda x: isinstance(x, State))


def _placed(x: Any, where: Any) -> _Shape:
    return _Shape(x.shape, x.dtype, sharding=where)


def _key(program: Any, args: Any, static: dict[str, Any]) -> Any:
    # At every call of a program. Parameters and a state always have the same shapes.
    leaves, structure = jax.tree.flatten([x for x in args if not isinstance(x, (dict, State))])
    return program, structure, tuple(map(_seen_by_jit, leaves)), tuple(static.items())


def _seen_by_jit(x: Any) -> Any:
    """What of an argument makes another program."""
    if not hasattr(x, "shape"):
        return x
    spec = list(getattr(getattr(x, "sharding", None), "spec", ()))
    while spec and spec[-1] is None:  # the results of programs have no such ends, unlike what is put on a mesh
        spec.pop()
    return x.shape, x.dtype, tuple(spec)


class Ahead:
    """Compiles, on threads of its own, what the steps of `warmup_steps` run, in their order.

    `params` have the shapes of the parameters. The process does not end while a program is being compiled: XLA would
    crash.
    """

    def __init__(
        self,
        deployment: Deployment,
        params: Params,
        *,
        steps_per_call: int = STEPS_PER_CALL,
        batch_always: bool | None = None,
    ) -> None:
        at_once = min(_AT_ONCE, os.cpu_count() or 1, (free_memory() or _AT_ONCE * _MEMORY) // _MEMORY)
        self._compiler = _Compiler(deployment, params, max_steps=steps_per_call)
        steps = [step for _, step in warmup_steps(deployment, deployment.calls(batch_always))]
        self._begun: list[Future[list[Future[Any]]]] = [Future() for _ in steps]
        # No daemons, whoever loads: a loader's thread is one. No pool either: Python empties its queue before it ends.
        workers = [
            threading.Thread(target=self._compiler.work, name=f"{_THREAD}_{i}", daemon=False)
            for i in range(max(1, at_once))
        ]
        self._thread = threading.Thread(target=self._run, args=(workers, steps), name=_THREAD, daemon=False)
        for thread in (*workers, self._thread):
            thread.start()

    def wait(self, number: int) -> None:
        """Until this step is compiled, or never will be."""
        for program in self._begun[number].result():
            with contextlib.suppress(CancelledError):  # see `compiled`
                program.result()

    def compiled(self, program: Any, args: Any, static: dict[str, Any]) -> Callable[..., Any] | None:
        """A program for such arguments, to be called with `args` alone, once it is compiled if it is being so.

        None for one that is yet to be compiled, which is left to the caller, who need not wait for those before it.
        """
        begun = self._compiler.begun(program, args, static)
        return None if begun is None or begun.cancel() else begun.result()

    def stop(self) -> None:
        """After the programs that are being compiled."""
        self._compiler.stopped = True

    def _run(self, workers: Sequence[threading.Thread], steps: Sequence[Step]) -> None:
        try:
            self._compiler.reset()
            for step, begun in zip(steps, self._begun, strict=True):
                if not self._compiler.wanted:
                    break
                begun.set_result(self._compiler.begin(step))
        except Exception:
            _LOG.warning("lowering ahead failed", exc_info=True)
        finally:
            for begun in self._begun:
                if not begun.done():
                    begun.set_result([])
            for _ in workers:
                self._compiler.end()
            for worker in workers:
                worker.join()
            self._compiler.prune()


def compiler(deployment: Deployment, params: Params, **options: Any) -> Callable[[], Ahead | None]:
    """Begins to compile when it is called, for the shapes of `params`; `options` as of `Ahead`.

    It does nothing for one of several processes, since on some platforms those compile a program together, when all of
    them call it.
    """
    if jax.process_count() > 1:
        return lambda: None
    shapes = jax.tree.map(lambda x: _placed(x, x.sharding), params)
    return functools.partial(Ahead, deployment, shapes, **options)


@contextlib.contextmanager
def compiling_ahead(deployment: Deployment, wanted: bool) -> Iterator[Ahead | None]:
    """Goes on after the block, unless that fails. None if it is not wanted."""
    ahead = compiler(deployment, cast(Params, deployment.abstract_params))() if wanted else None
    try:
        yield ahead
    except BaseException:
        if ahead:
            ahead.stop()
        raise


def finish() -> None:
    """Waits until no program is being compiled ahead."""
    for thread in threading.enumerate():
        if thread.name == _THREAD:
            thread.join()
