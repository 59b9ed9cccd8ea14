"""Environment settings needed before JAX starts: the cache directory and libtpu. Imports nothing heavy."""

from __future__ import annotations

import glob
import os
import secrets
import warnings
from pathlib import Path

# Answers to what libtpu asks the cloud metadata server, for a single machine without a TPU.
LIBTPU_ALONE = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}

PART = ".part"  # the end of the name of a file that is not whole yet
_REMEDY = "set GEMMA_TPU_CACHE to a folder that can be written"


def cache_dir() -> Path:
    """The cache directory: $GEMMA_TPU_CACHE, or ~/.cache/gemma_tpu. OSError if the home directory is unknown."""
    path = os.path.expanduser(os.environ.get("GEMMA_TPU_CACHE") or "~/.cache/gemma_tpu")
    if path.startswith("~"):
        raise OSError(f"no home directory is known, so there is no {path}: {_REMEDY}")
    return Path(path)


def writable(folder: Path) -> Path:
    """`folder`. OSError if it cannot be created or written."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OSError(f"{folder} cannot be written: {_REMEDY}")
    return folder


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file of a cache: another process finds all of it or none. OSError if it cannot be written."""
    writable(path.parent).mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}{PART}")
    try:
        part.write_bytes(data)  # to be read by whom other files are, unlike those of `tempfile`
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def hub_cache(name: str, *variables: str) -> Path | None:
    """The cache folder for a hub client, if $GEMMA_TPU_CACHE is set and none of the client's own `variables` is."""
    relocated = os.environ.get("GEMMA_TPU_CACHE") and not any(os.environ.get(variable) for variable in variables)
    return cache_dir() / name if relocated else None


def use_compilation_cache() -> None:
    """Caches compiled programs on disk, so that a second start takes seconds, not minutes.

    Call it before importing jax. JAX's own variables (JAX_COMPILATION_CACHE_DIR, …) take precedence. Warns if the cache
    directory cannot be written.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(writable(cache_dir() / "compiled"))
    except OSError as error:
        warnings.warn(f"compiled programs are not kept for the next start: {error}", RuntimeWarning, stacklevel=2)


def quiet_libtpu() -> None:
    """Silences libtpu's warnings on a machine without a TPU, where it is installed for `gemma-tpu plan`.

    Call it before JAX initializes its backends; which backend it chooses does not change.
    """
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):  # device files of all TPU generations
        for name, value in LIBTPU_ALONE.items():
            os.environ.setdefault(name, value)
