"""Loads the model that everyone shares in the background, with progress."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gemma_tpu.checks import one_line

if TYPE_CHECKING:  # importing jax takes seconds
    from gemma_tpu import Model

# Loads a model and reports (bytes read, total bytes).
Load = Callable[[Callable[[int, int], None]], "Model"]

_LOG = logging.getLogger(__name__)
_GIVEN_UP = 10  # seconds to wait for a load that is given up: a process that ends amid one of XLA's calls may crash


@dataclasses.dataclass(frozen=True)
class LoadStatus:
    """`phase`: idle → starting → reading → compiling → ready, or failed at any point.

    `done` of `total`: bytes while reading, programs while compiling (`step` is the current one). `seconds`: the time
    that loading took.
    """

    phase: str = "idle"
    done: int = 0
    total: int = 0
    step: str = ""
    error: str = ""
    seconds: float = 0.0

    @property
    def busy(self) -> bool:
        return self.phase in ("starting", "reading", "compiling")

    @property
    def fraction(self) -> float:
        """The completed fraction of the current phase."""
        return self.done / self.total if self.total else 0.0


class _GivenUp(Exception):
    """Nobody wants the model any more."""


class Loader:
    """Loads a model once, or another in its place; thread-safe. `model` is None until it is ready.

    `report` is called with each status while it loads, on any thread. Without it a ValueError is logged; any other
    error always is.
    """

    def __init__(self, name: str, load: Load, report: Callable[[LoadStatus], None] | None = None) -> None:
        self.name, self._report = name, report
        self.model: Model | None = None
        self.status = LoadStatus()
        self._load = load
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()  # of the load that was started last

    def start(self) -> None:
        """Starts loading unless it has started already; retries after a failure."""
        with self._lock:
            if self.status.phase not in ("idle", "failed"):
                return
            self.status, self._given_up = LoadStatus("starting"), threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._given_up,), name="loader", daemon=True)
            self._thread.start()

    def wait(self, timeout: float | None = None) -> LoadStatus:
        """Waits until loading has ended; returns the status."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self.status

    def close(self) -> None:
        """Closes the model; `start` loads it again. One that is being loaded is given up when it next reports progress.

        That takes up to ten seconds, after which it is given up in the background.
        """
        given_up = self._given_up
        given_up.set()
        self.wait(_GIVEN_UP)
        with self._lock:
            if self._given_up is not given_up:  # started again
                return
            model, self.model, self.status = self.model, None, LoadStatus()
        if model is not None:
            model.close()

    def switch(self, name: str, load: Load) -> None:
        """Closes the model, and starts to load another."""
        self.close()
        with self._lock:
            if self.status.phase == "idle":  # else somebody else was faster
                self.name, self._load = name, load
        self.start()

    def _run(self, given_up: threading.Event) -> None:
        def report(status: LoadStatus) -> None:
            if given_up.is_set():
                raise _GivenUp
            self._set(status)

        start, model = time.monotonic(), None
        try:
            model = self._load(lambda done, total: report(LoadStatus("reading", done, total)))
            model.warmup(lambda step, done, total: report(LoadStatus("compiling", done, total, step)))
        except Exception as error:  # shown by who asks for the status
            if model is not None:
                model.close()
            if given_up.is_set():
                return
            # The library's ValueErrors explain themselves.
            explained = isinstance(error, ValueError)
            said = one_line(error) if explained else f"{type(error).__name__}: {one_line(error)}"
            if not (explained and self._report):
                _LOG.error("loading %s failed: %s", self.name, said, exc_info=not explained)
            self._set(LoadStatus("failed", error=said))
        else:
            with self._lock:
                if wanted := not given_up.is_set():
                    self.model = model
                    self.status = LoadStatus("ready", seconds=time.monotonic() - start)
            if wanted:
                self._set(self.status)
            else:
                model.close()

    def _set(self, status: LoadStatus) -> None:
        self.status = status
        if self._report:
            self._report(status)
