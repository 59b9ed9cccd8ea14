"""From the directory that a user names to the one that holds the arrays.

What is named may be above it: a training run with its steps, a download in Hugging Face's cache (refs/, snapshots/) or
in Kaggle's (a folder for each version, with the checkpoint in a folder of its own).
"""

from __future__ import annotations

import re

from gemma_tpu.checkpoint import hf, orbax, storage
from gemma_tpu.checkpoint.errors import CheckpointError

# Names of an Orbax step's items, the likeliest to hold a model first.
_ITEMS = ("params", "default", "model_params", "state", "item", "items", "model")
_STEP = re.compile(r"(?:\w+[-_])?(\d+)")
_DEPTH = 3


def holds_arrays(names: set[str]) -> bool:
    """Whether a directory with these entries is itself a checkpoint."""
    return hf.is_hf(names) or orbax.holds_arrays(names)


def locate(path: str, names: set[str]) -> str | None:
    """The directory at or below `path` that holds arrays: of steps or versions the newest; None if there is none.

    `names`: the entries of `path`. `CheckpointError` if there are several and nothing says which is meant.
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
    """The revision that refs/main names, or the only one that is there (huggingface_hub: "Understand caching")."""
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
