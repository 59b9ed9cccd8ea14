"""What a `Loader` does, on standard error."""

from __future__ import annotations

import contextlib
import sys
import threading
from types import TracebackType
from typing import Any

from gemma_tpu.cli.standard_streams import is_terminal
from gemma_tpu.loader import LoadStatus

_BYTES = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}B/{total_fmt}B [{elapsed}<{remaining}]"
_PROGRAMS = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}]{postfix}"


class LoadReport:
    """For a `Loader` to call. A terminal gets a bar for the weights and one for the programs, a log a line for each.

    `begun` is set once weights are being read, or never will be.
    """

    def __init__(self, name: str) -> None:
        self._name, self.begun = name, threading.Event()
        self._bar: Any = None
        self._last: object = None

    def __enter__(self) -> LoadReport:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close_bar()

    def __call__(self, status: LoadStatus) -> None:
        with contextlib.suppress(OSError):  # of a standard error that nobody reads: the server goes on
            if not status.busy:
                self._close_bar()
                if status.phase == "ready":
                    self._say(f"{self._name} is ready after {status.seconds:.0f} s")
            elif is_terminal(sys.stderr):
                self._draw(status)
            else:
                self._log(status)
        self.begun.set()

    def _draw(self, status: LoadStatus) -> None:
        from tqdm import tqdm

        if self._last != (what := (status.phase, status.total)):
            self._close_bar()
            bytes_ = status.phase == "reading"
            self._bar = tqdm(
                total=status.total,
                desc=status.phase.capitalize(),
                bar_format=_BYTES if bytes_ else _PROGRAMS,
                unit_scale=bytes_,
            )
            self._last = what
        self._bar.update(status.done - self._bar.n)
        if status.step:
            self._bar.set_postfix_str(status.step)

    def _log(self, status: LoadStatus) -> None:
        if status.phase == "reading":
            what = f"reading {status.total / 1e6:,.1f} MB"
        else:
            what = f"compiling {status.done + 1} of {status.total}: {status.step}"
        if what != self._last and (status.phase == "reading" or status.done < status.total):
            self._say(what)
        self._last = what

    def _say(self, text: str) -> None:
        print(f"gemma-tpu: {text}", file=sys.stderr, flush=True)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
