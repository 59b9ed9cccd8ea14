"""Writes checkpoints: saves parameters, and converts between layouts with one block in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gemma_tpu.checkpoint import (
    checksums,
    config_io,
    family,
    hf,
    hf_assets,
    hf_names,
    lazy,
    names,
    orbax,
    quantized_writing,
    storage,
)
from gemma_tpu.checkpoint.adapters import merge_adapter
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.open import Checkpoint, open_checkpoint
from gemma_tpu.checkpoint.progress import Progress, reporter
from gemma_tpu.checkpoint.staging import staging
from gemma_tpu.checkpoint.text_assets import CHAT_TEMPLATE, read_chat_template, special_ids
from gemma_tpu.checks import as_path, brief, check_integer
from gemma_tpu.config import GemmaConfig
from gemma_tpu.model.linear import QuantizedWeight, Weight
from gemma_tpu.quantization import Quantization, as_quantization
from gemma_tpu.text.special import control_ids, find_special_ids
from gemma_tpu.text.vocabulary import is_json, open_vocabulary

LAYOUTS = ("orbax", "orbax-flat", "safetensors")
_DTYPES = {"bf16": "bfloat16", "f32": "float32", "fp32": "float32"}
# Files that are copied along with the parameters.
_COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json"),
    "generation_config.json",
)


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str,
    dtype: Any = None,
    quantize: Quantization | str | None = None,
    config: GemmaConfig | None = None,
    adapter: str | os.PathLike[str] | None = None,
    progress: Progress | bool = True,
    max_shard_bytes: int = 5_000_000_000,
    verify: bool = True,
) -> Path:
    """Converts the checkpoint at `src` to a new directory `dst`, which appears when it is complete.

    Copies config.json, tokenizer and chat template; for "safetensors", generates what transformers' AutoTokenizer and
    AutoProcessor need if `src` lacks it (`hf_assets`). Writes checksums to SHA256SUMS.

    Args:
      to: "orbax" (nested, as in a Flax model), "orbax-flat" (Google's released layout) or "safetensors" (Hugging Face).
      dtype: "bfloat16" or "float32"; by default each parameter keeps its dtype, and converting back is lossless. What
        is dequantised is float32.
      quantize: "int8" or "int4" writes the decoder's matrices as such integers with a scale for each output channel,
        those that are stored so as they are, and all else as it is, the embeddings too. Safetensors are then of the
        format compressed-tensors (pack-quantized), Orbax checkpoints as gemma's `peft.quantize` makes them.
      adapter: a directory with a LoRA adapter to merge, see `merge_adapter`.
      max_shard_bytes: of each safetensors file; a larger array has one of its own.
      verify: checks the files of `src` against their checksums, where known.

    Raises `CheckpointError` if `dst` exists or lies in `src`, or the conversion fails; nothing is left behind then. A
    killed conversion leaves a directory `dst.partial-…`, which the next one to `dst` removes.
    """
    check_integer("max_shard_bytes", max_shard_bytes, 1)
    if quantization := as_quantization(quantize):
        quantized_writing.require_writable(quantization)
    for source in (src, adapter):
        if source is not None and _contains(source, dst):
            raise CheckpointError(f"{dst}: is in {source}, which is read: choose a destination outside it")
    checkpoint = open_checkpoint(src, config=config, verify=verify)
    if adapter is not None:
        checkpoint = merge_adapter(checkpoint, as_path("adapter", adapter), verify=verify)
    files = {}
    for name in _COPIED:
        if file := storage.find(checkpoint.directories, name):
            files[name] = storage.read_file(file)
    if checkpoint.tokenizer_path:
        name = "tokenizer.json" if checkpoint.tokenizer_path.endswith(".json") else "tokenizer.model"
        files[name] = storage.read_file(checkpoint.tokenizer_path)
    if checkpoint.embedded is not None:
        embedded = checkpoint.embedded.as_files(with_tokenizer=checkpoint.tokenizer_path is None)
        if read_chat_template(checkpoint.directories):
            embedded.pop(CHAT_TEMPLATE, None)
        files = embedded | files
    return _write(checkpoint, dst, files, to, dtype, progress, max_shard_bytes, quantization)


def _contains(directory: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
    """Whether a path is below a local directory, through links too."""
    return Path(storage.normalise(directory)).resolve() in Path(storage.normalise(path)).resolve().parents


def save_params(
    params: Mapping[str, Weight | np.ndarray],
    config: GemmaConfig,
    dst: str | os.PathLike[str],
    *,
    layout: str = "orbax-flat",
    dtype: Any = None,
    tokenizer: str | os.PathLike[str] | bytes | None = None,
    progress: Progress | bool = False,
) -> Path:
    """Writes parameters, named as in `gemma_tpu.model.param_shapes`, to a new checkpoint directory `dst`.

    `layout` and `dtype` are as `to` and `dtype` in `convert`. `tokenizer`: path or bytes of a SentencePiece model or a
    tokenizer.json to store in it. The decoder's quantised matrices are written as they are, if all of them are integers
    of one width; other quantised weights in `dtype`, or that of the model's activations.
    """
    quantization = _written_quantization(params)
    arrays = {name: _in_memory(name, array, quantization) for name, array in params.items()}
    files = {}
    if tokenizer is not None:
        content = tokenizer if isinstance(tokenizer, bytes) else storage.read_file(os.fspath(tokenizer))
        files["tokenizer.json" if is_json(content) else "tokenizer.model"] = content
    canonical = names.canonical_from_params(arrays, config)
    checkpoint = Checkpoint("parameters", "memory", config, canonical, None, None, ())
    return _write(checkpoint, dst, files, layout, dtype, progress, quantization=quantization)


def _written_quantization(params: Mapping[str, Weight | np.ndarray]) -> Quantization | None:
    """That of the decoder's matrices, None if not all of them are quantised, and alike."""
    every = Quantization("int8", None, None)
    matrices = [weight for name, weight in params.items() if every.grid(name, "cpu")]
    widths = {weight.values.dtype.name if isinstance(weight, QuantizedWeight) else None for weight in matrices}
    width = widths.pop() if len(widths) == 1 else None
    return width and Quantization(width, None, None)


def _in_memory(name: str, weight: Weight | np.ndarray, quantization: Quantization | None) -> LazyArray:
    if not isinstance(weight, QuantizedWeight):
        return lazy.InMemory(weight, name)
    kept = quantized_writing.in_memory(name, weight.values, weight.scales)
    if quantization and quantization.grid(name, "cpu"):
        return kept
    return kept.astype(np.dtype(weight.dtype))


def _write(
    checkpoint: Checkpoint,
    dst: str | os.PathLike[str],
    files: Mapping[str, bytes],
    layout: str,
    dtype: Any,
    progress: Progress | bool,
    max_shard_bytes: int = 5_000_000_000,
    quantization: Quantization | None = None,
) -> Path:
    config, arrays = checkpoint.config, dict(checkpoint.arrays)
    if layout not in LAYOUTS:
        raise CheckpointError(f"{brief(layout)} is no layout to write: choose one of {', '.join(LAYOUTS)}")
    if quantization:
        arrays = quantized_writing.kept(arrays, config, quantization)
    if dtype is not None:
        dtype = _dtype(dtype)
        arrays = {
            name: array if quantized_writing.is_kept(array) else array.astype(dtype) for name, array in arrays.items()
        }
    stored = arrays["embedder/input_embedding"].dtype.name
    if checkpoint.config_json is None:
        config_json = config_io.to_json(config, stored, _special_ids(files))
    else:
        config_json = config_io.updated(checkpoint.config_json, stored, config.tied_head)
    if layout == "safetensors":
        prefix = family.hf_prefix(config_json)
        written = hf_names.hf_from_canonical(arrays, config, config_io.table_rows(config_json), prefix)
        written = quantized_writing.hf_arrays(written)
        if quantization:
            config_json = quantized_writing.with_config(config_json, quantization)
    else:
        written = quantized_writing.orbax_arrays(arrays)
    total = sum(array.nbytes for array in written.values())
    needed = total + sum(map(len, files.values()))
    with staging(dst, needed, exact=layout == "safetensors") as path:  # Orbax compresses
        with checksums.verifying(checkpoint.unverified), reporter(progress, total, "Writing") as report:
            if layout == "safetensors":
                path.mkdir()
                hf.write_directory(path, written, max_shard_bytes=max_shard_bytes, progress=report)
            else:
                orbax.write(path, names.orbax_tree(written, flat=layout == "orbax-flat"), report)
        extra = {}
        if layout == "safetensors":
            extra = hf_assets.generate_missing(files, config, special_ids(json.loads(config_json)))
        for name, content in (extra | dict(files)).items():
            (path / name).write_bytes(content)
        # Last, since transformers needs config.json to accept a directory as a model.
        (path / "config.json").write_text(config_json)
        checksums.write(path)
    return Path(storage.normalise(dst))


def _dtype(dtype: Any) -> np.dtype:
    try:
        found = jnp.dtype(_DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype)
    except TypeError as error:
        raise CheckpointError(f"dtype {dtype!r} is not known: choose bfloat16 or float32") from error
    if found not in (jnp.bfloat16, jnp.float32):
        # Gemma 3's activations overflow float16.
        raise CheckpointError(f"dtype {found.name} cannot be written: choose bfloat16 or float32")
    return found


def _special_ids(files: Mapping[str, bytes]) -> dict[str, int]:
    """Special ids by role of the tokenizer in `files`; empty without one."""
    for name in ("tokenizer.model", "tokenizer.json"):
        if name in files:
            try:
                vocabulary = open_vocabulary(files[name], name)
            except ValueError as error:
                raise CheckpointError(str(error)) from error
            controls = vocabulary.controls | control_ids(vocabulary.pieces)
            return find_special_ids(vocabulary.pieces, controls, vocabulary.roles, {})[0]
    return {}
