"""What a compiled program follows from beside its own arguments: this package's sources, versions, flags."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
from pathlib import Path

import jax

from gemma_tpu import _IMPORTED

_COMPILERS = "jax", "jaxlib", "libtpu", *(f"jax-cuda{n}-{part}" for n in (12, 13) for part in ("pjrt", "plugin"))
_ENVIRONMENT = "LIBTPU_INIT_ARGS", "XLA_FLAGS", "TPU_LIBRARY_PATH"
# Settings of JAX that say where programs are kept, and which devices there are (callers have those of their own).
_NO_PART = "jax_compilation_cache", "jax_enable_compilation_cache", "jax_persistent_cache", "jax_platforms"


def sources() -> str | None:
    """A digest of this package; None if a file of it was changed after this process imported it."""
    if any(path.stat().st_ctime > _IMPORTED for path in _files()):
        return None
    return _digest_of_sources()


def _files() -> list[Path]:
    return sorted(Path(__file__).parent.rglob("*.py"))


@functools.cache
def _digest_of_sources() -> str:
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in _files():
        digest.update(f"{path.relative_to(root)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Of those packages that trace and compile, and that are installed."""
    found = {}
    for name in (*_COMPILERS, "flax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def flags() -> list[object]:
    """From the environment, and JAX's settings."""
    found: list[object] = [os.environ.get(name) for name in _ENVIRONMENT]
    for name in _ENVIRONMENT[:2]:
        value = os.environ.get(name, "").strip()
        if value and not value.startswith("-"):  # a file of flags
            try:
                found.append(Path(value).read_bytes())
            except OSError:
                found.append("not there")
    if library := os.environ.get("TPU_LIBRARY_PATH"):  # a compiler named by its path says no version
        try:
            found += [os.stat(library).st_size, os.stat(library).st_mtime_ns]
        except OSError:
            found.append("not there")
    return found + [
        f"{name}={value}" for name, value in sorted(jax.config.values.items()) if not name.startswith(_NO_PART)
    ]
