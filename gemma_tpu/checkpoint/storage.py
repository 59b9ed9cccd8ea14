"""Reads files on local disks and at `gs://` with TensorStore's key-value stores."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorstore as ts

from gemma_tpu.checkpoint import unsupported_formats
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checks import as_path, brief, one_line

_REMOTE = re.compile(r"^[a-z][a-z0-9+]*://")
# Fails within seconds if a host cannot be resolved; TensorStore's default is minutes.
_CONTEXT = {
    "gcs_request_retries": {"max_retries": 5, "initial_delay": "200ms", "max_delay": "5s"},
    "cache_pool": {"total_bytes_limit": 0},
    "cache_pool#directory": {"total_bytes_limit": 64 << 20},
}


@functools.cache
def context() -> ts.Context:
    """The TensorStore context of all reads. Caches OCDBT directories but no data, which is read once."""
    return ts.Context(_CONTEXT)


def is_remote(path: str) -> bool:
    return _REMOTE.match(path) is not None


def normalise(path: str | os.PathLike[str]) -> str:
    """An absolute local path or a `gs://` URL, without a trailing slash."""
    path = as_path("a checkpoint", path)
    if not is_remote(path):
        return os.path.abspath(os.path.expanduser(path))
    if not path.startswith("gs://"):
        raise CheckpointError(f"{path}: only local paths and gs:// can be read")
    return path.rstrip("/")


def join(path: str, *names: str) -> str:
    return "/".join([path.rstrip("/"), *names])


def parent(path: str) -> str:
    return path.rsplit("/", 1)[0] or "/"


def ancestors(path: str, top: str) -> tuple[str, ...]:
    """`path` and its parent directories, up to `top`."""
    return (path,) if path == top else (path, *ancestors(parent(path), top))


def spec(path: str) -> dict[str, Any]:
    """The key-value store spec of a directory."""
    if is_remote(path):
        bucket, _, prefix = path.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{prefix.rstrip('/')}/" if prefix else ""}
    return {"driver": "file", "path": path.rstrip("/") + "/"}


def open_store(path: str, **wrapper: Any) -> ts.KvStore:
    """Opens a directory, or with `wrapper` (such as `driver="ocdbt"`) the database in it."""
    store = {**wrapper, "base": spec(path)} if wrapper else spec(path)
    try:
        return ts.KvStore.open(store, context=context()).result()
    except Exception as error:
        raise unreadable(path, error) from error


def list_keys(store: ts.KvStore, path: str) -> list[str]:
    """All keys in `store`, sorted. `path` is for error messages."""
    try:
        return sorted(key.decode() for key in store.list().result())
    except Exception as error:
        raise unreadable(path, error) from error


def entries(path: str) -> set[str]:
    """Names of the files and directories directly in `path`; empty if it does not exist."""
    if not is_remote(path):
        return set(os.listdir(path)) if os.path.isdir(path) else set()
    return {key.split("/", 1)[0] for key in list_keys(open_store(path), path)}


def is_file(path: str) -> bool:
    """Whether a file exists. Reads the first byte of a remote object, since listing its siblings may be slow."""
    if not is_remote(path):
        check_link(path)
        return os.path.isfile(path)
    return bool(_read(path, slice(0, 1)))


def find(directories: Iterable[str], *names: str) -> str | None:
    """The file of the first of `names` that there is, in the first of `directories` that has one; else None."""
    return next(filter(is_file, (join(directory, name) for directory in directories for name in names)), None)


def read_file(path: str | os.PathLike[str], byte_range: slice = slice(None)) -> bytes:
    """The bytes of a file, or of a range. Raises `CheckpointError` if it does not exist."""
    path = normalise(path)
    value = _read(path, byte_range)
    if value is None:
        raise CheckpointError(f"{path}: no such file")
    return value


def read_head(path: str) -> bytes:
    """The first HEAD_BYTES of a file, or all of a smaller one. Raises `CheckpointError` if it does not exist."""
    check_link(path)
    try:
        return read_file(path, slice(0, unsupported_formats.HEAD_BYTES))
    except CheckpointError as error:
        if "OUT_OF_RANGE" not in str(error):
            raise
        return read_file(path)


def check_link(path: str) -> None:
    """Raises `CheckpointError` for a dangling symbolic link, as in a cache after cleaning."""
    if not is_remote(path) and os.path.islink(path) and not os.path.exists(path):
        raise CheckpointError(f"{path}: a link to {os.readlink(path)}, which is not there: fetch the checkpoint again")


def read_text(path: str) -> str:
    """Reads text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark. Raises `CheckpointError` otherwise."""
    data = read_file(path)
    try:
        return data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is {unsupported_formats.identify(data) or f'no text: {error}'}") from error


def read_json(path: str) -> dict[str, Any]:
    """Reads a JSON object, in an encoding of `read_text`. Raises `CheckpointError` otherwise."""
    return parse_json(read_text(path), path)


def parse_json(text: str | bytes, path: str, *, strict: bool = False) -> dict[str, Any]:
    """Parses a JSON object. `strict`: rejects what Python accepts beyond JSON, and duplicate keys."""
    hooks: dict[str, Any] = {"object_pairs_hook": _unique, "parse_constant": _no_constant, "parse_int": _integer}
    try:
        value = json.loads(text, **(hooks if strict else {}))
    except (ValueError, RecursionError) as error:
        what = unsupported_formats.identify(text if isinstance(text, bytes) else text.encode())
        raise CheckpointError(f"{path}: is {what or f'no JSON: {one_line(error)}'}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no JSON object, but a {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    for text in (*found, *found.values()):
        if isinstance(text, str):
            text.encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"it has the key {brief(twice)} twice")
    return found


def _integer(text: str) -> int | float:
    return float(text) if text == "-0" else int(text)  # keeps the sign of zero


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def read_range(path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with the bytes of a file from `start` on. Reads local files directly: TensorStore copies twice."""
    if is_remote(path):
        values = np.frombuffer(_read(path, slice(start, start + len(out))) or b"", np.uint8)
        count = len(values)
        out[:count] = values
    else:
        count = 0
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(start)
                while count < len(out) and (read := file.readinto(out[count:].data)):
                    count += read
        except OSError as error:
            raise unreadable(path, error) from error
    if count != len(out):
        raise CheckpointError(f"{path}: the file ends early")


def _read(path: str, byte_range: slice) -> bytes | None:
    directory, name = path.rsplit("/", 1)
    try:
        read = open_store(directory or "/").read(name, byte_range=byte_range).result()
    except CheckpointError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    return read.value if read.state == "value" else None


def unreadable(path: str, error: Exception) -> CheckpointError:
    hint = " (is there a network, and do you have access to the bucket?)" if is_remote(path) else ""
    return CheckpointError(f"{path}: cannot be read{hint}: {one_line(error)}")
