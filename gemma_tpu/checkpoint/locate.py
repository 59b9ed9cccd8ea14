"""Finds the directory that holds the arrays, at or below the path that a user gives.

That path may be a training run with its steps, a download in Hugging Face's cache (refs/, snapshots/) or in Kaggle's
(a folder for each version, with the checkpoint in a subfolder).
"""

from __future__ import annotations

import re

from gemma_tpu.checkpoint import hf, orbax, storage
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.gguf_file import gguf_names_in

# Names of items in an Orbax step, by preference.
_ITEMS = ("params", "default", "model_params", "state", "item", "items", "model")
_STEP = re.compile(r"(?:\w+[-_])?(\d+)")
_DEPTH = 3


def holds_arrays(names: set[str]) -> bool:
    """Whether a directory with these entries is itself a checkpoint."""
    return hf.is_hf(names) or orbax.holds_arrays(names) or bool(gguf_names_in(names))


def locate(path: str, names: set[str]) -> str | None:
    """The directory at or below `path` that holds arrays, of the newest step or version; None if there is none.

    `names`: the entries of `path`. Raises `CheckpointError` if it is ambiguous.
    """
    return _locate(path, names, _DEPTH)


def _locate(path: str, names: set[str], depth: int) -> str | None:
    if holds_arrays(names):
        return path
    if "snapshots" in names:
        path = _snapshot(path)
        return _locate(path, storage.entries(path), depth - 1) or path
    if len(hubs := sorted(name for name in names if name.startswith("models--"))) == 1:
        child = storage.join(path, hubs[0])
        return _locate(child, storage.entries(child), depth - 1)
    if hubs:
        raise CheckpointError(f"{path}: a cache of several models, say which: {', '.join(hubs)}")
    names = {name for name in names if orbax.TEMPORARY not in name and not name.endswith(".part")}
    if not depth or not names:
        return None
    steps = {int(match[1]): name for name in names if (match := _STEP.fullmatch(name))}
    for _, name in sorted(steps.items(), reverse=True):
        child = storage.join(path, name)
        if found := _locate(child, storage.entries(child), depth - 1):
            return found
    for name in _ITEMS:
        child = storage.join(path, name)
        if name in names and (found := _locate(child, storage.entries(child), depth - 1)):
            return found
    children = [storage.join(path, name) for name in sorted(names)]
    found = [child for child in children if holds_arrays(storage.entries(child))]
    if len(found) > 1:
        raise CheckpointError(f"{path}: holds several checkpoints, say which: {', '.join(found)}")
    return found[0] if found else None


def _snapshot(path: str) -> str:
    """The revision in refs/main, or else the only one (huggingface_hub: "Understand caching")."""
    folder, ref = storage.join(path, "snapshots"), storage.join(path, "refs", "main")
    revisions = sorted(storage.entries(folder))
    main = storage.read_text(ref).strip() if storage.is_file(ref) else None
    if main in revisions:
        return storage.join(folder, main)
    if len(revisions) == 1 and main is None:
        return storage.join(folder, revisions[0])
    if not revisions or main is not None:
        raise CheckpointError(f"{path}: a Hugging Face download that never finished: run it again")
    raise CheckpointError(f"{path}: holds several revisions, say which: snapshots/{', snapshots/'.join(revisions)}")
