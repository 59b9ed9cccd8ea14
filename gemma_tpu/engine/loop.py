"""The engine's loop: plan a step, hand it to the device, and read what came of an earlier one."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from gemma_tpu.engine.request import ImageInput
from gemma_tpu.engine.runner import Runner
from gemma_tpu.engine.scheduler import Scheduler
from gemma_tpu.engine.step import Drawn, Step


class Loop:
    """Each turn hands the device a step, and reads the tokens of the decode call before last.

    The device thus has the next call queued when the host looks at the last one's tokens. For one thread at a time.
    `clock` is that of `Request.deadline`.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, clock: Callable[[], float] = time.perf_counter) -> None:
        self._scheduler, self._runner, self._clock = scheduler, runner, clock
        self._unread: collections.deque[tuple[Step, Drawn]] = collections.deque()
        runner.reset()

    @property
    def has_work(self) -> bool:
        return bool(self._unread) or self._scheduler.has_work

    def turn(self, lock: contextlib.AbstractContextManager) -> None:
        """`lock` guards the queue of requests. What is raised concerns all requests: `recover` from it."""
        with lock:
            step = self._scheduler.plan(self._clock())
        drawn = self._runner.run(step)
        self._scheduler.dispatched(step)
        if drawn is not None:
            self._unread.append((step, drawn))
        while len(self._unread) > (drawn is not None):
            earlier, read = self._unread.popleft()
            self._scheduler.commit(earlier, jax.tree.map(np.asarray, read))

    def recover(self, error: Exception) -> None:
        """When all requests have failed. A program that failed may have consumed or spoiled the state: it is replaced.

        After any other error it is emptied, since several processes cannot replace it.
        """
        self._unread.clear()
        empty = self._scheduler.restart()
        if isinstance(error, jax.errors.JaxRuntimeError) or not self._runner.intact:
            self._runner.reset()
        else:
            self._runner.run(empty)

    def encode(self, images: Sequence[ImageInput]) -> list[bytes]:
        """The digests of images, whose soft tokens the device then has."""
        encode, forget = self._scheduler.images.use(images)
        try:
            self._runner.run(Step(encode=encode, forget=forget))
        except Exception:
            self._runner.run(Step(forget=self._scheduler.images.clear()))
            raise
        return [image.digest for image in images]
