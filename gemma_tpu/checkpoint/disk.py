"""The disk that is written to: room on it, what a failed write means, and making sure that what was written stays."""

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
    """Room on the disk where `path` is, or would be."""
    return shutil.disk_usage(next(one for one in (path, *path.absolute().parents) if one.exists())).free


def require(path: Path, needed: int, what: str) -> None:
    """`CheckpointError`, of `what`, if there is no room for `needed` bytes at `path`."""
    if (free := free_bytes(path)) < needed:
        raise CheckpointError(
            f"{what}: needs {size(needed)}, and {size(free)} are free there: make room, or choose another disk"
        )


def failure(path: Path, error: BaseException, needed: int, free: int) -> CheckpointError | None:
    """What to say of an error if it is one of writing to `path`; else None.

    `needed`: bytes to be written in all. `free`: bytes that were free before.
    """
    code = _code(error)
    if code in _FULL:
        room = f": it takes up to {size(needed)}, and {size(free)} were free"
        return CheckpointError(f"{path}: cannot be written: {_FULL[code]}{room if code != errno.EFBIG else ''}")
    if code in _REFUSED:
        return CheckpointError(f"{path}: cannot be written: {_REFUSED[code]}")
    return None


def _code(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := _TENSORSTORE.search(str(error)):
            return int(found[1])
        error = error.__cause__
    return None


def size(count: int) -> str:
    """Bytes for people: "8.6 GB"."""
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB")) if count >= s), (1e3, "kB"))
    return f"{count / scale:.1f} {unit}"


def flush(path: Path) -> None:
    """Returns when a file, or a directory's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(directory: Path) -> None:
    """`flush` of a directory and everything in it."""
    for folder, _, files in os.walk(directory):
        for name in files:
            flush(Path(folder, name))
        flush(Path(folder))
