"""Reconciles a checkpoint's config with what is stored: parameters, and buffers that follow from the config.

The config of a fine-tune may not match its weights: an output head that was merged separately from the embedding
table, a decoder without the vision tower in its config. The stored parameters win, and a `CheckpointWarning` says so.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gemma_tpu.checkpoint import hf_names, lazy, names, parameters, slices
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.config import GemmaConfig, VisionConfig

# Buffers are stored in the dtype of the weights; bfloat16 keeps 8 bits.
_TOLERANCE = 2**-7


class Naming(NamedTuple):
    """A naming scheme: the names of the embedding table and output head, and functions of all names."""

    table: str
    head: str
    shapes: Callable[[GemmaConfig], names.Shapes]
    is_multimodal: Callable[[str], bool]


GOOGLE = Naming(parameters.INPUT_TABLE, parameters.OUTPUT_HEAD, names.canonical_shapes, names.is_multimodal)
HUGGING_FACE = Naming(parameters.TABLE, parameters.HEAD, hf_names.core_shapes, hf_names.is_multimodal)


def reconcile(
    arrays: dict[str, LazyArray], naming: Naming, config: GemmaConfig, path: str, *, explicit: bool, text_only: bool
) -> GemmaConfig:
    """Returns the config of the model in `arrays`; removes unused and duplicate parameters from `arrays`.

    `explicit`: the caller gave the config, so its tied or untied head stands and no vision tower is added.
    """
    config = _reconcile_vision(arrays, naming, config, path, explicit=explicit, text_only=text_only)
    for name in (naming.table, naming.head):
        table = arrays.get(name)
        if table is not None and table.shape[0] == config.vocab_size + hf_names.EXTRA_ROWS:
            arrays[name] = table.crop(0, 0, config.vocab_size)
    return _reconcile_head(arrays, naming, config, path, explicit=explicit)


def _reconcile_vision(
    arrays: dict[str, LazyArray], naming: Naming, config: GemmaConfig, path: str, *, explicit: bool, text_only: bool
) -> GemmaConfig:
    found = {name: shape for name, shape in names.shapes(arrays).items() if naming.is_multimodal(name)}
    text_config = dataclasses.replace(config, vision=None)
    if not text_only:
        if config.vision and not found:
            _warn(f"{path}: its config has a vision tower, and no weights of one are there: the model takes text only")
            return text_config
        if config.vision or not found:
            return config
        released = dataclasses.replace(config, vision=VisionConfig())
        expected = {name: shape for name, shape in naming.shapes(released).items() if naming.is_multimodal(name)}
        if not explicit and found == expected:
            _warn(f"{path}: its config has no vision tower, but weights of Gemma 3's are there: the model takes images")
            return released
        _warn(f"{path}: its config has no vision tower: the weights of one are left out, and the model takes text only")
    for name in found:
        del arrays[name]
    return text_config


def _reconcile_head(
    arrays: dict[str, LazyArray], naming: Naming, config: GemmaConfig, path: str, *, explicit: bool
) -> GemmaConfig:
    head = arrays.get(naming.head)
    if head is None:
        if config.tied_head:
            return config
        raise CheckpointError(
            f"{path}: its config has an output head of its own (tie_word_embeddings is false), and no {naming.head} is "
            "stored: make it true if the embedding table is the head"
        )
    if naming.table not in arrays and config.tied_head:  # saved under the head's name only
        arrays[naming.table] = arrays.pop(naming.head)
        return config
    if explicit and not config.tied_head:
        return config
    if naming.table in arrays and equal_arrays(arrays[naming.table], head):
        del arrays[naming.head]
        return dataclasses.replace(config, tied_head=True)
    if config.tied_head:
        stored = next(head.leaves()).name
        _warn(f"{path}: {stored} differs from the embedding table, to which its config ties it: it is used as it is")
    return dataclasses.replace(config, tied_head=False)


def check_params(
    arrays: Mapping[str, LazyArray],
    naming: Naming,
    config: GemmaConfig,
    path: str,
    stored_name: Callable[[str], str] = lambda name: name,
) -> None:
    """Raises `CheckpointError` unless `arrays` have the names and shapes of `config`, and floating-point dtypes."""
    expected, found = naming.shapes(config), names.shapes(arrays)
    expected_stored, found_stored = (
        {stored_name(name): shape for name, shape in shapes.items()} for shapes in (expected, found)
    )
    try:
        names.check_shapes(expected_stored, found_stored, path)
    except CheckpointError as error:
        if all(naming.is_multimodal(name) for name, _ in expected.items() ^ found.items()):
            raise CheckpointError(f"{error}: it can be loaded for text alone, with text_only") from error
        raise
    for array in arrays.values():
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize < 2:
            leaf = next(array.leaves())
            raise CheckpointError(
                f"{path}: {leaf.name} is {array.dtype}: a quantised checkpoint? Take the bfloat16 one"
            )


def equal_arrays(a: LazyArray, b: LazyArray) -> bool:
    """Whether two arrays hold the same values. Reads a block of each at a time, and no more after a difference."""
    if a.shape != b.shape:
        return False
    return all(np.array_equal(a.read(box), b.read(box)) for box in lazy.read_blocks(a, slices.whole(a.shape)))


def check_buffers(buffers: Mapping[str, LazyArray], config: GemmaConfig, path: str) -> None:
    """`CheckpointError` naming a buffer, by its stored name, that is not what the config says it is."""
    for name, array in buffers.items():
        if config.vision is None and name.endswith("position_ids"):
            continue  # of a tower that is not loaded
        found = array.read_all().astype(np.float64).ravel()
        expected = _expected(name, found.size, config)
        if expected is None:
            continue  # of layers that the model has none of
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=_TOLERANCE, atol=0):
            raise CheckpointError(
                f"{path}: {name} is stored, and is not what follows from the config: these weights were made with "
                "another config.json"
            )


def _expected(name: str, size: int, config: GemmaConfig) -> np.ndarray | None:
    if name.endswith("position_ids"):
        return np.arange(size, dtype=np.float64)
    if name.endswith("embed_scale"):
        return np.array([math.sqrt(config.embed_dim)])
    if match := re.search(r"layers\.(\d+)\.", name):
        fitting = config.layers[int(match[1]) :]
    else:
        is_local = bool(re.search("local|sliding", name))
        fitting = [layer for layer in config.layers if (layer.window is not None) is is_local]
    if not fitting:
        return None
    base, scale = fitting[0].rope_base, fitting[0].rope_scale
    return base ** -(np.arange(0, config.head_dim, 2) / config.head_dim) / scale


def _warn(message: str) -> None:
    warnings.warn(message, CheckpointWarning, stacklevel=6)  # the caller of open_checkpoint
