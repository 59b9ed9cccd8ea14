"""Models from the hubs, by their own clients, which resume, and keep the licence and the tokens."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gemma_tpu.checkpoint import checksums
from gemma_tpu.checkpoint.availability import Unavailable, explain, patiently

HUGGING_FACE, KAGGLE = "https://huggingface.co", "https://www.kaggle.com/models"
_NO_CLIENT = "needs pip install 'gemma_tpu[hub]'"
_COMPANIONS = (".json", ".jinja", "tokenizer.model")
_ORBAX = ("_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA")
_FOREIGN = (".bin", ".gguf", ".pth", ".h5", ".task", ".litertlm", ".onnx", ".npz", ".ckpt", ".msgpack", ".sbs")


def from_hugging_face(repo: str, revision: str | None, cache: Path | None) -> Path:
    """The directory of `repo` ("owner/name"), with the weights and what belongs to them but no second copy of them.

    Hugging Face's own cache keeps it, or `cache`. Without a network, what is in there already. $HF_ENDPOINT is read
    now, not when the client was imported.
    """
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Unavailable(_NO_CLIENT) from None
    endpoint = os.environ.get("HF_ENDPOINT") or None
    options: dict[str, Any] = {"revision": revision, "endpoint": endpoint, "cache_dir": cache}
    api = huggingface_hub.HfApi(endpoint)
    try:
        try:
            # The one request that the client does not repeat by itself.
            info = patiently(lambda: api.model_info(repo, revision=revision), "Hugging Face")
        except Exception as error:
            if (path := _kept(repo, options)) is not None:
                return path
            raise error
        files = needed([file.rfilename for file in info.siblings or ()])
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=list(map(glob.escape, files)), **options))
    except Unavailable:
        raise
    except Exception as error:
        raise explain(error, f"{HUGGING_FACE}/{repo}", "hf auth login, or HF_TOKEN") from error


def _kept(repo: str, options: dict[str, Any]) -> Path | None:
    """What Hugging Face's cache has of a repository, if another program put it there."""
    import huggingface_hub

    try:
        kept = huggingface_hub.snapshot_download(repo, allow_patterns="*.safetensors", local_files_only=True, **options)
    except huggingface_hub.errors.LocalEntryNotFoundError:
        return None
    return Path(kept)


def needed(files: Sequence[str]) -> list[str]:
    """Which of a repository's files a model is loaded from: safetensors or Orbax files, and their companions.

    Weights in a folder of their own (an adapter, a trainer's state) and another copy in one file ("consolidated", as
    some publish beside the shards) are left out. `Unavailable` if there are no weights that can be read here.
    """
    top = [name for name in files if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    weights = [name for name in weights if not name.startswith("consolidated")] or weights
    if not weights:
        roots = tuple(name.removesuffix(mark) for name in files for mark in _ORBAX if name.endswith(mark))
        weights = [name for name in files if roots and name.startswith(roots)]
    if not weights:
        foreign = sorted({ext for name in files for ext in _FOREIGN if name.endswith(ext)})
        holds = f"has weights as {', '.join(foreign)} only" if foreign else f"holds {', '.join(files[:5]) or 'nothing'}"
        raise Unavailable(
            f"{holds}: what can be read is *.safetensors or an Orbax checkpoint; take the repository that has one"
        )
    return sorted({*weights, *(name for name in top if name.endswith(_COMPANIONS))})


def from_kaggle(handle: str, cache: Path | None) -> Path:
    """The directory of a model by its handle, "owner/model/framework/variation" and perhaps "/version".

    Kaggle's client compares the archive that it unpacks with its checksum; those of the files are put beside them,
    unless that is a place that cannot be written, as in a notebook there.
    """
    try:
        import kagglehub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Unavailable(_NO_CLIENT) from None
    owner, model, *_ = handle.split("/")
    try:
        with _kaggle_cache(cache):
            path = Path(patiently(lambda: kagglehub.model_download(handle), "Kaggle"))
    except Exception as error:
        login = "kagglehub.login(), or KAGGLE_USERNAME and KAGGLE_KEY"
        raise explain(error, f"{KAGGLE}/{owner}/{model}", login) from error
    if not (path / checksums.NAME).exists() and os.access(path, os.W_OK):
        checksums.write(path)
    return path


@contextlib.contextmanager
def _kaggle_cache(cache: Path | None) -> Iterator[None]:
    """Where kagglehub keeps what it downloads is said to it by the environment alone."""
    name = "KAGGLEHUB_CACHE"
    if cache is None or name in os.environ:
        yield
        return
    os.environ[name] = str(cache)
    try:
        yield
    finally:
        del os.environ[name]
