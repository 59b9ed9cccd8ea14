"""Directories that appear whole or not at all: written beside their place, made to last, then renamed."""

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

PARTIAL = ".partial-gemma_tpu_"  # in the name of a directory that is being written, before a random end
_LOCK = ".lock"  # first file in it, held by the process that writes


@contextlib.contextmanager
def staging(dst: str | os.PathLike[str], needed: int, *, exact: bool) -> Iterator[Path]:
    """A path beside `dst` to write to, which becomes `dst` at the end, or vanishes if there is an error.

    `needed`: bytes that will be written, or, if not `exact`, at most. What a killed run has left beside `dst` is
    removed first; what a living one is writing there is left alone, and who is done first has the place.

    `CheckpointError` if `dst` exists or cannot be written: before anything is, where it can be known.
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
            disk.require(path, needed, target)
        with _claimed(path) as work:
            yield work / path.name
            disk.flush_tree(work / path.name)
            _rename(work / path.name, path)
            disk.flush(path.parent)
    except CheckpointError:
        raise
    except Exception as error:
        if (failure := disk.failure(path, error, needed, free)) is not None:
            raise failure from error
        if isinstance(error, OSError):
            raise CheckpointError(f"{path}: cannot be written: {error}") from error
        raise


def _exists(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: exists already; remove it or choose another destination")


def _rename(work: Path, path: Path) -> None:
    try:
        os.rename(work, path)
    except OSError as error:  # another run was done first
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise _exists(path) from error


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[Path]:
    """A directory to work in, locked to show that somebody does; removed at the end."""
    while True:
        with signals.temporary_directory(path.with_name(f"{path.name}{PARTIAL}")) as work:
            try:
                lock = locks.take(work / _LOCK)
            except OSError as error:
                if not locks.unsupported(error):
                    raise
                yield work
                return
            if lock is not None:  # else taken for a leftover before it was locked
                with lock:
                    yield work
                return


def _remove_leftovers(path: Path) -> None:
    """Of killed runs. A directory without the lock that they make first is somebody's own, whatever its name."""
    for old in path.parent.glob(f"{glob.escape(path.name + PARTIAL)}*"):
        try:
            lock = locks.take(old / _LOCK, create=False)
        except OSError:  # no locks on this file system, or not ours to remove
            continue
        if lock is not None:
            shutil.rmtree(old, ignore_errors=True)
            lock.close()
