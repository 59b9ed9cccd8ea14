"""Exits on a signal without leaving partial files.

A handler that raises is not reliable: Python drops exceptions raised in C callbacks and finalizers, and writer threads
continue, or abort the interpreter at exit. So commands whose only unfinished work is files exit at once: execve, which
ends all threads, replaces the process with a shell that removes the files.
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
_unfinished: set[str] = set()  # paths that a signal removes


@contextlib.contextmanager
def remove_on_signal(path: Path) -> Iterator[None]:
    """Within this context a signal handled by `exit_at_once` removes `path`, whether or not it exists yet."""
    name = str(path.absolute())
    _unfinished.add(name)
    try:
        yield
    finally:
        _unfinished.discard(name)


@contextlib.contextmanager
def temporary_directory(prefix: Path) -> Iterator[Path]:
    """A new directory whose path begins with `prefix`, removed on exit and by a signal."""
    path = Path(f"{prefix}{secrets.token_hex(8)}")
    with remove_on_signal(path):
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def exit_at_once(status: int | None = None) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP exit at once and remove the paths of `remove_on_signal`.

    The exit status is 130, 143 or 129 unless one is given. No `finally` block and no atexit function runs. An ignored
    signal, such as SIGHUP under nohup, stays ignored.
    """

    def end(number: int, _: FrameType | None) -> None:
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)  # inherited by the shell
        if os.isatty(2):
            os.write(2, b"\n")  # after the progress bar
        code, paths = 128 + number if status is None else status, list(_unfinished)
        with contextlib.suppress(OSError):
            os.execv("/bin/sh", ["sh", "-c", _REMOVE, "sh", str(code), *paths])
        for path in paths:  # no shell could be started
            shutil.rmtree(path, ignore_errors=True)
        os._exit(code)

    with _handled(end, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def raise_exit() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit (143, 129) in the main thread; a second signal kills the process.

    For work that must also stop a child process.
    """

    def stop(number: int, _: FrameType | None) -> None:
        for other in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(other) is stop:
                signal.signal(other, signal.SIG_DFL)
        raise SystemExit(128 + number)

    with _handled(stop, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Installs `handler` for signals with their default action; only in the main thread, as Python requires."""
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
