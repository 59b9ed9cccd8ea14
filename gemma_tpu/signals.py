"""Ending by a signal like by an error: with everything cleaned up."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit (143, 129) in the main thread, once; a second one kills as ever.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """

    def stop(number: int, _: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_DFL)
        raise SystemExit(128 + number)

    here = threading.current_thread() is threading.main_thread()  # no other may say what signals do
    handled = [one for one in _SIGNALS if here and signal.getsignal(one) is signal.SIG_DFL]
    for one in handled:
        signal.signal(one, stop)
    try:
        yield
    finally:
        for one in handled:
            signal.signal(one, signal.SIG_DFL)
