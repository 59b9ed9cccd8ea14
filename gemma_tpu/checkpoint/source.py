"""Opening a checkpoint: what it is, its architecture, and its parameters as lazy arrays under canonical names."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping

import jax.numpy as jnp

from gemma_tpu.checkpoint import added_tokens, config_io, hf, hf_names, names, orbax, storage
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.config import GemmaConfig

# In the path of what a conversion or a download is still writing, or never finished.
_PARTIAL = re.compile(r"\.part(ial-\d+)?(/|$)")
_TOKENIZERS = ("tokenizer.model", "tokenizer_gemma3.model", "tokenizer.json")
_GOOGLE_BUCKET = "gs://gemma-data"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose names and shapes have been found to fit `config`. Nothing of its data has been read yet.

    `kind`: "orbax-nested", "orbax-flat", "orbax-stacked", "orbax-trainer" or "safetensors".
    `path`: where the arrays are, which may be below the path that was asked for.
    `arrays`: canonical name (`gemma_tpu.checkpoint.names`) → lazy array.
    `config_json`: the text of the config.json that came with it.
    `tokenizer_path`: a SentencePiece model or a tokenizer.json, local or at gs:// (`storage.read_file` reads either).
    `directories`: where files beside the arrays may lie, nearest first.
    """

    path: str
    kind: str
    config: GemmaConfig
    arrays: Mapping[str, LazyArray]
    config_json: str | None
    tokenizer_path: str | None
    directories: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Size of the parameters as they are stored, in bytes."""
        return sum(array.nbytes for array in self.arrays.values())


def open_checkpoint(
    path: str | os.PathLike[str], *, config: GemmaConfig | None = None, text_only: bool = False
) -> Checkpoint:
    """Opens an Orbax or Hugging Face checkpoint, local or at gs://, in any layout in which Gemma 3 exists.

    The architecture is `config`, else that of a config.json beside the arrays, else inferred from the shapes of the
    five sizes. With `text_only`, vision parameters are left aside and the config has no vision.

    Raises `CheckpointError` if there is no checkpoint, if it is of another model, if it is damaged, and if parameters
    are missing, unexpected or wrongly shaped.
    """
    path = storage.normalise(path)
    if _PARTIAL.search(path):
        raise CheckpointError(f"{path}: left behind by a conversion or a download that was stopped; run that again")
    found = storage.entries(path)
    if not found and not storage.is_file(path) and not os.path.isdir(path):
        access = ", or you have no access to it" if storage.is_remote(path) else ""
        raise CheckpointError(f"{path}: no such file or directory{access}")
    if path.endswith(".safetensors") or hf.is_hf(found):
        return _open_hf(path, config, text_only)
    if (located := orbax.locate(path, found)) is not None:
        return _open_orbax(located, path, config, text_only)
    if foreign := sorted(name for name in found if name.endswith((".bin", ".gguf", ".pth", ".ckpt", ".msgpack"))):
        holds = f"; it has {foreign[0]}, a format that is not read here: take the safetensors or Orbax version"
    else:
        holds = f"; it has {', '.join(sorted(found)[:5]) or 'nothing'}"
    raise CheckpointError(f"{path}: no checkpoint: neither Orbax files nor *.safetensors{holds}")


def _open_hf(path: str, config: GemmaConfig | None, text_only: bool) -> Checkpoint:
    directory = storage.parent(path) if path.endswith(".safetensors") else path
    given = config
    config, config_json = _read_config((directory,), config)
    arrays, stored = hf_names.cores(hf.read_directory(path), path)
    config = config or config_io.infer_from_cores({name: array.shape for name, array in arrays.items()}, path)
    if text_only:
        arrays = {name: array for name, array in arrays.items() if not name.startswith(("vision.", "projector."))}
        config = dataclasses.replace(config, vision=None)
    _crop_extra_rows(arrays, "embed_tokens.weight", config)
    _check(arrays, hf_names.core_shapes(config), path, lambda name: _stored_name(name, stored))
    canonical = hf_names.canonical_from_cores(arrays, config)
    return _checkpoint(path, "safetensors", config, canonical, None if given else config_json, (directory,))


def _stored_name(core: str, stored: Mapping[str, str]) -> str:
    """What a file would call `core`: with the prefix that it gives the other parameters of that part."""
    if core in stored:
        return stored[core]

    def part(name: str) -> str:
        return name.split(".")[0] if name.startswith(("vision.", "projector.")) else ""

    for other, name in stored.items():
        if part(other) == part(core):
            tail = other.removeprefix(f"{part(other)}.")
            return name.removesuffix(tail) + core.removeprefix(f"{part(core)}.")
    return core


def _open_orbax(located: str, asked: str, config: GemmaConfig | None, text_only: bool) -> Checkpoint:
    directories = [located]
    while directories[-1] != asked:
        directories.append(storage.parent(directories[-1]))
    given = config
    config, config_json = _read_config(tuple(directories), config)
    listed = orbax.list_arrays(located)
    root = names.find_root(listed.specs)
    if root is None:
        some = ", ".join(sorted(listed.specs)[:3]) or "no arrays"
        raise CheckpointError(f"{located}: this is no Gemma 3 checkpoint; it holds {some} …")
    kind = names.orbax_kind(listed.specs, root)
    opened = orbax.open_arrays(listed, [name for name in listed.specs if name.startswith(root)])
    canonical = names.canonical_from_orbax({name.removeprefix(root): array for name, array in opened.items()})
    config = config or config_io.infer_from_canonical({name: a.shape for name, a in canonical.items()}, located)
    if text_only:
        canonical = {name: array for name, array in canonical.items() if not names.is_multimodal(name)}
        config = dataclasses.replace(config, vision=None)
    _crop_extra_rows(canonical, "embedder/input_embedding", config)
    shapes = names.canonical_shapes(config)
    _check(canonical, shapes, located)
    canonical = {name: canonical[name] for name in shapes}
    return _checkpoint(located, kind, config, canonical, None if given else config_json, tuple(directories))


def _read_config(directories: tuple[str, ...], config: GemmaConfig | None) -> tuple[GemmaConfig | None, str | None]:
    if config is not None:
        return config, None
    for directory in directories:
        file = storage.join(directory, "config.json")
        if storage.is_file(file):
            text = storage.read_file(file).decode()
            return added_tokens.with_their_rows(config_io.from_json(text, file), directories), text
    return None, None


def _crop_extra_rows(arrays: dict[str, LazyArray], name: str, config: GemmaConfig) -> None:
    """Drops the rows that Hugging Face appends to embedding tables."""
    table = arrays.get(name)
    if table is not None and table.shape[0] == config.vocab_size + hf_names.EXTRA_ROWS:
        arrays[name] = table.crop(0, 0, config.vocab_size)


def _check(
    arrays: Mapping[str, LazyArray],
    expected: Mapping[str, tuple[int, ...]],
    path: str,
    stored_name: Callable[[str], str] = lambda name: name,
) -> None:
    found = {stored_name(name): array.shape for name, array in arrays.items()}
    try:
        names.check({stored_name(name): shape for name, shape in expected.items()}, found, path)
    except CheckpointError:
        # An older Gemma has other parameters, which is better said in one sentence than as two lists.
        shapes = {name: array.shape for name, array in arrays.items()}
        config_io.refuse_others(shapes, path)
        raise
    for array in arrays.values():
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize < 2:
            leaf = next(array.leaves())
            raise CheckpointError(
                f"{path}: {leaf.name} is {array.dtype}: a quantised checkpoint? Take the bfloat16 one"
            )


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
    # Kaggle's downloads have the tokenizer in the directory above the checkpoint, Google's bucket beside all of them.
    above = storage.parent(directories[-1])
    for directory in (*directories, above):
        if directory == f"{_GOOGLE_BUCKET}/checkpoints":
            return f"{_GOOGLE_BUCKET}/tokenizers/tokenizer_gemma3.model"
        for name in _TOKENIZERS:
            if storage.is_file(file := storage.join(directory, name)):
                return file
    return None
