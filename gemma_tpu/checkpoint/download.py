"""Resolves and downloads checkpoints by name: local cache, Google Cloud Storage, Kaggle, Hugging Face."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from gemma_tpu.checkpoint import bucket, checksums, hubs, shipped, storage
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.hub_errors import Unavailable
from gemma_tpu.checkpoint.model_names import KaggleModel, Name, Released, Repository, parse, refuse_unknown, suggestion
from gemma_tpu.checkpoint.progress import Progress
from gemma_tpu.checks import as_path
from gemma_tpu.environment import cache_dir, hub_cache, writable

_Sources = dict[str, Callable[[], Path]]


def resolve(name_or_path: str | os.PathLike[str], *, progress: Progress | bool = True) -> str:
    """Resolves a path, gs:// URL or model name to a path, downloading the model if needed.

    A name is "gemma3-demo" (bundled with this package), a released model ("gemma3-4b-it"), a Hugging Face repository
    ("google/medgemma-4b-it", "unsloth/gemma-3-4b-it@main"), a Kaggle model ("google/gemma-3/flax/gemma3-4b-it"), or
    the URL of either hub's page. An existing path takes precedence, then the cache, then the sources of `download`.

    Raises `CheckpointError` if the path does not exist, or the name is unknown or cannot be downloaded.
    """
    text = as_path("a checkpoint", name_or_path)
    if text.startswith("gs://") or os.path.exists(os.path.expanduser(text)):
        return storage.normalise(text)
    if text == shipped.NAME:
        return str(shipped.shipped())
    name = parse(text)
    if name is None:
        refuse_unknown(text)
    if isinstance(name, Repository) and os.path.isdir(text.split("/")[0]):
        # Probably a mistyped local path, which a hub should not see.
        raise CheckpointError(
            f"{text}: no such file or directory in {text.split('/')[0]}/; if a repository of Hugging Face is meant, "
            f"give its address, {hubs.HUGGING_FACE}/{text}"
        )
    return str(cached(name) or _download(name, text, progress))


def cached(name: Name) -> Path | None:
    """The directory of a completely downloaded model in the cache, or None."""
    path = cache_dir() / name.key
    return path.resolve() if path.exists() else None


def download(text: str, *, progress: Progress | bool = True) -> Path:
    """Downloads a model by name (see `resolve`) into the cache and returns its directory.

    Resumes interrupted downloads and refetches files that no longer match their checksums. A released model comes from
    the cache, gs://gemma-data, Kaggle or Hugging Face, in this order; a Hugging Face repository is checked for updates.

    Raises `CheckpointError` that says why each source failed and what to do.
    """
    text = as_path("the name of a model", text)
    if text == shipped.NAME:
        return shipped.shipped()
    name = parse(text)
    if name is None and os.path.exists(os.path.expanduser(text)):
        raise CheckpointError(f"{text}: is here already, and no name of what could be downloaded: give it as it is")
    if name is None:
        refuse_unknown(text)
    intact = _remove_changed(name)
    if isinstance(name, Released) and intact is not None:
        return intact
    return _download(name, text, progress)


def _remove_changed(name: Name) -> Path | None:
    """The model's directory in the cache if it is intact; else removes changed files, to be downloaded again."""
    if (path := cached(name)) is None:
        return None
    if not (changed := checksums.changed_files(checksums.known_files(str(path)))):
        return path
    entry = cache_dir() / name.key
    if not entry.is_symlink():
        for file in changed:
            Path(file.path).unlink(missing_ok=True)
        os.rename(entry, bucket.partial_path(entry))
    elif (path / checksums.NAME).exists():  # Kaggle's client downloads all files or none
        shutil.rmtree(path)
    else:  # Hugging Face's client downloads missing files; they link to blobs, which may be links themselves
        for file in changed:
            blob = os.path.join(os.path.dirname(file.path), os.readlink(file.path))
            for target in (os.path.realpath(blob), blob):
                Path(target).unlink(missing_ok=True)
    return None


def _download(name: Name, text: str, progress: Progress | bool) -> Path:
    target = cache_dir() / name.key
    writable(target.parent).mkdir(parents=True, exist_ok=True)
    failures = []
    for title, fetch in _sources(name, target, progress).items():
        try:
            path = fetch()
        except Unavailable as reason:
            failures.append(f"{title}: {reason}")
            continue
        if path != target:
            # The hubs' clients have their own caches, shared with other programs: link to them.
            link = target.with_name(f"{target.name}.link-{os.getpid()}")
            link.symlink_to(path, target_is_directory=True)
            os.replace(link, target)
        return path
    if isinstance(name, Repository) and "://" not in text:
        reason = failures[0].removeprefix("Hugging Face: ")
        raise CheckpointError(f"{text}: no such file or directory here, and Hugging Face {reason}{suggestion(text)}")
    raise CheckpointError(f"{text} is not in {cache_dir()} and cannot be downloaded. {'; '.join(failures)}")


def _sources(name: Name, target: Path, progress: Progress | bool) -> _Sources:
    hugging_face = hub_cache("huggingface", "HF_HOME", "HF_HUB_CACHE")
    kaggle = hub_cache("kaggle", "KAGGLEHUB_CACHE")
    if isinstance(name, KaggleModel):
        return {"Kaggle": lambda: hubs.from_kaggle(name.handle, kaggle)}
    if isinstance(name, Repository):
        return {"Hugging Face": lambda: hubs.from_hugging_face(name.repo, name.revision, hugging_face)}
    return {
        bucket.TITLE: lambda: bucket.fetch(name.name, target, progress),
        "Kaggle": lambda: hubs.from_kaggle(f"google/gemma-3/flax/{_variation(name.name)}", kaggle),
        "Hugging Face": lambda: hubs.from_hugging_face(name.repo, None, hugging_face),
    }


def _variation(name: str) -> str:
    """Kaggle's name of a released model; of the 270M, it is that of Hugging Face."""
    return name.removesuffix("-pt").replace("gemma3", "gemma-3" if "270m" in name else "gemma3")
