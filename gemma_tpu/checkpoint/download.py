"""Finding the released checkpoints by name: in the local cache, at Google Cloud Storage, on Kaggle, on Hugging Face."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma_tpu.checkpoint import storage
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.progress import Progress, reporter
from gemma_tpu.environment import cache_dir, hub_cache, writable

SIZES = ("270m", "1b", "4b", "12b", "27b")
NAMES = tuple(f"gemma3-{size}-{variant}" for size in SIZES for variant in ("pt", "it"))
_BUCKET = "gemma-data"
_TOKENIZER = "tokenizers/tokenizer_gemma3.model"
_BLOCK = 8 << 20


class _Unavailable(Exception):
    """A source does not have a model, or not for this user; the message says what to do."""


def resolve(name_or_path: str | os.PathLike[str], *, progress: Progress | bool = True) -> str:
    """The checkpoint that is meant: a path or gs:// URL as it is, a name ("gemma3-4b-it") looked up or downloaded.

    An existing path comes first, then the cache, then the sources of `download`. Raises `CheckpointError` for a path
    that does not exist and a name that is not known or cannot be had.
    """
    text = os.fspath(name_or_path)
    if storage.is_remote(text) or os.path.exists(os.path.expanduser(text)):
        return storage.normalise(text)
    name = _known(text)
    if name is None:
        raise CheckpointError(f"{text}: no such file or directory, and no name of a released model: {', '.join(NAMES)}")
    return str(cached(name) or download(name, progress=progress))


def cached(name: str) -> Path | None:
    """Where a released model lies in the cache, if it was downloaded whole."""
    path = cache_dir() / name
    return path.resolve() if path.exists() else None


def download(name: str, *, progress: Progress | bool = True) -> Path:
    """Downloads a released model into the cache and returns its directory; what an earlier attempt fetched is kept.

    Tries gs://gemma-data, then Kaggle, then Hugging Face. Raises `CheckpointError` that says of each why it failed and
    what to do.
    """
    known = _known(name)
    if known is None:
        raise CheckpointError(f"{name}: no name of a released model: {', '.join(NAMES)}")
    if (path := cached(known)) is not None:
        return path
    target = cache_dir() / known
    writable(target.parent).mkdir(parents=True, exist_ok=True)
    sources: dict[str, Callable[[], Path]] = {
        f"gs://{_BUCKET}": lambda: _from_bucket(known, target, progress),
        "Kaggle": lambda: _from_kaggle(known),
        "Hugging Face": lambda: _from_hugging_face(known),
    }
    failures = []
    for title, fetch in sources.items():
        try:
            path = fetch()
        except _Unavailable as reason:
            failures.append(f"{title}: {reason}")
            continue
        if path != target:
            # The hubs keep their own caches, which other programs share: only a link to them is kept here.
            target.unlink(missing_ok=True)
            target.symlink_to(path, target_is_directory=True)
        return path
    raise CheckpointError(f"{known} is not in {cache_dir()} and cannot be downloaded. {'; '.join(failures)}")


def _known(name: str) -> str | None:
    """The released model that `name` names, also by its Hugging Face name ("google/gemma-3-4b-it")."""
    name = re.sub(r"^(google/)?gemma-?3-", "gemma3-", name.lower())
    return name if name in NAMES else None


def _hub_page(name: str) -> str:
    return f"https://huggingface.co/google/{name.replace('gemma3', 'gemma-3')}"


# Google Cloud Storage: plain HTTP, because TensorStore would hold each file in memory as a whole.


def _from_bucket(name: str, target: Path, progress: Progress | bool) -> Path:
    prefix = f"checkpoints/{name}/"
    objects = _list_bucket(prefix)
    if not objects:
        raise _Unavailable(f"holds no {prefix}")
    objects += _list_bucket(_TOKENIZER)
    part = target.with_name(f"{target.name}.part")
    with reporter(progress, sum(int(item["size"]) for item in objects), f"Downloading {name}") as report:
        for item in objects:
            key = item["name"]
            relative = key.removeprefix(prefix) if key.startswith(prefix) else "tokenizer.model"
            if relative and not relative.endswith("/"):
                _fetch(item, _inside(part, relative), report)
    os.rename(part, target)
    return target


def _inside(directory: Path, relative: str) -> Path:
    path = directory / relative
    if not path.resolve().is_relative_to(directory.resolve()):
        raise _Unavailable(f"lists a file outside its folder: {relative}")
    return path


def _bucket_url(path: str = "", **query: str) -> str:
    host = os.environ.get("TENSORSTORE_GCS_HTTP_URL") or "https://storage.googleapis.com"
    return f"{host}/storage/v1/b/{_BUCKET}/o{path}?{urllib.parse.urlencode(query)}"


def _list_bucket(prefix: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    token = ""
    while True:
        with _open(_bucket_url(prefix=prefix, pageToken=token) if token else _bucket_url(prefix=prefix)) as response:
            page = json.load(response)
        items += page.get("items", [])
        if not (token := page.get("nextPageToken", "")):
            return items


def _open(url: str, start: int = 0):
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        raise _Unavailable(f"answered {error.code} {error.reason}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise _Unavailable(f"cannot be reached ({reason}): is there a network?") from error


def _fetch(item: dict[str, Any], path: Path, report: Callable[[int], None]) -> None:
    """Downloads one object, going on where an earlier attempt stopped; it has its name only when it is whole."""
    size = int(item["size"])
    if path.exists() and path.stat().st_size == size:
        report(size)
        return
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.exists() else 0
    if start > size:
        part.unlink()
        start = 0
    report(start)
    if start < size or not size:
        url = _bucket_url("/" + urllib.parse.quote(item["name"], safe=""), alt="media")
        with _open(url, start) as response, open(part, "ab" if start else "wb") as file:
            try:
                while block := response.read(_BLOCK):
                    file.write(block)
                    report(len(block))
            except OSError as error:
                raise _Unavailable(f"the connection broke ({error}): run it again, it goes on from there") from error
    if part.stat().st_size != size:
        raise _Unavailable(f"{item['name']}: {part.stat().st_size} of {size} bytes came: run it again, it goes on")
    if expected := item.get("md5Hash"):
        with open(part, "rb") as file:
            digest = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
        if digest != expected:
            part.unlink()
            raise _Unavailable(f"{item['name']}: arrived damaged: run it again")
    os.rename(part, path)


# The hubs: their own clients, which resume, and keep the licence and the tokens.


def _from_kaggle(name: str) -> Path:
    if "270m" in name:
        raise _Unavailable("has no 270M")
    try:
        import kagglehub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _Unavailable("needs pip install 'gemma_tpu[hub]'") from None
    handle = f"google/gemma-3/flax/{name.removesuffix('-pt')}"
    page = "https://www.kaggle.com/models/google/gemma-3"
    if folder := hub_cache("kagglehub", "KAGGLEHUB_CACHE"):
        os.environ["KAGGLEHUB_CACHE"] = str(folder)
    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:
        raise _explain(error, page, "kagglehub.login(), or KAGGLE_USERNAME and KAGGLE_KEY") from error


def _from_hugging_face(name: str) -> Path:
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _Unavailable("needs pip install 'gemma_tpu[hub]'") from None
    page = _hub_page(name)
    patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
    folder = hub_cache("huggingface", "HF_HOME", "HF_HUB_CACHE")
    try:
        repository = page.removeprefix("https://huggingface.co/")
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns, cache_dir=folder))
    except Exception as error:
        raise _explain(error, page, "hf auth login, or HF_TOKEN") from error


def _explain(error: Exception, page: str, login: str) -> _Unavailable:
    """What a user can do about an error of a hub's client; by status code, as the clients' exceptions come and go."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__
    if status in (401, 403) or any(part in name for part in ("Gated", "Credential", "Unauthenticated")):
        return _Unavailable(f"accept the licence at {page}, then say who you are with {login}")
    if status == 404:
        return _Unavailable(f"does not have it, or does not show it to you: see {page}; to log in: {login}")
    if isinstance(error, ConnectionError) or any(part in name for part in ("Connect", "LocalEntry", "Offline")):
        return _Unavailable("cannot be reached: is there a network?")
    if isinstance(error, OSError) and error.errno == 28:
        return _Unavailable(f"no space left on the disk ({shutil.disk_usage(Path.home()).free / 1e9:.1f} GB free)")
    lines = str(error).strip().splitlines() or [""]
    return _Unavailable(f"{name}: {lines[0]}")
