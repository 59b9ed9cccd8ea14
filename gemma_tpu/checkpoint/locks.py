"""File locks, which the operating system releases when their process ends."""

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
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # from file systems without locks


def acquire(path: Path, *, wait: bool = False, create: bool = True) -> IO[bytes] | None:
    """Creates and locks the file `path` until it is closed; None if another process holds it or has removed it.

    `wait`: waits until it is free. Without `create`, returns None if the file does not exist. Raises OSError if the
    file system has no locks.
    """
    try:
        file = open(path, "ab" if create else "rb+")  # noqa: SIM115  # the caller closes it to release the lock
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:  # including KeyboardInterrupt
        file.close()
        raise
    file.close()
    return None


def is_unsupported(error: OSError) -> bool:
    """Whether `error` means that the file system has no locks."""
    return error.errno in _UNSUPPORTED


@contextlib.contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file `path`, and removes it at exit. Logs `what` while waiting for another process."""
    try:
        lock = acquire(path)
        if lock is None:
            _LOG.warning("%s: waiting for another process", what)
        while lock is None:
            lock = acquire(path, wait=True)
    except OSError as error:
        if not is_unsupported(error):
            raise
        yield
        return
    with lock, signals.remove_on_signal(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
