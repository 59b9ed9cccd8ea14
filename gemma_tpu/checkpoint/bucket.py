"""Downloads released checkpoints from Google's public bucket by HTTP; TensorStore would hold whole files in memory."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma_tpu.checkpoint import checksums, disk, locks
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.hub_errors import Unavailable, explain, retry_while_busy
from gemma_tpu.checkpoint.progress import Progress, reporter

BUCKET = "gemma-data"
TITLE = f"gs://{BUCKET}"
_TOKENIZER = "tokenizers/tokenizer_gemma3.model"
_BLOCK = 8 << 20


def fetch(name: str, target: Path, progress: Progress | bool) -> Path:
    """Downloads a released checkpoint and its tokenizer to `target`, resuming an interrupted download.

    If several processes call this, one downloads and the others wait.
    """
    prefix = f"checkpoints/{name}/"
    objects = _list(prefix)
    if not objects:
        raise Unavailable(f"holds no {prefix}")
    files = {item["name"].removeprefix(prefix): item for item in objects}
    for item in _list(_TOKENIZER):
        files["tokenizer.model"] = item
    part = partial_path(target)
    with locks.hold(target.with_name(f"{target.name}.lock"), name):
        if not target.exists():
            _fetch_all(files, part, progress, f"Downloading {name}")
            checksums.write(part)
            disk.fsync_tree(part)
            os.rename(part, target)
            disk.fsync(target.parent)
    return target


def partial_path(target: Path) -> Path:
    """Where a download to `target` is kept until it is complete."""
    return target.with_name(f"{target.name}.part")


def _fetch_all(objects: dict[str, dict[str, Any]], part: Path, progress: Progress | bool, title: str) -> None:
    files = {_safe_join(part, name): item for name, item in objects.items() if name and not name.endswith("/")}
    total = sum(int(item["size"]) for item in files.values())
    missing = total - sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
    free = disk.free_bytes(part)
    disk.require_free(part, missing, str(part))
    with reporter(progress, total, title) as report:
        for path, item in files.items():
            try:
                _fetch(item, path, report)
            except OSError as error:
                if (write_error := disk.write_error(part, error, missing, free)) is None:
                    raise
                raise CheckpointError(f"{write_error}; run it again then, and it goes on from there") from error


def _safe_join(directory: Path, relative: str) -> Path:
    path = directory / relative
    if not path.resolve().is_relative_to(directory.resolve()):
        raise Unavailable(f"lists a file outside its folder: {relative}")
    return path


def _url(path: str = "", **query: str) -> str:
    host = os.environ.get("TENSORSTORE_GCS_HTTP_URL") or "https://storage.googleapis.com"
    return f"{host}/storage/v1/b/{BUCKET}/o{path}?{urllib.parse.urlencode(query)}"


def _list(prefix: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    token = ""
    while True:
        with _open(_url(prefix=prefix, pageToken=token) if token else _url(prefix=prefix)) as response:
            page = json.load(response)
        items += page.get("items", [])
        if not (token := page.get("nextPageToken", "")):
            return items


def _open(url: str, start: int = 0):
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        return retry_while_busy(lambda: urllib.request.urlopen(request, timeout=30), TITLE)
    except urllib.error.HTTPError as error:
        if error.code == 429 or error.code >= 500:
            raise explain(error, TITLE) from error
        raise Unavailable(f"answered {error.code} {error.reason}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Unavailable(f"cannot be reached ({reason}): is there a network?") from error


def _read(response: Any) -> bytes:
    try:
        return response.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"the connection broke ({error}): run it again, it goes on from there") from error


def _fetch(item: dict[str, Any], path: Path, report: Callable[[int], None]) -> None:
    """Downloads one object, resuming an earlier attempt, and renames it to `path` when complete."""
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
        url = _url("/" + urllib.parse.quote(item["name"], safe=""), alt="media")
        with _open(url, start) as response, open(part, "ab" if start else "wb") as file:
            while block := _read(response):
                file.write(block)
                report(len(block))
    if part.stat().st_size != size:
        raise Unavailable(f"{item['name']}: {part.stat().st_size} of {size} bytes came: run it again, it goes on")
    if expected := item.get("md5Hash"):
        with open(part, "rb") as file:
            digest = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
        if digest != expected:
            part.unlink()
            raise Unavailable(f"{item['name']}: arrived damaged: run it again")
    os.rename(part, path)
