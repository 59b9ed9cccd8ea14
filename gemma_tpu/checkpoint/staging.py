"""Writes directories atomically: beside their destination, then synced and renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gemma_tpu import signals
from gemma_tpu.checkpoint import disk, locks, storage
from gemma_tpu.checkpoint.errors import CheckpointError

PARTIAL = ".partial-gemma_tpu_"  # in the name of a directory being written, before a random suffix
_LOCK = ".lock"  # file in it, created first and locked by the writing process


@contextlib.contextmanager
def staging(dst: str | os.PathLike[str], needed: int, *, exact: bool) -> Iterator[Path]:
    """Yields a path beside `dst` to write to, which is renamed to `dst` at exit, or removed on error.

    Removes leftovers of killed runs. If several processes write to `dst`, the first to finish wins. `needed`: bytes
    to be written, an upper bound unless `exact`.

    Raises `CheckpointError` if `dst` exists or cannot be written, before writing if possible.
    """
    target = storage.normalise(dst)
    if storage.is_remote(target):
        raise CheckpointError(f"{target}: write to a local path first, then copy it with gcloud storage cp -r")
    path = Path(target)
    if os.path.lexists(path):
        raise _exists(path)
    free = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        free = disk.free_bytes(path)
        if exact:
            disk.require_free(path, needed, target)
        with _work_directory(path) as work:
            yield work / path.name
            disk.fsync_tree(work / path.name)
            _rename(work / path.name, path)
            disk.fsync(path.parent)
    except CheckpointError:
        raise
    except Exception as error:
        if (write_error := disk.write_error(path, error, needed, free)) is not None:
            raise write_error from error
        if isinstance(error, OSError):
            raise CheckpointError(f"{path}: cannot be written: {error}") from error
        raise


def _exists(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: exists already; remove it or choose another destination")


def _rename(work: Path, path: Path) -> None:
    try:
        os.rename(work, path)
    except OSError as error:  # another process finished first
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise _exists(path) from error


@contextlib.contextmanager
def _work_directory(path: Path) -> Iterator[Path]:
    """A locked temporary directory, removed at exit."""
    while True:
        with signals.temporary_directory(path.with_name(f"{path.name}{PARTIAL}")) as work:
            try:
                lock = locks.acquire(work / _LOCK)
            except OSError as error:
                if not locks.is_unsupported(error):
                    raise
                yield work
                return
            if lock is not None:  # else another process removed it as a leftover
                with lock:
                    yield work
                return


def _remove_leftovers(path: Path) -> None:
    """Removes directories of killed runs. One without a lock file was not made here."""
    for old in path.parent.glob(f"{glob.escape(path.name + PARTIAL)}*"):
        try:
            lock = locks.acquire(old / _LOCK, create=False)
        except OSError:  # no locks on this file system, or no permission
            continue
        if lock is not None:
            shutil.rmtree(old, ignore_errors=True)
            lock.close()
