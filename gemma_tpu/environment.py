"""What the environment decides, to be settled before JAX starts: the cache's folder, libtpu. Imports nothing heavy."""

from __future__ import annotations

import glob
import os
import warnings
from pathlib import Path

# What libtpu asks a cloud about its host, answered for a machine that is alone and has no TPU.
LIBTPU_ALONE = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}

_ANOTHER = "set GEMMA_TPU_CACHE to a folder that can be written"


def cache_dir() -> Path:
    """Where everything is kept between runs: $GEMMA_TPU_CACHE, or ~/.cache/gemma_tpu.

    OSError, with the way out, if there is no such place.
    """
    path = os.path.expanduser(os.environ.get("GEMMA_TPU_CACHE") or "~/.cache/gemma_tpu")
    if path.startswith("~"):
        raise OSError(f"no home directory is known, so there is no {path}: {_ANOTHER}")
    return Path(path)


def writable(folder: Path) -> Path:
    """`folder`; OSError, with the way out, if it cannot be made or written."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OSError(f"{folder} cannot be written: {_ANOTHER}")
    return folder


def hub_cache(name: str, *variables: str) -> Path | None:
    """The folder for a hub's client, if $GEMMA_TPU_CACHE is set and none of the client's own `variables` is."""
    moved = os.environ.get("GEMMA_TPU_CACHE") and not any(os.environ.get(variable) for variable in variables)
    return cache_dir() / name if moved else None


def use_compilation_cache() -> None:
    """Keeps compiled programs in the cache's folder, so that a second start takes seconds, not minutes.

    To be called before jax is imported. JAX's own variables (JAX_COMPILATION_CACHE_DIR, …) win where they are set.
    Where nothing can be kept, a RuntimeWarning says so.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(writable(cache_dir() / "compiled"))
    except OSError as error:
        warnings.warn(f"compiled programs are not kept for the next start: {error}", RuntimeWarning, stacklevel=2)


def quiet_libtpu() -> None:
    """Keeps libtpu from complaining where it is installed, as for `gemma-tpu plan`, and there is no TPU.

    To be called before JAX looks for devices; whether it then uses a TPU is left as it is.
    """
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):  # a TPU's device files, of any generation
        for name, value in LIBTPU_ALONE.items():
            os.environ.setdefault(name, value)
