"""Where Gradio keeps what visitors upload: a folder of this process alone, which goes when it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_PREFIX = "gemma-tpu-demo-"
_LOCK = "lock"  # held by the process that a folder belongs to; the system releases it when that ends, however it does


@contextlib.contextmanager
def own_upload_folder() -> Iterator[None]:
    """Gives Gradio, which must not have been imported yet, a new folder, and removes those that killed processes left.

    Otherwise all programs on a machine share one, and delete each other's files. One that the user has chosen, with
    GRADIO_TEMP_DIR, is used as it is.
    """
    if os.environ.get("GRADIO_TEMP_DIR"):
        yield
        return
    _remove_abandoned()
    folder, lock = _create()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["GRADIO_TEMP_DIR"]
        shutil.rmtree(folder, ignore_errors=True)  # what is left, if anything is, the next process removes
        lock.close()


def _create() -> tuple[Path, IO[str]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = (folder / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        lock.close()  # another process has taken it for abandoned, between these lines


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        # Other users' folders cannot be opened, those in use not be locked.
        with contextlib.suppress(OSError), path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
