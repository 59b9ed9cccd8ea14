"""Loads the model that everyone shares in the background, with progress."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing jax takes seconds
    from gemma_tpu import Model

# Loads a model and reports (bytes read, total bytes).
Load = Callable[[Callable[[int, int], None]], "Model"]

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Status:
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


class Loader:
    """Loads the model once; thread-safe. `model` is None until it is ready."""

    def __init__(self, name: str, load: Load) -> None:
        self.name = name
        self.model: Model | None = None
        self.status = Status()
        self._load = load
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts loading unless it has started already; retries after a failure."""
        with self._lock:
            if self.status.phase not in ("idle", "failed"):
                return
            self.status = Status("starting")
            self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
            self._thread.start()

    def wait(self, timeout: float | None = None) -> Status:
        """Waits until loading has ended; returns the status."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self.status

    def close(self) -> None:
        model, self.model, self.status = self.model, None, Status()
        if model is not None:
            model.close()

    def _run(self) -> None:
        start, model = time.monotonic(), None
        try:
            model = self._load(lambda done, total: self._set(Status("reading", done, total)))
            model.warmup(lambda step, done, total: self._set(Status("compiling", done, total, step)))
        except Exception as error:  # shown by who asks for the status
            _LOG.error("loading %s failed: %s", self.name, explain(error), exc_info=not isinstance(error, ValueError))
            if model is not None:
                model.close()
            self._set(Status("failed", error=explain(error)))
        else:
            self.model = model
            self._set(Status("ready", seconds=time.monotonic() - start))

    def _set(self, status: Status) -> None:
        self.status = status


def explain(error: BaseException) -> str:
    """An error on one line; the class name is omitted for the library's ValueErrors, which are self-explanatory."""
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError) and message else f"{type(error).__name__}: {message}".rstrip(": ")
