"""Checksums of a checkpoint's files, and whether the files are still what was written or downloaded.

What is written here has them in SHA256SUMS, as `sha256sum` writes and checks it. Hugging Face's cache needs no such
file: its files are links to blobs that are named by their checksum, SHA-256 or, of small files, Git's
(huggingface_hub: "Understand caching"). Objects at gs:// are not compared: each host reads the parts that it needs,
from a store that checks its own, and reading all of them would take many times as long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gemma_tpu.checkpoint import storage
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_BLOB = re.compile(r"(?:.*/)?blobs/([0-9a-f]{64}|[0-9a-f]{40})")
_WEIGHTS = (".safetensors", ".index.json", "/config.json", "/_METADATA", ".ocdbt", "/.zarray", "/zarr.json")
_BLOCK = 4 << 20
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Listed:
    """A file and its checksum: 64 hexadecimal digits of SHA-256, or 40 of Git's. `source`: what says so."""

    path: str
    digest: str
    source: str


def write(directory: Path) -> None:
    """Writes SHA256SUMS of every file below `directory` into it."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / NAME)
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(lambda path: _digest(str(path), 64), files)
        lines = [
            f"{digest}  {path.relative_to(directory).as_posix()}\n" for digest, path in zip(digests, files, strict=True)
        ]
    unfinished = directory / f".{NAME}.{os.getpid()}"
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, directory / NAME)


def listed(directory: str) -> list[Listed]:
    """The files below `directory` whose checksums are known.

    `CheckpointError` for a list that cannot be read. A `CheckpointWarning` names files of weights that are not in
    it; a template or a tokenizer that was put beside them is its user's own affair.
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
        return [Listed(path, blob[1], "the checksum from Hugging Face") for path, blob in links if blob]
    files = _read(sums, directory)
    if new := sorted(path for path in found - {file.path for file in files} if path.endswith(_WEIGHTS)):
        names = _names([os.path.relpath(path, directory) for path in new])
        warnings.warn(f"{directory}: not in {NAME}, and so not compared: {names}", CheckpointWarning, stacklevel=2)
    return files


def _read(sums: str, directory: str) -> list[Listed]:
    files = []
    for number, line in enumerate(storage.read_text(sums).removesuffix("\n").split("\n"), 1):
        if (match := _LINE.fullmatch(line)) is None:
            raise CheckpointError(f"{sums}: line {number} is no checksum and name: {_again(sums)}")
        path = os.path.normpath(storage.join(directory, match[2]))
        if not path.startswith(f"{directory.rstrip('/')}/"):
            raise CheckpointError(f"{sums}: line {number} names a file outside its folder: {match[2]}")
        files.append(Listed(path, match[1], f"the checksum in {sums}"))
    return files


def missing(directory: str) -> str:
    """Names of the files that SHA256SUMS in `directory` lists and that are not there; empty if there are none."""
    sums = storage.join(directory, NAME)
    files = [] if storage.is_remote(directory) or not storage.is_file(sums) else _read(sums, directory)
    return _names([os.path.relpath(file.path, directory) for file in files if not os.path.exists(file.path)])


def changed(files: Sequence[Listed]) -> list[Listed]:
    """Those of `files` that are missing or are not what their checksums say."""
    with _Comparison(files) as comparison:
        return comparison.changed()


def compare(files: Sequence[Listed]) -> None:
    """`CheckpointError`, with the way out, that names those of `files` that are missing or changed."""
    with meanwhile(files):
        pass


@contextlib.contextmanager
def meanwhile(files: Sequence[Listed]) -> Iterator[None]:
    """`compare`, while the body reads the same files: from the disk they come once, if memory can hold them.

    An error that the body has with files comes after that of a changed one, which may be why.
    """
    with _Comparison(files) as comparison:
        try:
            yield
        except CheckpointError:
            _refuse(comparison.changed())
            raise
        _refuse(comparison.changed())


class _Comparison:
    """Reads files in threads, until it is left."""

    def __init__(self, files: Sequence[Listed]) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(_THREADS, "verify")
        self._same: list[tuple[Listed, Future[bool]]] = [
            (file, self._pool.submit(self._is_same, file)) for file in files
        ]

    def _is_same(self, file: Listed) -> bool:
        return os.path.isfile(file.path) and _digest(file.path, len(file.digest), self._stop) == file.digest

    def changed(self) -> list[Listed]:
        """Waits for the end."""
        return [file for file, same in self._same if not same.result()]

    def __enter__(self) -> _Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def _digest(path: str, length: int, stop: threading.Event | None = None) -> str:
    """A file's checksum, of `length` digits; something else once `stop` is set."""
    state, block = hashlib.sha256(), bytearray(_BLOCK)
    try:
        with open(path, "rb", buffering=0) as file:
            if length == 40:  # as Git has it, with a header
                state = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size)
            while not (stop is not None and stop.is_set()) and (count := file.readinto(block)):
                state.update(memoryview(block)[:count])
    except OSError as error:
        raise storage.unreadable(path, error) from error
    return state.hexdigest()


def _refuse(files: Sequence[Listed]) -> None:
    if not files:
        return
    names, source = _names([file.path for file in files]), files[0].source
    lost = not any(os.path.isfile(file.path) for file in files)
    what = f"missing: only {source} is left" if lost else f"changed or damaged: {source} is another one"
    raise CheckpointError(f"{names}: {what}; {_again(files[0].path)}")


def _again(path: str) -> str:
    hub = re.search(r"models--([^/]+)--([^/]+)", path)
    again = f"`gemma-tpu download {hub[1]}/{hub[2]}` fetches it again" if hub else "download or convert it again"
    own = "" if hub else f"; after a change of your own, take it out of {NAME}"
    return f"{again}{own}; verify=False (--no-verify) loads what is there"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
