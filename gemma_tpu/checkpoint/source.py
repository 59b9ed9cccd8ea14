"""Opening a checkpoint: what it is, its architecture, and its parameters as lazy arrays under canonical names."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from gemma_tpu.checkpoint import (
    added_tokens,
    checksums,
    config_io,
    flax_lora,
    foreign,
    hf,
    hf_names,
    names,
    orbax,
    peft,
    redundant,
    storage,
    trees,
    tunix_names,
)
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.locate import locate
from gemma_tpu.checkpoint.settle import GOOGLE, HUGGING_FACE, check, settle
from gemma_tpu.checkpoint.staging import PARTIAL
from gemma_tpu.checks import check_flag, check_number
from gemma_tpu.config import GemmaConfig, VisionConfig, as_config

# In the path of what a conversion or a download is still writing, or never finished.
_PARTIAL = re.compile(rf"\.part(/|$)|{re.escape(PARTIAL)}\w+(/|$)")
_TOKENIZERS = ("tokenizer.model", "tokenizer_gemma3.model", "tokenizer.json")
_GOOGLE_BUCKET = "gs://gemma-data"
_LOOKED_AT = 32  # files of a directory that is no checkpoint, to say what they are


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose names and shapes have been found to fit `config`. Nothing of its data has been read yet.

    `kind`: "orbax-nested", "orbax-flat", "orbax-stacked", "orbax-trainer", "tunix", "maxtext", "safetensors" or
    "memory".
    `path`: where the arrays are, which may be below the path that was asked for.
    `arrays`: canonical name (`gemma_tpu.checkpoint.names`) → lazy array.
    `config_json`: the text of the config.json that came with it; None where it is of a model with, or without, a vision
    tower that the parameters lack, or have.
    `tokenizer_path`: a SentencePiece model or a tokenizer.json, local or at gs:// (`storage.read_file` reads either).
    `directories`: where files beside the arrays may lie, nearest first.
    `unchecked`: files that are to be compared with their checksums while the arrays are read (`load_params`).
    """

    path: str
    kind: str
    config: GemmaConfig
    arrays: Mapping[str, LazyArray]
    config_json: str | None
    tokenizer_path: str | None
    directories: tuple[str, ...]
    unchecked: tuple[checksums.Listed, ...] = ()

    @property
    def nbytes(self) -> int:
        """Size of the parameters as they are stored, in bytes."""
        return sum(array.nbytes for array in self.arrays.values())


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    config: GemmaConfig | str | None = None,
    text_only: bool = False,
    verify: bool = False,
) -> Checkpoint:
    """Opens an Orbax or Hugging Face checkpoint, local or at gs://, in any layout in which Gemma 3 exists.

    `path` may also be above it: a training run's directory, whose newest step is taken, or a folder of Hugging Face's
    or Kaggle's cache. The architecture is `config`, else that of a config.json beside the arrays, else inferred from
    the shapes of the five sizes; `config` may be the name of one. With `text_only`, vision parameters are left
    aside and the config has no vision.

    Where config and parameters disagree about an output head or a vision tower, what is stored is taken, and a
    `CheckpointWarning` says so. An output head is read here only to see whether it repeats the embedding table.

    With `verify`, files whose checksums are known (`checksums`) are compared with them: what lies beside the weights
    here, before it is read, the weights while `load_params` or `convert` reads them.

    Raises `CheckpointError` if there is no checkpoint, if it is of another model, if it is damaged, and if parameters
    are missing, unexpected or wrongly shaped.
    """
    config, path = as_config(config), storage.normalise(path)
    check_flag("text_only", text_only)
    if _PARTIAL.search(path):
        raise CheckpointError(f"{path}: left behind by a conversion or a download that was stopped; run that again")
    if storage.is_file(path):
        with _verified(path, (storage.parent(path),), verify) as unchecked:
            opened = _open_hf(path, path, config, text_only)
        return dataclasses.replace(opened, unchecked=unchecked)
    found = storage.entries(path)
    if not found and not os.path.isdir(path):
        access = ", or you have no access to it" if storage.is_remote(path) else ""
        raise CheckpointError(f"{path}: no such file or directory{access}")
    # An adapter of peft has weights in a format that is read here, or in PyTorch's.
    located = path if peft.is_adapter(found) else locate(path, found)
    if located is None:
        raise _no_checkpoint(path, found)
    entries = storage.entries(located)
    if peft.is_adapter(entries):
        if not hf.holds_model(entries):
            peft.refuse_alone(located)
        warnings.warn(
            f"{located}: a LoRA adapter lies beside the weights, and is not merged into them: load them with "
            f"adapter={located!r} (--adapter) for that",
            CheckpointWarning,
            stacklevel=2,
        )
    with _verified(located, storage.upward(located, path), verify) as unchecked:
        opened = (_open_hf if hf.is_hf(entries) else _open_orbax)(located, path, config, text_only)
    return dataclasses.replace(opened, unchecked=unchecked)


@contextlib.contextmanager
def _verified(located: str, directories: tuple[str, ...], verify: bool) -> Iterator[tuple[checksums.Listed, ...]]:
    """Compares the small files in `directories` with their checksums; yields those of `located` that are yet to be."""
    files = [file for directory in directories for file in checksums.listed(directory)] if verify else []
    beside = [f for f in files if storage.parent(f.path) in directories and not f.path.endswith(".safetensors")]
    weights = [f for f in files if f not in beside and f"{f.path}/".startswith(f"{located}/")]
    checksums.compare(beside)
    try:
        yield tuple(weights)
    except CheckpointError:
        checksums.compare(weights)  # that one of them changed would be why
        raise


def _no_checkpoint(path: str, found: set[str]) -> CheckpointError:
    said = f"{path}: no checkpoint: neither Orbax files nor *.safetensors"
    if lost := checksums.missing(path):
        return CheckpointError(f"{said}; {checksums.NAME} there lists {lost}, missing: download or convert it again")
    for name in sorted(found)[:_LOOKED_AT]:
        file = storage.join(path, name)
        head = storage.read_head(file) if storage.is_file(file) else b""
        # Of a .json file by its name alone, all there is to say is that its directory is what is to be given.
        if head and (what := foreign.recognise(head, "" if name.endswith(".json") else name)):
            return CheckpointError(f"{said}; {name} is {what}")
    return CheckpointError(f"{said}; it has {', '.join(sorted(found)[:5]) or 'nothing'}")


def _open_hf(located: str, asked: str, config: GemmaConfig | None, text_only: bool) -> Checkpoint:
    """`located`: a directory, or one file."""
    given = config
    if storage.is_file(located):
        directories, arrays = (storage.parent(located),), hf.read_file(located)
    else:
        directories, arrays = storage.upward(located, asked), hf.read_directory(located)
    config, config_json = _read_config(directories, config)
    cores, stored, buffers = hf_names.cores(arrays, located)
    config_io.refuse_others(_shapes(cores), located)
    read = config or config_io.infer_from_cores(_shapes(cores), located)
    config = settle(cores, HUGGING_FACE, read, located, given=bool(given), text_only=text_only)
    redundant.check_buffers(buffers, config, located)
    check(cores, HUGGING_FACE, config, located, lambda name: _stored_name(name, stored))
    canonical = hf_names.canonical_from_cores(cores, config)
    return _checkpoint(located, "safetensors", config, canonical, _kept(config_json, read, config), directories)


def _stored_name(core: str, stored: Mapping[str, str]) -> str:
    """What a file would call `core`: with the prefix that it gives the other parameters of that part."""
    if core in stored:
        return stored[core]

    def part(name: str) -> str:
        return name.split(".")[0] if name.startswith(("vision.", "projector.")) else ""

    for other, name in stored.items():
        tail = other.removeprefix(f"{part(other)}.")
        if part(other) == part(core) and name.endswith(tail):
            return name.removesuffix(tail) + core.removeprefix(f"{part(core)}.")
    return core


def _open_orbax(located: str, asked: str, config: GemmaConfig | None, text_only: bool) -> Checkpoint:
    given, directories = config, storage.upward(located, asked)
    config, config_json = _read_config(directories, config)
    listed = orbax.list_arrays(located)
    tree = trees.find(listed.specs)
    if tree is None:
        some = ", ".join(sorted(listed.specs)[:3]) or "no arrays"
        raise CheckpointError(f"{located}: no Gemma 3 parameters by names that are known here; it holds {some} …")
    opened = orbax.open_arrays(listed, list(tree.stored.values()))
    if tree.kind == "adapter":
        raise CheckpointError(f"{located}: {trees.describe_adapter(tree, opened)}")
    alpha = flax_lora.stored_alpha(directories) if flax_lora.needs_alpha(tree.stored) else None
    canonical = trees.canonical(tree, opened, located, alpha)
    config_io.refuse_others(_shapes(canonical), located)
    read = config or config_io.infer_from_canonical(_shapes(canonical), located)
    config, canonical = _fitted(canonical, read, located, given=bool(given), text_only=text_only)
    return _checkpoint(located, tree.kind, config, canonical, _kept(config_json, read, config), directories)


def open_tree(
    tree: Any, *, config: GemmaConfig | str | None = None, text_only: bool = False, lora_alpha: float | None = None
) -> Checkpoint:
    """As `open_checkpoint`, of a pytree of arrays in memory: in the names of any Orbax layout."""
    where, config = "parameters", as_config(config)
    check_flag("text_only", text_only)
    if lora_alpha is not None:
        check_number("lora_alpha", lora_alpha, 0, low_open=True)
    arrays = trees.in_memory(tree, where)
    found = trees.find(arrays)
    if found is None or found.kind == "adapter":
        some = ", ".join(sorted(arrays)[:3]) or "no arrays"
        raise CheckpointError(
            f"{where}: not named as in an Orbax checkpoint of Gemma 3; the tree holds {some} … (files, a checkpoint of "
            "Hugging Face too, are for load to read)"
        )
    canonical = trees.canonical(found, arrays, where, lora_alpha)
    read = config or config_io.infer_from_canonical(_shapes(canonical), where, in_memory=True)
    settled, canonical = _fitted(canonical, read, where, given=config is not None, text_only=text_only)
    return _checkpoint(where, "memory", settled, canonical, None, ())


def _fitted(
    canonical: names.Arrays, config: GemmaConfig, where: str, *, given: bool, text_only: bool
) -> tuple[GemmaConfig, names.Arrays]:
    """The config of the model that the arrays hold, and those of them that it wants, checked against it."""
    # Before the config is settled, which compares shapes: with the heads that a tower would have.
    canonical = tunix_names.split_heads(canonical, config.vision or VisionConfig())
    config = settle(canonical, GOOGLE, config, where, given=given, text_only=text_only)
    check(canonical, GOOGLE, config, where)
    return config, {name: canonical[name] for name in names.canonical_shapes(config)}


def _shapes(arrays: Mapping[str, LazyArray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _kept(config_json: str | None, read: GemmaConfig, settled: GemmaConfig) -> str | None:
    """A config.json, unless the parameters turned out to be of a model with, or without, a vision tower."""
    return config_json if (read.vision is None) == (settled.vision is None) else None


def _read_config(directories: tuple[str, ...], config: GemmaConfig | None) -> tuple[GemmaConfig | None, str | None]:
    if config is not None:
        return config, None
    for directory in directories:
        file = storage.join(directory, "config.json")
        if storage.is_file(file):
            text = storage.read_text(file)
            return added_tokens.with_their_rows(config_io.from_json(text, file), directories), text
    return None, None


def _checkpoint(
    path: str,
    kind: str,
    config: GemmaConfig,
    arrays: Mapping[str, LazyArray],
    config_json: str | None,
    directories: tuple[str, ...],
) -> Checkpoint:
    return Checkpoint(path, kind, config, arrays, config_json, _tokenizer(directories), directories)


def _tokenizer(directories: tuple[str, ...]) -> str | None:
    if not directories:
        return None
    # Kaggle's downloads have the tokenizer in the directory above the checkpoint, Google's bucket beside all of them.
    above = storage.parent(directories[-1])
    for directory in (*directories, above):
        if directory == f"{_GOOGLE_BUCKET}/checkpoints":
            return f"{_GOOGLE_BUCKET}/tokenizers/tokenizer_gemma3.model"
        for name in _TOKENIZERS:
            if storage.is_file(file := storage.join(directory, name)):
                if what := foreign.recognise(storage.read_head(file)):
                    raise CheckpointError(f"{file}: is {what}")
                return file
    return None
