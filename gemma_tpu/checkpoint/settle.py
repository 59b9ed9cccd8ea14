"""What a checkpoint's config says, and what its parameters are: one config that fits both, or an error.

Fine-tunes come with a config of another model than their weights: an output head that was merged apart from the
embedding table, a decoder without the vision tower that its config describes. What is stored is taken, and a
`CheckpointWarning` says so.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from gemma_tpu.checkpoint import hf_names, names, redundant
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.config import GemmaConfig, VisionConfig

Shapes = Mapping[str, tuple[int, ...]]


class Naming(NamedTuple):
    """The parameters' names on one side: the embedding table's, an output head's, and what is known of all."""

    table: str
    head: str
    shapes: Callable[[GemmaConfig], Shapes]
    is_multimodal: Callable[[str], bool]


GOOGLE = Naming(
    names.INPUT_TABLE,
    names.OUTPUT_HEAD,
    names.canonical_shapes,
    names.is_multimodal,
)
HUGGING_FACE = Naming(
    hf_names.TABLE,
    hf_names.HEAD,
    hf_names.core_shapes,
    hf_names.is_multimodal,
)


def settle(
    arrays: dict[str, LazyArray], naming: Naming, config: GemmaConfig, path: str, *, given: bool, text_only: bool
) -> GemmaConfig:
    """The config of the model that `arrays` hold, from which what repeats something or has no use is removed.

    `given`: the config is the caller's own, so that no vision tower is added to it and its own head is not questioned.
    """
    config = _vision(arrays, naming, config, path, given=given, text_only=text_only)
    for name in (naming.table, naming.head):  # without the rows that Hugging Face appends
        table = arrays.get(name)
        if table is not None and table.shape[0] == config.vocab_size + hf_names.EXTRA_ROWS:
            arrays[name] = table.crop(0, 0, config.vocab_size)
    return _head(arrays, naming, config, path, given=given)


def _vision(
    arrays: dict[str, LazyArray], naming: Naming, config: GemmaConfig, path: str, *, given: bool, text_only: bool
) -> GemmaConfig:
    found = {name: array.shape for name, array in arrays.items() if naming.is_multimodal(name)}
    without = dataclasses.replace(config, vision=None)
    if not text_only:
        if config.vision and not found:
            _warn(f"{path}: its config has a vision tower, and no weights of one are there: the model takes text only")
            return without
        if config.vision or not found:
            return config
        released = dataclasses.replace(config, vision=VisionConfig())
        if not given and found == {n: shape for n, shape in naming.shapes(released).items() if naming.is_multimodal(n)}:
            _warn(f"{path}: its config has no vision tower, but weights of Gemma 3's are there: the model takes images")
            return released
        _warn(f"{path}: its config has no vision tower: the weights of one are left out, and the model takes text only")
    for name in found:
        del arrays[name]
    return without


def _head(arrays: dict[str, LazyArray], naming: Naming, config: GemmaConfig, path: str, *, given: bool) -> GemmaConfig:
    head = arrays.get(naming.head)
    if head is None:
        if config.tied_head:
            return config
        raise CheckpointError(
            f"{path}: its config has an output head of its own (tie_word_embeddings is false), and no {naming.head} is "
            "stored: make it true if the embedding table is the head"
        )
    if naming.table not in arrays and config.tied_head:  # either of the two may be the one that was saved
        arrays[naming.table] = arrays.pop(naming.head)
        return config
    if given and not config.tied_head:
        return config
    if naming.table in arrays and redundant.equal(arrays[naming.table], head):
        del arrays[naming.head]
        return dataclasses.replace(config, tied_head=True)
    if config.tied_head:
        stored = next(head.leaves()).name
        _warn(f"{path}: {stored} differs from the embedding table, to which its config ties it: it is used as it is")
    return dataclasses.replace(config, tied_head=False)


def check(
    arrays: Mapping[str, LazyArray],
    naming: Naming,
    config: GemmaConfig,
    path: str,
    stored_name: Callable[[str], str] = lambda name: name,
) -> None:
    """`CheckpointError` unless `arrays` are the parameters of a model, in their shapes and of floating point."""
    expected = naming.shapes(config)
    found = {name: array.shape for name, array in arrays.items()}
    expected_stored, found_stored = (
        {stored_name(name): shape for name, shape in shapes.items()} for shapes in (expected, found)
    )
    try:
        names.check(expected_stored, found_stored, path)
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


def _warn(message: str) -> None:
    warnings.warn(message, CheckpointWarning, stacklevel=6)  # where open_checkpoint was called
