"""Finds the GGUF files of one Gemma 3 model: its text in one file or in shards, and its vision tower (mmproj)."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence

from gemma_tpu.checkpoint import family, gguf_config, gguf_names, storage
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.gguf_config import TEXT, VISION
from gemma_tpu.checkpoint.gguf_file import SUFFIX, GgufArray, GgufFile, gguf_names_in, read_file
from gemma_tpu.checkpoint.gguf_text import EmbeddedText, read_text
from gemma_tpu.checkpoint.hf_names import is_multimodal
from gemma_tpu.checkpoint.names import Arrays
from gemma_tpu.checkpoint.parameters import HEAD, TABLE
from gemma_tpu.checks import brief
from gemma_tpu.config import CONFIGS, GemmaConfig

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # llama.cpp, src/llama.cpp, llama_split_path
_PROJECTION, _WIDTH = "mm.input_projection.weight", f"{TEXT}.embedding_length"


@dataclasses.dataclass(frozen=True)
class GgufModel:
    """`arrays` and `stored` (the stored name) by core (`hf_names`)."""

    files: tuple[str, ...]
    config: GemmaConfig
    arrays: Arrays
    stored: Mapping[str, str]
    text: EmbeddedText


def open_model(path: str, given: GemmaConfig | None, *, text_only: bool) -> GgufModel:
    """Opens a GGUF file and the mmproj file beside it, or the ones in a directory.

    `given`: the config, if the caller has one. Raises `CheckpointError`, also for another model than Gemma 3.
    """
    if storage.is_remote(path):
        raise CheckpointError(f"{path}: a GGUF file is read on local disks only: copy it to one (gcloud storage cp)")
    text, towers = _find_beside(path, text_only) if storage.is_file(path) else _find_in(path)
    if text_only:
        towers = []
    if len(towers) > 1:
        raise CheckpointError(f"{storage.parent(text.path)}: holds several mmproj files, leave one: {_listed(towers)}")
    return _assemble(text, towers[0] if towers else None, given, text_only)


def _find_beside(path: str, text_only: bool) -> tuple[GgufFile, list[GgufFile]]:
    """The model in the file or shard at `path`, and the vision towers in its directory."""
    shards = _shards(path)
    text = _read(shards[0])
    if text.architecture == VISION:
        raise CheckpointError(
            f"{path}: a vision tower alone (mmproj): give the text model's file, with this one beside it"
        )
    if not _is_model(text):
        raise CheckpointError(f"{path}: is of type {brief(text.get('general.type'))}, no model")
    text = _join_shards(text)
    if text_only:
        return text, []
    directory = storage.parent(path)
    others = [storage.join(directory, name) for name in gguf_names_in(storage.entries(directory))]
    models, towers = _classify([other for other in others if other not in shards], strict=False)
    if not models:
        return text, towers
    width = text.get(_WIDTH)
    towers = [tower for tower in towers if _PROJECTION in tower.arrays and _projected(tower) == width]
    rivals = [model for model in models if model.get(_WIDTH) == width]
    if rivals and towers:
        _warn(
            f"{path}: {_listed(towers)} may belong to {_listed(rivals)}, so the model takes text only; for images, put "
            "its two files, or links to them, into a directory of their own"
        )
        towers = []
    return text, towers


def _projected(tower: GgufFile) -> int:
    """The width of the text model for which a tower is."""
    return tower.arrays[_PROJECTION].shape[-1]


def _find_in(directory: str) -> tuple[GgufFile, list[GgufFile]]:
    """The only model in a directory, and the vision towers there."""
    models, towers = _classify([storage.join(directory, name) for name in gguf_names_in(storage.entries(directory))])
    if len(models) > 1:
        raise CheckpointError(f"{directory}: holds several models, say which: {_listed(models)}")
    if not models:
        what = f"a vision tower alone, {_listed(towers)}" if towers else "no model in its GGUF files"
        raise CheckpointError(f"{directory}: holds {what}: the text model's file is missing")
    return _join_shards(models[0]), towers


def _classify(paths: Sequence[str], strict: bool = True) -> tuple[list[GgufFile], list[GgufFile]]:
    """Models (of shards the first) and vision towers. Files that cannot be read are skipped unless `strict`."""
    models, towers = [], []
    for path in dict.fromkeys(_shards(path)[0] for path in paths):
        try:
            file = _read(path)
        except CheckpointError:
            if strict:
                raise
            continue
        if not _is_model(file):
            _warn(f"{path}: is of type {brief(file.get('general.type'))}, and is left out")
        else:
            (towers if file.architecture == VISION else models).append(file)
    return models, towers


def _is_model(file: GgufFile) -> bool:
    """Whether a file is a model, not an adapter or an importance matrix (gguf-py/gguf/constants.py, GGUFType)."""
    return file.get("general.type", "model") in ("model", "mmproj")


def _read(path: str) -> GgufFile:
    if not storage.is_file(path):
        raise CheckpointError(f"{path}: missing: the other shards of the model are there")
    return read_file(path)


def _listed(files: Sequence[GgufFile]) -> str:
    return ", ".join(file.path.rsplit("/", 1)[1] for file in files)


def _shards(path: str) -> list[str]:
    """All shards of what `path` is one of; `path` alone if it is none."""
    if (match := _SHARD.fullmatch(path)) is None:
        return [path]
    prefix, _, count = match.groups()
    return [f"{prefix}-{number:05d}-of-{count}{SUFFIX}" for number in range(1, int(count) + 1)] or [path]


def _join_shards(first: GgufFile) -> GgufFile:
    """The file with the tensors of all shards; the metadata is that of the first."""
    count, paths = first.get("split.count", 0) or 1, _shards(first.path)
    if count != len(paths):
        raise CheckpointError(
            f"{first.path}: is one of {brief(count)} shards by its content and of {len(paths)} by its name: shards are "
            f"named NAME-00001-of-0000N{SUFFIX}"
        )
    if len(paths) == 1:
        return first
    arrays: dict[str, GgufArray] = {}
    for number, path in enumerate(paths):
        file = _read(path) if number else first
        if (found := file.get("split.no")) != number:
            raise CheckpointError(f"{path}: its content is that of shard {brief(found)}, counted from 0, not {number}")
        if twice := sorted(arrays.keys() & file.arrays.keys()):
            raise CheckpointError(f"{path}: {twice[0]} is in an earlier shard too")
        arrays |= file.arrays
    if (total := first.get("split.tensors.count", len(arrays))) != len(arrays):
        raise CheckpointError(f"{first.path}: its shards hold {len(arrays)} tensors, not {brief(total)}")
    return dataclasses.replace(first, arrays=arrays)


def _assemble(text: GgufFile, tower: GgufFile | None, given: GemmaConfig | None, text_only: bool) -> GgufModel:
    family.require_gemma3({"model_type": text.architecture.replace("-", "_")}, text.path)
    if not text.arrays:
        raise CheckpointError(f"{text.path}: holds a vocabulary alone, and no tensors")
    has_own = any(is_multimodal(core) for core in gguf_names.cores(text.arrays, text.path, None)[0])
    if tower is not None:
        _check_tower(tower, text, has_own)
    vision, embedded = tower or (text if has_own and not text_only else None), read_text(text)
    rows = _vocabulary_rows(text, embedded)
    config = gguf_config.read_config(text, vision, rows)
    if tower is not None:
        _check_width(tower, text, config.embed_dim)
    if vision is None and not text_only and given is None:
        _warn_without_tower(text.path, config)
    width = config.vision.width if config.vision else None
    arrays, stored = gguf_names.cores({**text.arrays, **(tower.arrays if tower else {})}, text.path, width)
    config = given or dataclasses.replace(config, tied_head=not {TABLE, HEAD} <= arrays.keys())
    for name in (TABLE, HEAD):
        if name in arrays and arrays[name].shape[0] > config.vocab_size >= rows:
            arrays[name] = arrays[name].crop(0, 0, config.vocab_size)
    files = dict.fromkeys(array.file for file in (text, tower) if file for array in file.arrays.values())
    return GgufModel(tuple(files), config, arrays, stored, embedded)


def _vocabulary_rows(text: GgufFile, embedded: EmbeddedText) -> int:
    """Rows of the embedding table without padding. Where a fine-tune has tokens in the extra rows, those are none."""
    table = next((text.arrays[name] for name in ("token_embd.weight", "output.weight") if name in text.arrays), None)
    if table is None:
        return max(embedded.rows, 1)
    return min(embedded.rows, table.shape[0]) if embedded.rows == embedded.pieces > 0 else table.shape[0]


def _check_tower(tower: GgufFile, text: GgufFile, has_own: bool) -> None:
    """Raises `CheckpointError` unless a mmproj file belongs to a text model."""
    if has_own:
        raise CheckpointError(f"{text.path}: holds a vision tower, and so does {tower.path}: take that away")
    kind = tower.get("clip.projector_type", tower.get("clip.vision.projector_type"))
    if kind != TEXT:
        raise CheckpointError(f"{tower.path}: a vision tower for {brief(kind)}, not for Gemma 3: it can be left out")
    if twice := sorted(text.arrays.keys() & tower.arrays.keys()):
        raise CheckpointError(f"{tower.path}: {twice[0]} is in {text.path} too")


def _check_width(tower: GgufFile, text: GgufFile, width: int) -> None:
    if _PROJECTION in tower.arrays and (found := _projected(tower)) != width:
        raise CheckpointError(
            f"{tower.path}: {_PROJECTION} has a width of {found}, {text.path} of {width}: the mmproj of another size"
        )


def _warn_without_tower(path: str, config: GemmaConfig) -> None:
    sizes = ("num_layers", "embed_dim", "hidden_dim", "num_heads", "num_kv_heads", "head_dim")
    for name, released in CONFIGS.items():
        if released.vision and all(getattr(released, size) == getattr(config, size) for size in sizes):
            _warn(
                f"{path}: of the size of {name}, whose vision tower is in a file of its own (mmproj*.gguf), which is "
                "not beside it: the model takes text only"
            )


def _warn(message: str) -> None:
    warnings.warn(message, CheckpointWarning, stacklevel=6)  # the caller of open_checkpoint
