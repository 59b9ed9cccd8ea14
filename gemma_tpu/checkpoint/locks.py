"""Locks that end with their process, however it ends: a lock that nobody holds says that its owner is gone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gemma_tpu import signals

_LOG = logging.getLogger(__name__)
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of network file systems without locks


def take(path: Path, *, wait: bool = False, create: bool = True) -> IO[bytes] | None:
    """The lock file `path`, made and locked until it is closed; None if another holds it, or removed it meanwhile.

    `wait`: until it is free. Without `create`, None if there is no such file. OSError where the file system has no
    locks.
    """
    try:
        file = open(path, "ab" if create else "rb+")  # noqa: SIM115  # the caller closes it, and with it the lock
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:  # Ctrl-C while it waits, too: an open file would keep the lock
        file.close()
        raise
    file.close()
    return None


def unsupported(error: OSError) -> bool:
    return error.errno in _UNSUPPORTED


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file `path`, which is gone afterwards. Where another process holds it, waits and logs `what`."""
    try:
        lock = take(path)
        if lock is None:
            _LOG.warning("%s: another process is at it: waiting for that", what)
        while lock is None:
            lock = take(path, wait=True)
    except OSError as error:
        if not unsupported(error):
            raise
        yield
        return
    with lock, signals.remove_on_signal(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
