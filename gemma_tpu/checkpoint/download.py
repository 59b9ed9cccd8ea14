"""Finding checkpoints by name: in the local cache, at Google Cloud Storage, on Kaggle, on Hugging Face."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from gemma_tpu.checkpoint import bucket, checksums, hubs, shipped, storage
from gemma_tpu.checkpoint.availability import Unavailable
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.model_names import KaggleModel, Name, Released, Repository, parse, raise_unknown, suggestion
from gemma_tpu.checkpoint.progress import Progress
from gemma_tpu.checks import as_path
from gemma_tpu.environment import cache_dir, hub_cache, writable

_Sources = dict[str, Callable[[], Path]]


def resolve(name_or_path: str | os.PathLike[str], *, progress: Progress | bool = True) -> str:
    """The checkpoint that is meant: a path or gs:// URL as it is, a name looked up or downloaded.

    A name is "gemma3-demo", which comes with this package, that of a released model ("gemma3-4b-it"), a repository of
    Hugging Face ("google/medgemma-4b-it", "unsloth/gemma-3-4b-it@main"), a model of Kaggle
    ("google/gemma-3/flax/gemma3-4b-it"), or the address of either hub's page. An existing path comes first, then the
    cache, then the sources of `download`. Raises `CheckpointError` for a path that does not exist and a name that is
    not known or cannot be had.
    """
    text = as_path("a checkpoint", name_or_path)
    if text.startswith("gs://") or os.path.exists(os.path.expanduser(text)):
        return storage.normalise(text)
    if text == shipped.NAME:
        return str(shipped.shipped())
    name = parse(text)
    if name is None:
        raise_unknown(text)
    if isinstance(name, Repository) and os.path.isdir(text.split("/")[0]):
        # A name of one's own directories is not for a hub to read.
        raise CheckpointError(
            f"{text}: no such file or directory in {text.split('/')[0]}/; if a repository of Hugging Face is meant, "
            f"give its address, {hubs.HUGGING_FACE}/{text}"
        )
    return str(cached(name) or _download(name, text, progress))


def cached(name: Name) -> Path | None:
    """Where a model lies in the cache, if it was downloaded whole."""
    path = cache_dir() / name.key
    return path.resolve() if path.exists() else None


def download(text: str, *, progress: Progress | bool = True) -> Path:
    """Downloads a model by name (see `resolve`) into the cache and returns its directory.

    What an earlier attempt fetched is kept, unless it is not any more what was fetched. A released model is tried at
    gs://gemma-data, then on Kaggle, then on Hugging Face, and taken from the cache once it is there; a repository of
    Hugging Face is asked again for what has changed. Raises `CheckpointError` that says of each source why it failed
    and what to do.
    """
    text = as_path("the name of a model", text)
    if text == shipped.NAME:
        return shipped.shipped()
    name = parse(text)
    if name is None and os.path.exists(os.path.expanduser(text)):
        raise CheckpointError(f"{text}: is here already, and no name of what could be downloaded: give it as it is")
    if name is None:
        raise_unknown(text)
    whole = _remove_changed(name)
    if isinstance(name, Released) and whole is not None:
        return whole
    return _download(name, text, progress)


def _remove_changed(name: Name) -> Path | None:
    """Where a model lies in the cache, if it is whole. What is not as it was downloaded is removed, to come again."""
    if (path := cached(name)) is None:
        return None
    if not (changed := checksums.changed(checksums.listed(str(path)))):
        return path
    place = cache_dir() / name.key
    if not place.is_symlink():
        for file in changed:
            Path(file.path).unlink(missing_ok=True)
        os.rename(place, bucket.unfinished(place))
    elif (path / checksums.NAME).exists():  # Kaggle's client fetches all of it or nothing
        shutil.rmtree(path)
    else:  # Hugging Face's fetches what is not there; its links lead to a blob, which may be a link itself
        for file in changed:
            blob = os.path.join(os.path.dirname(file.path), os.readlink(file.path))
            for found in (os.path.realpath(blob), blob):
                Path(found).unlink(missing_ok=True)
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
            # The hubs keep their own caches, which other programs share: only a link to them is kept here.
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
        "Kaggle": lambda: _released_at_kaggle(name.name, kaggle),
        "Hugging Face": lambda: hubs.from_hugging_face(name.repo, None, hugging_face),
    }


def _released_at_kaggle(name: str, cache: Path | None) -> Path:
    variation = name.removesuffix("-pt")
    if "270m" in name:  # the only one spelled as at Hugging Face
        variation = variation.replace("gemma3", "gemma-3")
    return hubs.from_kaggle(f"google/gemma-3/flax/{variation}", cache)
