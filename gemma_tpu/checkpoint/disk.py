"""Disk writes: free space, messages for failed writes, fsync."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from gemma_tpu.checkpoint.errors import CheckpointError

_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file grew larger than the file system, or `ulimit -f`, allows",
}
_REFUSED = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EIO: "the disk failed",
}
_TENSORSTORE = re.compile(r"os_error_code='(\d+)'")  # in what TensorStore raises


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def require_free(path: Path, needed: int, what: str) -> None:
    """Raises `CheckpointError`, beginning with `what`, if the disk of `path` lacks `needed` free bytes."""
    if (free := free_bytes(path)) < needed:
        raise CheckpointError(
            f"{what}: needs {format_bytes(needed)}, and {format_bytes(free)} are free there: make room, or choose "
            "another disk"
        )


def write_error(path: Path, error: BaseException, needed: int, free: int) -> CheckpointError | None:
    """The error to raise if `error` is a failed write to `path`; else None.

    `needed`: total bytes to write. `free`: bytes that were free before.
    """
    code = _errno(error)
    if code in _FULL:
        room = f": it takes up to {format_bytes(needed)}, and {format_bytes(free)} were free"
        return CheckpointError(f"{path}: cannot be written: {_FULL[code]}{room if code != errno.EFBIG else ''}")
    if code in _REFUSED:
        return CheckpointError(f"{path}: cannot be written: {_REFUSED[code]}")
    return None


def _errno(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := _TENSORSTORE.search(str(error)):
            return int(found[1])
        error = error.__cause__
    return None


def format_bytes(count: int) -> str:
    """Formats a byte count: "8.6 GB"."""
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB")) if count >= s), (1e3, "kB"))
    return f"{count / scale:.1f} {unit}"


def fsync(path: Path) -> None:
    """Flushes a file, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """`fsync` for a directory and everything below it."""
    for folder, _, files in os.walk(directory):
        for name in files:
            fsync(Path(folder, name))
        fsync(Path(folder))
