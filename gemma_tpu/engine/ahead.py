"""Compiles a model's programs from the shapes of their arguments, while its weights are being read."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax

from gemma_tpu.deployment import STEPS_PER_CALL, Deployment
from gemma_tpu.engine.runner import Runner
from gemma_tpu.engine.step import Step
from gemma_tpu.engine.warmup import warmup_steps
from gemma_tpu.model import Params

_LOG = logging.getLogger(__name__)
_THREAD = "gemma-compile"


class _Shape(jax.ShapeDtypeStruct):
    """What a program will give."""

    def copy_to_host_async(self) -> None:
        pass


class _Compiler(Runner):
    """Compiles what a runner would call. jax finds it again for a call with arguments of the same shapes."""

    def _call(self, program: Any, *args: Any, **static: Any) -> Any:
        lowered = program.lower(*args, **static)
        shardings = lowered.compile().output_shardings
        return jax.tree.map(lambda x, where: _Shape(x.shape, x.dtype, sharding=where), lowered.out_info, shardings)


class Ahead:
    """Compiles, on a thread of its own, what the steps of `warmup_steps` run, in their order.

    The process does not end while a program is being compiled: XLA would crash.
    """

    def __init__(
        self, deployment: Deployment, *, steps_per_call: int = STEPS_PER_CALL, batch_always: bool | None = None
    ) -> None:
        compiler = _Compiler(deployment, cast(Params, deployment.abstract_params), max_steps=steps_per_call)
        steps = [step for _, step in warmup_steps(deployment, deployment.calls(batch_always))]
        self._compiled = [threading.Event() for _ in steps]
        self._stopped = False
        # No daemon, whoever loads: a loader's thread is one.
        threading.Thread(target=self._run, args=(compiler, steps), name=_THREAD, daemon=False).start()

    def wait(self, number: int) -> None:
        """Until this step is compiled, or never will be."""
        self._compiled[number].wait()

    def stop(self) -> None:
        """After the program that is being compiled."""
        self._stopped = True

    def _run(self, compiler: Runner, steps: Sequence[Step]) -> None:
        try:
            compiler.reset()
            for step, compiled in zip(steps, self._compiled, strict=True):
                if self._stopped or not threading.main_thread().is_alive():
                    break
                compiler.run(step)
                compiled.set()
        except Exception:  # raised again where the program is called
            _LOG.debug("compiling ahead failed", exc_info=True)
        finally:
            for compiled in self._compiled:
                compiled.set()


@contextlib.contextmanager
def compiling_ahead(deployment: Deployment, wanted: bool) -> Iterator[Ahead | None]:
    """Goes on after the block, unless that fails. None if it is not wanted, or for one of several processes.

    Those compile a program together on some platforms, when all of them call it.
    """
    ahead = Ahead(deployment) if wanted and jax.process_count() == 1 else None
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
