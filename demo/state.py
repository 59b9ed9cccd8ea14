"""The model that all visitors share: loading it in the background, and how far that is."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing the model for real takes seconds, which the page need not wait for
    from gemma_tpu import Model

# Loads a model, telling (bytes read, bytes in all).
Load = Callable[[Callable[[int, int], None]], "Model"]

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Status:
    """`phase`: idle → starting → reading → compiling → ready, or failed at any point.

    `done` of `total` are bytes while reading and programs while compiling (`step` is the one under way). `seconds` is
    how long loading took.
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
        """Of the present phase."""
        return self.done / self.total if self.total else 0.0


class Loader:
    """Loads the model once, whoever asks; thread-safe. `model` is None until it is ready to answer."""

    def __init__(self, name: str, load: Load) -> None:
        self.name = name
        self.model: Model | None = None
        self.status = Status()
        self._load = load
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to load, unless that is under way or done. After a failure it tries again."""
        with self._lock:
            if self.status.phase not in ("idle", "failed"):
                return
            self.status = Status("starting")
            self._thread = threading.Thread(target=self._run, name="demo-loader", daemon=True)
            self._thread.start()

    def wait(self, timeout: float | None = None) -> Status:
        """Waits until loading has ended; returns what came of it."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self.status

    def close(self) -> None:
        """Lets go of the model."""
        model, self.model, self.status = self.model, None, Status()
        if model is not None:
            model.close()

    def _run(self) -> None:
        began, model = time.monotonic(), None
        try:
            model = self._load(lambda done, total: self._set(Status("reading", done, total)))
            model.warmup(lambda step, done, total: self._set(Status("compiling", done, total, step)))
        except Exception as error:  # whatever it is, the page must show it
            _LOG.error("loading %s failed: %s", self.name, explain(error), exc_info=not isinstance(error, ValueError))
            if model is not None:
                model.close()
            self._set(Status("failed", error=explain(error)))
        else:
            self.model = model
            self._set(Status("ready", seconds=time.monotonic() - began))

    def _set(self, status: Status) -> None:
        self.status = status


def explain(error: BaseException) -> str:
    """An error as one line for a person. ValueErrors of the library say what is wrong by themselves."""
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError) and message else f"{type(error).__name__}: {message}".rstrip(": ")
