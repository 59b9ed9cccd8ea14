"""Checksums of a checkpoint's files: writing them, and verifying files against them.

This package writes SHA256SUMS in the format of `sha256sum`. Files in Hugging Face's cache are links to blobs named by
their checksum, SHA-256 or, for small files, Git's (huggingface_hub: "Understand caching"). Objects at gs:// are not
verified: Cloud Storage checks its own, and each host reads only the parts it needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gemma_tpu.checkpoint import storage
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.names import abbreviate

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_BLOB = re.compile(r"(?:.*/)?blobs/([0-9a-f]{64}|[0-9a-f]{40})")
_WEIGHTS = (".safetensors", ".index.json", "/config.json", "/_METADATA", ".ocdbt", "/.zarray", "/zarr.json")
_BLOCK = 32 << 20  # while Python code runs in another thread, each block waits for the GIL, some 5 ms
_THREADS = min(16, os.cpu_count() or 1)  # a file is hashed by one


@dataclasses.dataclass(frozen=True)
class KnownFile:
    """A file and its checksum: 64 hex digits of SHA-256, or 40 of Git's. `source` describes its origin in errors."""

    path: str
    digest: str
    source: str


def write(directory: Path) -> None:
    """Writes SHA256SUMS for every file below `directory`."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / NAME)
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(lambda path: _digest(str(path), 64), files)
        lines = [
            f"{digest}  {path.relative_to(directory).as_posix()}\n" for digest, path in zip(digests, files, strict=True)
        ]
    temporary = directory / f".{NAME}.{os.getpid()}"
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, directory / NAME)


def known_files(directory: str) -> list[KnownFile]:
    """The files below `directory` whose checksums are known.

    Raises `CheckpointError` if SHA256SUMS is malformed. A `CheckpointWarning` names weight files that it lacks;
    users may add templates and tokenizers of their own.
    """
    if storage.is_remote(directory):
        return []
    sums = storage.join(directory, NAME)
    snapshot = os.path.basename(storage.parent(directory)) == "snapshots"
    if not snapshot and not storage.is_file(sums):
        return []
    found = {storage.join(folder, name) for folder, _, names in os.walk(directory) for name in names}
    if sums not in found:
        links = ((path, _BLOB.fullmatch(os.readlink(path))) for path in sorted(found) if os.path.islink(path))
        return [KnownFile(path, blob[1], "the checksum from Hugging Face") for path, blob in links if blob]
    files = _read(sums, directory)
    if new := sorted(path for path in found - {file.path for file in files} if path.endswith(_WEIGHTS)):
        names = abbreviate([os.path.relpath(path, directory) for path in new], 5)
        warnings.warn(f"{directory}: not in {NAME}, and so not compared: {names}", CheckpointWarning, stacklevel=2)
    return files


def _read(sums: str, directory: str) -> list[KnownFile]:
    files = []
    for number, line in enumerate(storage.read_text(sums).removesuffix("\n").split("\n"), 1):
        if (match := _LINE.fullmatch(line)) is None:
            raise CheckpointError(f"{sums}: line {number} is no checksum and name: {_way_out(sums)}")
        path = os.path.normpath(storage.join(directory, match[2]))
        if not path.startswith(f"{directory.rstrip('/')}/"):
            raise CheckpointError(f"{sums}: line {number} names a file outside its folder: {match[2]}")
        files.append(KnownFile(path, match[1], f"the checksum in {sums}"))
    return files


def missing_files(directory: str) -> str:
    """Names of the files that SHA256SUMS in `directory` lists but that do not exist, joined by commas."""
    sums = storage.join(directory, NAME)
    files = [] if storage.is_remote(directory) or not storage.is_file(sums) else _read(sums, directory)
    lost = [os.path.relpath(file.path, directory) for file in files if not os.path.exists(file.path)]
    return abbreviate(lost, 5)


def changed_files(files: Sequence[KnownFile]) -> list[KnownFile]:
    """Those of `files` that are missing or do not match their checksums."""
    with _comparing(files) as changed:
        return changed()


def verify(files: Sequence[KnownFile]) -> None:
    """Raises `CheckpointError` naming those of `files` that are missing or do not match their checksums."""
    with verifying(files):
        pass


@contextlib.contextmanager
def verifying(files: Sequence[KnownFile]) -> Iterator[None]:
    """Runs `verify` while the body reads the same files, so that the page cache serves one of the two.

    A checksum error replaces a `CheckpointError` of the body, since it is the likely cause.
    """
    with _comparing(files) as changed:
        try:
            yield
        except CheckpointError:
            _require_none(changed())
            raise
        _require_none(changed())


@contextlib.contextmanager
def _comparing(files: Sequence[KnownFile]) -> Iterator[Callable[[], list[KnownFile]]]:
    """Compares `files` in threads, stopped on exit. Yields a function that waits and returns those that differ."""
    stop = threading.Event()

    def differs(file: KnownFile) -> bool:
        return not os.path.isfile(file.path) or _digest(file.path, len(file.digest), stop) != file.digest

    with ThreadPoolExecutor(_THREADS, "verify") as pool:
        results = [(file, pool.submit(differs, file)) for file in files]
        try:
            yield lambda: [file for file, result in results if result.result()]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _digest(path: str, length: int, stop: threading.Event | None = None) -> str:
    """A file's checksum, of `length` digits; meaningless once `stop` is set."""
    state, block = hashlib.sha256(), bytearray(_BLOCK)
    try:
        with open(path, "rb", buffering=0) as file:
            if length == 40:  # a Git blob has a header
                state = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size)
            while not (stop is not None and stop.is_set()) and (count := file.readinto(block)):
                state.update(memoryview(block)[:count])
    except OSError as error:
        raise storage.unreadable(path, error) from error
    return state.hexdigest()


def _require_none(files: Sequence[KnownFile]) -> None:
    if not files:
        return
    names, source = abbreviate([file.path for file in files], 5), files[0].source
    lost = not any(os.path.isfile(file.path) for file in files)
    what = f"missing: only {source} is left" if lost else f"changed or damaged: does not match {source}"
    raise CheckpointError(f"{names}: {what}; {_way_out(files[0].path)}")


def _way_out(path: str) -> str:
    hub = re.search(r"models--([^/]+)--([^/]+)", path)
    again = f"`gemma-tpu download {hub[1]}/{hub[2]}` fetches it again" if hub else "download or convert it again"
    own = "" if hub else f"; if you changed it yourself, remove it from {NAME}"
    return f"{again}{own}; verify=False (--no-verify) loads what is there"
