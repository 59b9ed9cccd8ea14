"""Standard input, output and error, any of which a caller may have closed. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from typing import Any


def occupy() -> None:
    """Puts /dev/null where standard streams are closed, so that no file that is opened gets what is written to them.

    Python has None for a closed stream. `sys.stdin` and `sys.stdout` stay so: an input or an answer that has no place
    is an error. What would be said on standard error is lost.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stderr is None:  # where print() would take standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # in use until the process ends


def is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def stdin() -> Any:
    """Standard input. OSError if it is closed."""
    if sys.stdin is None:
        raise OSError("standard input is closed: there is nothing to read there")
    return sys.stdin


def require_stdout() -> None:
    """OSError if standard output is closed."""
    if sys.stdout is None:
        raise OSError("standard output is closed: there is no place for the answer")


def failure() -> OSError | None:
    """Why standard output does not take what was printed, if it does not; it is not tried again then.

    None too if its reader has gone.
    """
    try:
        print(end="", flush=True)
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # else the interpreter's last flush fails too
        if not isinstance(error, BrokenPipeError):
            return OSError(f"standard output cannot be written: {error.strerror}")
    return None
