"""Merges a LoRA adapter into the checkpoint it was trained on."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

from gemma_tpu.checkpoint import checksums, flax_lora, hf, hf_names, lazy, names, orbax, peft, storage, trees
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.locate import locate
from gemma_tpu.checkpoint.open import Checkpoint
from gemma_tpu.checkpoint.parameters import HEAD, TABLE
from gemma_tpu.checkpoint.reconcile import equal_arrays


def merge_adapter(checkpoint: Checkpoint, path: str, *, text_only: bool = False, verify: bool = False) -> Checkpoint:
    """Returns `checkpoint` with a LoRA adapter merged: each weight W reads as W + scale·B·A.

    The sum is computed in float32 and rounded to the stored dtype of W. The tokenizer and chat template of a peft
    adapter take precedence over those of the base, since it was trained with them.

    Args:
      path: a peft directory, or an Orbax checkpoint of gemma's or qwix's LoRA parameters.
      text_only: skips the adapter's vision tower weights.
      verify: checks the adapter's files against their checksums, where known.

    Raises `CheckpointError` if `path` is not an adapter, uses an unsupported LoRA variant, or does not fit.
    """
    path = storage.normalise(path)
    if storage.is_file(path):
        raise CheckpointError(
            f"{path}: no adapter: a file; give a directory, with adapter_config.json and the weights, or an Orbax one"
        )
    if verify:
        checksums.verify(checksums.known_files(path))
    top_entries = storage.entries(path)
    located = path if peft.is_adapter(top_entries) else locate(path, top_entries)
    entries = storage.entries(located) if located else set()
    if located and peft.is_adapter(entries):
        return _merge_peft(checkpoint, peft.read(located), located, text_only)
    if located and not hf.is_hf(entries):
        return _merge_tree(checkpoint, located, path, text_only)
    holds = ", ".join(sorted(top_entries)[:5]) or "nothing, or does not exist"
    raise CheckpointError(f"{path}: no adapter: neither adapter_config.json and weights, nor Orbax; it has {holds}")


def _merge_peft(checkpoint: Checkpoint, changes: peft.Changes, path: str, text_only: bool) -> Checkpoint:
    config = checkpoint.config
    base = dict(hf_names.cores_from_canonical(checkpoint.arrays, config))
    # Training an adapter freezes the base, so a tied head keeps the original table.
    base.setdefault(HEAD, base[TABLE])

    def fit(changed: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
        result = {}
        for core, array in changed.items():
            if text_only and hf_names.is_multimodal(core):
                continue
            if core in (TABLE, HEAD) and array.shape[0] == config.vocab_size + hf_names.EXTRA_ROWS:
                array = array.crop(0, 0, config.vocab_size)
            result[core] = array
        expected = {core: base[core].shape for core in result if core in base}
        names.check_shapes(expected, names.shapes(result), f"{path}: does not fit {checkpoint.path}")
        return result

    merged = fit(changes.replaced)
    for core, delta in fit(changes.deltas).items():
        merged[core] = lazy.add(merged.get(core, base[core]), delta)
    table, head = (merged.get(core, base[core]) for core in (TABLE, HEAD))
    if config.tied_head and table is not head:
        if equal_arrays(table, head):
            merged.pop(HEAD, None)
        else:
            warnings.warn(
                f"{path}: after it the output head and the embedding table differ: they are no longer one parameter",
                CheckpointWarning,
                stacklevel=3,
            )
            config = dataclasses.replace(config, tied_head=False)
            merged[HEAD] = head
    arrays = {**checkpoint.arrays, **hf_names.changed_rows(merged, base, config)}
    arrays = {name: arrays[name] for name in names.canonical_shapes(config)}
    directories = (path, *checkpoint.directories)
    return dataclasses.replace(checkpoint, config=config, arrays=arrays, directories=directories)


def _merge_tree(checkpoint: Checkpoint, located: str, asked: str, text_only: bool) -> Checkpoint:
    specs = orbax.list_arrays(located)
    tree = trees.find(specs)
    if tree is None or tree.kind != "adapter":
        holds = "a whole model: load that by itself" if tree else ", ".join(sorted(specs)[:3])
        raise CheckpointError(f"{located}: no adapter; it holds {holds}")
    opened = orbax.open_arrays(located, {name: specs[name] for name in tree.stored.values()})
    alpha = flax_lora.stored_alpha(tree.stored, storage.ancestors(located, asked))
    deltas = trees.deltas(tree, opened, checkpoint.config, located, alpha)
    if text_only:
        deltas = {name: delta for name, delta in deltas.items() if not names.is_multimodal(name)}
    return dataclasses.replace(checkpoint, arrays=flax_lora.merge(checkpoint.arrays, deltas, located))
