"""The engine's thread, which works for callers on others until it is closed or fails for good.

However it ends, nobody is left waiting for it: whoever waits gets an error, and so does whoever comes later.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError

from gemma_tpu.engine.errors import ModelClosedError, ProcessesLostError, check_process
from gemma_tpu.engine.loop import Loop
from gemma_tpu.engine.runner import Runner
from gemma_tpu.engine.scheduler import Scheduler

_FAILED_JOIN = 1  # seconds that `close` gives a thread that may be stuck


class Worker:
    """Has `_loop` turn while there is work. `_wake` guards the requests that wait in the scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._wake = threading.Condition()
        self._tasks: collections.deque[tuple[Callable[[], object], Future]] = collections.deque()
        self._waited_for: set[Future] = set()
        self._closed = False
        self._failure: BaseException | None = None  # of the kind that leaves nothing to go on with
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="gemma-engine", daemon=True)

    def _start(self, runner: Runner) -> None:
        self._runner = runner
        try:
            self._loop = Loop(self._scheduler, runner)
        except Exception as error:
            if (explained := runner.explained(error)) is error:
                raise
            raise explained from error
        self._thread.start()
        # Before JAX's own functions at exit, which came first: a program that still runs then may end in a crash.
        atexit.register(self.let_go)

    def check_open(self) -> None:
        """RuntimeError if the model has been closed or has failed for good, or was inherited by a forked child."""
        check_process(self._pid)
        if self._failure:
            raise RuntimeError(str(self._failure)) from self._failure
        if self._closed:
            raise ModelClosedError("this model has been closed")

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """`_wake`, for a caller: RuntimeError in a forked child, which may have inherited it as taken for good."""
        check_process(self._pid)
        with self._wake:
            yield

    def close(self) -> None:
        """Ends the thread and lets go of the device memory; requests under way fail."""
        with self._held():
            atexit.unregister(self.let_go)
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:  # which the garbage collector may use for this
            self._thread.join(_FAILED_JOIN if self._failure else None)

    def let_go(self) -> None:
        """`close`, by the process that may."""
        if os.getpid() == self._pid:
            self.close()

    def _call(self, function: Callable[[], object]):
        """What `function` returns or raises on the thread."""
        future: Future = Future()
        with self._held():
            self.check_open()
            self._waited_for.add(future)
            self._tasks.append((function, future))
            self._wake.notify()
        try:
            return future.result()
        finally:
            future.cancel()  # one who was interrupted wants it no more
            self._waited_for.discard(future)

    def _abort(self, error: BaseException) -> None:
        """Ends everything now, from any thread: this one may be stuck for good."""
        with self._wake:
            self._failure = error = self._failure or error
            self._closed = True
            self._wake.notify()
        self._fail_everyone(error)

    def _fail_everyone(self, error: BaseException) -> None:
        self._fail_requests(error)
        for future in list(self._waited_for):
            _settle(future, error=error)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._run_tasks()
                try:
                    self._loop.turn(self._wake)
                except Exception as error:  # of all requests: the scheduler has caught what concerns one of them alone
                    self._recover(error)
            self._fail_everyone(ModelClosedError("the model was closed, or let go of, before this was done"))
        except BaseException as error:  # of any class
            said: object = f"{type(error).__name__} {error}".strip()
            if isinstance(error, Exception):
                said = self._runner.explained(error)
            if isinstance(said, ProcessesLostError):  # callers read the same whichever thread notices it first
                failure = said
            else:
                failure = RuntimeError(f"the engine has failed for good: {said}")
                failure.__cause__ = error
            self._abort(failure)
        self._runner.close()

    def _wait_for_work(self) -> bool:
        """False when there will be no more."""
        with self._wake:
            while not (self._closed or self._tasks or self._loop.has_work):
                self._wake.wait()
            return not self._closed

    def _run_tasks(self) -> None:
        while self._tasks and not self._closed:
            function, future = self._tasks.popleft()
            if future.done():
                continue
            try:
                _settle(future, function())
            except Exception as error:  # the caller's to handle
                _settle(future, error=self._runner.explained(error))
                if not self._runner.intact:
                    self._recover(error)

    def _recover(self, error: Exception) -> None:
        self._fail_requests(self._runner.explained(error))
        self._loop.recover(error)

    def _fail_requests(self, error: BaseException) -> None:
        with self._wake:
            self._scheduler.fail(error)


def _settle(future: Future, result: object = None, error: BaseException | None = None) -> None:
    """Gives a future its end, unless it has one."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(result) if error is None else future.set_exception(error)
