"""How long a thread may keep Python's lock (the GIL) from threads that wait for it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

# Seconds. Python's own are 5 ms. A thread that reads or hashes a file wants the lock between any two blocks, and waits
# as long while another traces a program; several of them wait for one another as well.
_TURN = 0.0005
_lock = threading.Lock()
_users = 0
_before = 0.0


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """Shortens the turns of all threads of the process until the last of those who asked for it is done."""
    global _users, _before
    with _lock:
        if not _users:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(_before, _TURN))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                sys.setswitchinterval(_before)
