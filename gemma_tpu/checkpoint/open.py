"""Opens a checkpoint: detects its layout and config, and lists its parameters as lazy arrays by canonical name."""

from __future__ import annotations

import collections
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
    flax_quantized,
    gguf_file,
    gguf_model,
    gguf_names,
    hf,
    hf_names,
    names,
    orbax,
    peft,
    quantized_formats,
    slices,
    storage,
    trees,
    tunix_names,
    unsupported_formats,
)
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.gguf_text import EmbeddedText
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.locate import locate
from gemma_tpu.checkpoint.reconcile import GOOGLE, HUGGING_FACE, check_buffers, check_params, reconcile
from gemma_tpu.checkpoint.staging import PARTIAL
from gemma_tpu.checks import check_flag, check_number
from gemma_tpu.config import GemmaConfig, VisionConfig, as_config

# Matches paths of unfinished conversions and downloads.
_PARTIAL = re.compile(rf"\.part(/|$)|{re.escape(PARTIAL)}\w+(/|$)")
_TOKENIZERS = ("tokenizer.model", "tokenizer_gemma3.model", "tokenizer.json")
_WEIGHTS = (".safetensors", gguf_file.SUFFIX)
_GOOGLE_BUCKET = "gs://gemma-data"
_MAX_IDENTIFIED = 32  # files of a directory to identify when it is not a checkpoint


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint whose names and shapes fit `config`.

    `path`: the directory or file with the arrays, possibly below the path given to `open_checkpoint`.
    `kind`: "orbax-nested", "orbax-flat", "orbax-stacked", "orbax-trainer", "tunix", "maxtext", "safetensors",
    "gguf" or "memory".
    `arrays`: lazy arrays by canonical name (`gemma_tpu.checkpoint.names`).
    `config_json`: the text of its config.json, if that agrees with `config` about a vision tower.
    `tokenizer_path`: a SentencePiece model or a tokenizer.json, local or at gs:// (`storage.read_file` reads either).
    `directories`: where to look for other files, nearest first.
    `unverified`: files to verify while the arrays are read (`load_params`).
    `embedded`: tokenizer and chat template in a GGUF file, for want of files beside it.
    `quantization`: the format of quantised matrices, which are read as float32; None if there are none.
    """

    path: str
    kind: str
    config: GemmaConfig
    arrays: Mapping[str, LazyArray]
    config_json: str | None
    tokenizer_path: str | None
    directories: tuple[str, ...]
    unverified: tuple[checksums.KnownFile, ...] = ()
    embedded: EmbeddedText | None = None
    quantization: str | None = None

    @property
    def nbytes(self) -> int:
        """Size of the stored parameters in bytes."""
        # Reading what is in memory costs nothing.
        return sum(array.cost(slices.whole(array.shape)) or array.nbytes for array in self.arrays.values())

    @property
    def block_types(self) -> dict[str, int]:
        """How many tensors of a GGUF file are of each type, the most frequent first; empty for other kinds."""
        leaves = {leaf.name: leaf for array in self.arrays.values() for leaf in array.leaves()}
        types = (leaf.type for leaf in leaves.values() if isinstance(leaf, gguf_file.GgufArray))
        return dict(collections.Counter(types).most_common())


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    config: GemmaConfig | str | None = None,
    text_only: bool = False,
    verify: bool = False,
) -> Checkpoint:
    """Opens an Orbax, Hugging Face or GGUF checkpoint in any known layout of Gemma 3: local or, but for GGUF, at gs://.

    Reads no weights except an output head, to compare it with the embedding table. If config and parameters disagree
    about the output head or the vision tower, the parameters win and a `CheckpointWarning` says so.

    Args:
      path: a directory or file (of a GGUF model with its mmproj, the directory of both or the text model's file);
        also a training run, whose newest step is opened, or a folder of Hugging Face's or Kaggle's cache.
      config: the architecture, or the name of a released size; by default from config.json, or else inferred from the
        shapes, for the five released sizes.
      text_only: drops the vision tower.
      verify: checks files against their checksums, where known: the files beside the weights here, the weights while
        `load_params` or `convert` reads them.

    Raises `CheckpointError` if there is no checkpoint, it is damaged or of another model, or parameters are missing,
    unexpected or wrongly shaped.
    """
    config, path = as_config(config), storage.normalise(path)
    check_flag("text_only", text_only)
    if _PARTIAL.search(path):
        raise CheckpointError(f"{path}: left behind by a conversion or a download that was stopped; run that again")
    if storage.is_file(path):
        if gguf_file.is_gguf(path):
            return _open_gguf(path, storage.parent(path), config, text_only, verify)
        with _verified(path, (storage.parent(path),), verify) as unverified:
            opened = _open_hf(path, path, config, text_only)
        return dataclasses.replace(opened, unverified=unverified)
    top_entries = storage.entries(path)
    if not top_entries and not os.path.isdir(path):
        access = ", or you have no access to it" if storage.is_remote(path) else ""
        raise CheckpointError(f"{path}: no such file or directory{access}")
    # Checked first, since `locate` does not find an adapter in PyTorch's format.
    located = path if peft.is_adapter(top_entries) else locate(path, top_entries)
    if located is None:
        raise _no_checkpoint(path, top_entries)
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
    if files := gguf_file.gguf_names_in(entries):
        if not (hf.holds_model(entries) or orbax.holds_arrays(entries)):
            return _open_gguf(located, path, config, text_only, verify)
        listed = names.abbreviate(files, 5)
        message = f"{located}: read without {listed} there: give the path of such a file for that"
        warnings.warn(message, CheckpointWarning, stacklevel=2)
    with _verified(located, storage.ancestors(located, path), verify) as unverified:
        opened = (_open_hf if hf.is_hf(entries) else _open_orbax)(located, path, config, text_only)
    return dataclasses.replace(opened, unverified=unverified)


@contextlib.contextmanager
def _verified(located: str, directories: tuple[str, ...], verify: bool) -> Iterator[tuple[checksums.KnownFile, ...]]:
    """Verifies the small files in `directories`; yields the weight files of `located`, still to be verified."""
    files = [file for directory in directories for file in checksums.known_files(directory)] if verify else []
    small = [f for f in files if storage.parent(f.path) in directories and not f.path.endswith(_WEIGHTS)]
    weights = [f for f in files if f not in small and f"{f.path}/".startswith(f"{located}/")]
    checksums.verify(small)
    try:
        yield tuple(weights)
    except CheckpointError:
        checksums.verify(weights)  # a changed file is the likely cause
        raise


def _no_checkpoint(path: str, entries: set[str]) -> CheckpointError:
    message = f"{path}: no checkpoint: neither Orbax files nor *.gguf nor *.safetensors"
    if lost := checksums.missing_files(path):
        return CheckpointError(f"{message}; {checksums.NAME} there lists {lost}, missing: download or convert it again")
    for name in sorted(entries)[:_MAX_IDENTIFIED]:
        file = storage.join(path, name)
        head = storage.read_head(file) if storage.is_file(file) else b""
        # A .json file is identified by content only: its name merely says to give the directory.
        if head and (what := unsupported_formats.identify(head, "" if name.endswith(".json") else name)):
            return CheckpointError(f"{message}; {name} is {what}")
    return CheckpointError(f"{message}; it has {', '.join(sorted(entries)[:5]) or 'nothing'}")


def _open_hf(located: str, top: str, given: GemmaConfig | None, text_only: bool) -> Checkpoint:
    """`located`: a directory or one file. `top`: the path that the user gave. `given`: the config, if the user did."""
    if storage.is_file(located):
        directories, stored_arrays = (storage.parent(located),), hf.read_file(located)
    else:
        directories, stored_arrays = storage.ancestors(located, top), hf.read_directory(located)
    config, config_json = _read_config(directories, given)
    arrays, quantized = quantized_formats.dequantize(stored_arrays, directories, located, explicit=given is not None)
    cores, stored, buffers = hf_names.cores(arrays, located)
    config_io.refuse_others(names.shapes(cores), located)
    initial = config or config_io.infer(names.shapes(cores), located)
    config = reconcile(cores, HUGGING_FACE, initial, located, explicit=given is not None, text_only=text_only)
    check_buffers(buffers, config, located)
    check_params(cores, HUGGING_FACE, config, located, lambda name: _stored_name(name, stored))
    canonical = hf_names.canonical_from_cores(cores, config)
    checkpoint = Checkpoint(located, "safetensors", config, canonical, config_json, None, directories)
    return _with_files(dataclasses.replace(checkpoint, quantization=quantized), initial)


def _open_gguf(path: str, top: str, given: GemmaConfig | None, text_only: bool, verify: bool) -> Checkpoint:
    """`path`: the file of the text model or one of its shards, or a directory."""
    directories = storage.ancestors(storage.parent(path) if storage.is_file(path) else path, top)
    with _verified(directories[0], directories, verify) as unverified:
        model = gguf_model.open_model(path, given, text_only=text_only)
        arrays, explicit, source = dict(model.arrays), given is not None, " and ".join(model.files)
        config = reconcile(arrays, HUGGING_FACE, model.config, source, explicit=explicit, text_only=text_only)
        check_params(
            arrays, HUGGING_FACE, config, source, lambda core: model.stored.get(core) or gguf_names.stored_name(core)
        )
    canonical = hf_names.canonical_from_cores(arrays, config)
    tokenizer = _find_tokenizer(directories, above=False)
    unverified = tuple(file for file in unverified if file.path in model.files)
    return Checkpoint(path, "gguf", config, canonical, None, tokenizer, directories, unverified, model.text)


def _stored_name(core: str, stored: Mapping[str, str]) -> str:
    """The name of `core` in the files, with the prefix of other parameters of the same part."""
    if core in stored:
        return stored[core]

    def part(name: str) -> str:
        return name.split(".")[0] if name.startswith(("vision.", "projector.")) else ""

    for other, name in stored.items():
        tail = other.removeprefix(f"{part(other)}.")
        if part(other) == part(core) and name.endswith(tail):
            return name.removesuffix(tail) + core.removeprefix(f"{part(core)}.")
    return core


def _open_orbax(located: str, top: str, given: GemmaConfig | None, text_only: bool) -> Checkpoint:
    directories = storage.ancestors(located, top)
    config, config_json = _read_config(directories, given)
    specs = orbax.list_arrays(located)
    tree = trees.find(specs)
    if tree is None:
        examples = ", ".join(sorted(specs)[:3]) or "no arrays"
        raise CheckpointError(f"{located}: no Gemma 3 parameters by names that are known here; it holds {examples} …")
    arrays = orbax.open_arrays(located, {name: specs[name] for name in tree.stored.values()})
    if tree.kind == "adapter":
        raise CheckpointError(f"{located}: {trees.describe_adapter(tree, arrays)}")
    alpha = flax_lora.stored_alpha(tree.stored, directories)
    canonical = trees.canonical(tree, arrays, located, alpha)
    config_io.refuse_others(names.shapes(canonical), located)
    initial = config or config_io.infer(names.shapes(canonical), located)
    config, canonical = _reconcile_canonical(canonical, initial, located, given is not None, text_only)
    checkpoint = Checkpoint(located, tree.kind, config, canonical, config_json, None, directories)
    return _with_files(dataclasses.replace(checkpoint, quantization=flax_quantized.describe(canonical)), initial)


def open_tree(
    tree: Any, *, config: GemmaConfig | str | None = None, text_only: bool = False, lora_alpha: float | None = None
) -> Checkpoint:
    """Like `open_checkpoint`, for a pytree of arrays in memory with the names of any Orbax layout."""
    source, given = "parameters", as_config(config)
    check_flag("text_only", text_only)
    if lora_alpha is not None:
        check_number("lora_alpha", lora_alpha, 0, low_open=True)
    arrays = trees.in_memory(tree, source)
    found = trees.find(arrays)
    if found is None or found.kind == "adapter":
        examples = ", ".join(sorted(arrays)[:3]) or "no arrays"
        raise CheckpointError(
            f"{source}: not named as in an Orbax checkpoint of Gemma 3; the tree holds {examples} … (load reads files, "
            "those of Hugging Face too)"
        )
    canonical = trees.canonical(found, arrays, source, lora_alpha)
    initial = given or config_io.infer(names.shapes(canonical), source, in_memory=True)
    config, canonical = _reconcile_canonical(canonical, initial, source, given is not None, text_only)
    checkpoint = Checkpoint(source, "memory", config, canonical, None, None, ())
    return dataclasses.replace(checkpoint, quantization=flax_quantized.describe(canonical))


def _reconcile_canonical(
    canonical: names.Arrays, config: GemmaConfig, path: str, explicit: bool, text_only: bool
) -> tuple[GemmaConfig, names.Arrays]:
    """Returns the config of the model in the arrays, and its arrays, checked against the config."""
    # First, since reconciling compares shapes.
    canonical = tunix_names.split_heads(canonical, config.vision or VisionConfig())
    config = reconcile(canonical, GOOGLE, config, path, explicit=explicit, text_only=text_only)
    check_params(canonical, GOOGLE, config, path)
    return config, {name: canonical[name] for name in names.canonical_shapes(config)}


def _with_files(checkpoint: Checkpoint, initial: GemmaConfig) -> Checkpoint:
    """`checkpoint` with its tokenizer, and without its config.json if reconciling `initial` changed the tower."""
    if (initial.vision is None) != (checkpoint.config.vision is None):
        checkpoint = dataclasses.replace(checkpoint, config_json=None)
    return dataclasses.replace(checkpoint, tokenizer_path=_find_tokenizer(checkpoint.directories))


def _read_config(directories: tuple[str, ...], given: GemmaConfig | None) -> tuple[GemmaConfig | None, str | None]:
    if given is None and (file := storage.find(directories, "config.json")):
        text = storage.read_text(file)
        return added_tokens.extend_vocabulary(config_io.from_json(text, file), directories), text
    return given, None


def _find_tokenizer(directories: tuple[str, ...], *, above: bool = True) -> str | None:
    # Kaggle's downloads have the tokenizer above the checkpoint, Google's bucket in a directory of its own.
    for directory in (*directories, *([storage.parent(directories[-1])] if above else [])):
        if directory == f"{_GOOGLE_BUCKET}/checkpoints":
            return f"{_GOOGLE_BUCKET}/tokenizers/tokenizer_gemma3.model"
        if file := storage.find([directory], *_TOKENIZERS):
            if what := unsupported_formats.identify(storage.read_head(file)):
                raise CheckpointError(f"{file}: is {what}")
            return file
    return None
