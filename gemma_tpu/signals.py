"""Ending by a signal with nothing half-written left.

A handler that raises cannot be relied on for that: Python drops what is raised in callbacks of C code and in
finalizers, and threads that are writing go on, or abort the process when it ends under them. So commands whose only
unfinished work is in files end at once: the process becomes a shell (execve ends all threads) that removes the files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

_REMOVE = 'code=$1; shift; rm -rf -- "$@" 2>/dev/null; exit "$code"'
_unfinished: set[str] = set()  # paths that a signal is to remove


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Meanwhile a signal that ends the process (`ending`) removes `path`, whether it is there yet or not."""
    name = str(path.absolute())
    _unfinished.add(name)
    try:
        yield
    finally:
        _unfinished.discard(name)


@contextlib.contextmanager
def temporary_directory(prefix: Path) -> Iterator[Path]:
    """A new directory whose path begins with `prefix`. It is removed at the end, and by a signal from the start."""
    path = Path(f"{prefix}{secrets.token_hex(8)}")
    with unfinished(path):
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the process at once with 130, 143 or 129, and remove what is `unfinished`.

    Nothing else is run: no `finally`, no atexit. A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """

    def end(number: int, _: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)  # the shell too, which takes a moment
        if os.isatty(2):
            os.write(2, b"\n")  # after the progress bar
        paths = list(_unfinished)
        with contextlib.suppress(OSError):
            os.execv("/bin/sh", ["sh", "-c", _REMOVE, "sh", str(128 + number), *paths])
        for path in paths:  # where no shell can be started
            shutil.rmtree(path, ignore_errors=True)
        os._exit(128 + number)

    with _handled(end, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit (143, 129) in the main thread, once; a second one kills as ever.

    For work that has another process to end, too.
    """

    def stop(number: int, _: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(each) is stop:
                signal.signal(each, signal.SIG_DFL)
        raise SystemExit(128 + number)

    with _handled(stop, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """`handler` for those of the signals that would do what they do by default; in the main thread, which alone may."""
    default = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in numbers}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    before = {number: old for number, old in before.items() if old in default}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
