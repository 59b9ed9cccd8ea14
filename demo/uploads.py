"""A private upload folder for Gradio, removed when the process exits."""

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
_LOCK = "lock"  # held by the owning process; the system releases it when the process ends


@contextlib.contextmanager
def own_upload_folder() -> Iterator[None]:
    """Sets GRADIO_TEMP_DIR to a new folder and removes those of killed processes. Enter it before importing Gradio.

    By default all programs on a machine share one folder and delete each other's files. A GRADIO_TEMP_DIR that is
    already set is kept.
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
        shutil.rmtree(folder, ignore_errors=True)  # the next process removes what is left
        lock.close()


def _create() -> tuple[Path, IO[str]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = (folder / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        lock.close()  # another process removed it before it was locked


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        # Fails for other users' folders (open) and for folders in use (lock).
        with contextlib.suppress(OSError), path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
