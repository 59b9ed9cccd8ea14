"""Downloads models with the hubs' own clients, which handle resuming, licences and tokens."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gemma_tpu.checkpoint import checksums
from gemma_tpu.checkpoint.gguf_file import SUFFIX
from gemma_tpu.checkpoint.hub_errors import Unavailable, explain, retry_while_busy

HUGGING_FACE, KAGGLE = "https://huggingface.co", "https://www.kaggle.com/models"
_NO_CLIENT = "needs pip install 'gemma_tpu[hub]'"
_TEXT_ASSETS = (".json", ".jinja", "tokenizer.model")
_ORBAX = ("_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
_UNSUPPORTED = (".bin", ".gguf", ".pth", ".h5", ".task", ".litertlm", ".onnx", ".npz", ".ckpt", ".msgpack", ".sbs")


def from_hugging_face(repo: str, revision: str | None, cache: Path | None) -> Path:
    """Downloads one copy of the weights of `repo` ("owner/name") and their text assets, and returns the directory.

    Stores them in Hugging Face's own cache, or in `cache`; without a network, uses what is there. Reads $HF_ENDPOINT
    at the call, unlike the client, which reads it at import.
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
            # The only request that the client does not retry itself.
            info = retry_while_busy(lambda: api.model_info(repo, revision=revision), "Hugging Face")
        except Exception as error:
            if (path := _cached_snapshot(repo, options)) is not None:
                return path
            raise error
        files = select_files([file.rfilename for file in info.siblings or ()])
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=list(map(glob.escape, files)), **options))
    except Unavailable:
        raise
    except Exception as error:
        raise explain(error, f"{HUGGING_FACE}/{repo}", "hf auth login, or HF_TOKEN") from error


def _cached_snapshot(repo: str, options: dict[str, Any]) -> Path | None:
    """The repository in Hugging Face's cache, which other programs fill too, or None."""
    import huggingface_hub

    try:
        path = huggingface_hub.snapshot_download(repo, allow_patterns="*.safetensors", local_files_only=True, **options)
    except huggingface_hub.errors.LocalEntryNotFoundError:
        return None
    return Path(path)


def select_files(files: Sequence[str]) -> list[str]:
    """The files of a repository that `load` needs: safetensors or Orbax files and text assets, or its GGUF model.

    Skips weights in subfolders (adapters, trainer states) and a "consolidated" second copy of sharded weights. Raises
    `Unavailable` if there are no weights in a supported format.
    """
    top = [name for name in files if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    weights = [name for name in weights if not name.startswith("consolidated")] or weights
    if not weights:
        roots = tuple(name.removesuffix(mark) for name in files for mark in _ORBAX if name.endswith(mark))
        weights = [name for name in files if roots and name.startswith(roots)]
    if not weights and (model := _gguf_model([name for name in top if name.endswith(SUFFIX)])):
        return model  # which has the texts in itself
    if not weights:
        other = sorted({ext for name in files for ext in _UNSUPPORTED if name.endswith(ext)})
        holds = f"has weights as {', '.join(other)} only" if other else f"holds {', '.join(files[:5]) or 'nothing'}"
        raise Unavailable(
            f"{holds}: what can be fetched is an Orbax checkpoint, or *.safetensors or *.gguf in no folder; take the "
            "repository that has one"
        )
    return sorted({*weights, *(name for name in top if name.endswith(_TEXT_ASSETS))})


def _gguf_model(files: Sequence[str]) -> list[str]:
    """The model among a repository's GGUF files, all its shards, with a vision tower; nothing if there is none."""
    towers = [name for name in files if "mmproj" in name.lower()]  # so llama.cpp looks for them, too
    shards = [name for name in files if name not in towers]
    models = sorted({_SHARD.sub("", name) for name in shards})
    if len(models) > 1:
        raise Unavailable(
            f"holds {len(models)} GGUF models ({', '.join(models[:3])}, …): fetch one, and the mmproj file for images, "
            "into a directory (hf download OWNER/NAME FILE FILE --local-dir DIRECTORY) and give that"
        )
    if models and importlib.util.find_spec("gguf") is None:
        raise Unavailable("holds a GGUF model, which needs pip install 'gemma_tpu[gguf]'")
    exact = [name for width in ("bf16", "f16", "f32", "") for name in towers if width in name.lower()]
    return sorted([*shards, *exact[:1]]) if models else []


def from_kaggle(handle: str, cache: Path | None) -> Path:
    """Downloads a model by its handle, "owner/model/framework/variation[/version]", and returns the directory.

    Kaggle's client verifies the archive. Adds checksums of the unpacked files if the directory is writable, which it
    is not in Kaggle's notebooks.
    """
    try:
        import kagglehub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Unavailable(_NO_CLIENT) from None
    owner, model, *_ = handle.split("/")
    try:
        with _kaggle_cache(cache):
            path = Path(retry_while_busy(lambda: kagglehub.model_download(handle), "Kaggle"))
    except Exception as error:
        login = "kagglehub.login(), or KAGGLE_USERNAME and KAGGLE_KEY"
        raise explain(error, f"{KAGGLE}/{owner}/{model}", login) from error
    if not (path / checksums.NAME).exists() and os.access(path, os.W_OK):
        checksums.write(path)
    return path


@contextlib.contextmanager
def _kaggle_cache(cache: Path | None) -> Iterator[None]:
    """Sets kagglehub's cache directory by the environment, its only setting for that."""
    name = "KAGGLEHUB_CACHE"
    if cache is None or name in os.environ:
        yield
        return
    os.environ[name] = str(cache)
    try:
        yield
    finally:
        del os.environ[name]
