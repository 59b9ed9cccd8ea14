"""Adapters: merging one into the checkpoint that it was trained on, and saying which that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gemma_tpu.checkpoint import flax_lora, hf_names, names, orbax, peft, storage, trees
from gemma_tpu.checkpoint.arithmetic import Sum, equal
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.source import Checkpoint

_TABLE = "embed_tokens.weight"


def merge_adapter(checkpoint: Checkpoint, path: str, *, text_only: bool = False) -> Checkpoint:
    """`checkpoint` with a low-rank adapter merged: each weight W becomes W + scale·B·A as it is read.

    The sum is formed in float32 and rounded to the dtype in which W is stored. `path`: a directory of peft, or an Orbax
    checkpoint of gemma's or qwix's LoRA parameters. With `text_only`, what adapts the vision tower is left out with it.

    Raises `CheckpointError` if `path` is no adapter, if its kind of LoRA is not known, and if any of it has no place in
    this checkpoint.
    """
    path = storage.normalise(path)
    found = storage.entries(path)
    if peft.is_adapter(found):
        arrays = _merge_peft(checkpoint, peft.read(path), path, text_only)
    elif (located := orbax.locate(path, found)) is not None:
        arrays = _merge_tree(checkpoint, located, path, text_only)
    else:
        holds = ", ".join(sorted(found)[:5]) or "nothing, or does not exist"
        raise CheckpointError(f"{path}: no adapter: neither adapter_config.json and weights, nor Orbax; it has {holds}")
    return dataclasses.replace(checkpoint, arrays=arrays)


def _merge_peft(checkpoint: Checkpoint, changes: peft.Changes, path: str, text_only: bool) -> Mapping[str, LazyArray]:
    config, arrays = checkpoint.config, dict(checkpoint.arrays)
    base = dict(hf_names.cores_from_canonical(arrays, config))
    base[peft.HEAD] = base[_TABLE]  # Gemma's output head is its embedding table

    def fitted(changed: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
        result = {}
        for core, array in changed.items():
            if text_only and core.startswith(("vision.", "projector.")):
                continue
            if core in (_TABLE, peft.HEAD) and array.shape[0] == config.vocab_size + hf_names.EXTRA_ROWS:
                array = array.crop(0, 0, config.vocab_size)
            result[core] = array
        expected = {core: base[core].shape for core in result if core in base}
        found = {core: array.shape for core, array in result.items()}
        names.check(expected, found, f"{path}: does not fit {checkpoint.path}")
        return result

    merged = fitted(changes.replaced)
    for core, delta in fitted(changes.deltas).items():
        merged[core] = Sum(merged.get(core, base[core]), delta)
    table, head = merged.get(_TABLE, base[_TABLE]), merged.pop(peft.HEAD, base[_TABLE])
    if table is not head and not equal(table, head):
        raise CheckpointError(
            f"{path}: gives the output head (lm_head) weights that differ from the embedding table's, which Gemma 3 "
            "models here use for both: train it without embed_tokens and lm_head among target_modules and "
            "modules_to_save, or with ensure_weight_tying"
        )
    return arrays | hf_names.changed_rows(merged, base, config)


def _merge_tree(checkpoint: Checkpoint, located: str, asked: str, text_only: bool) -> Mapping[str, LazyArray]:
    listed = orbax.list_arrays(located)
    tree = trees.find(listed.specs)
    if tree is None or tree.kind != "adapter":
        holds = "a whole model: load that by itself" if tree else ", ".join(sorted(listed.specs)[:3])
        raise CheckpointError(f"{located}: no adapter; it holds {holds}")
    opened = orbax.open_arrays(listed, list(tree.stored.values()))
    alpha = flax_lora.stored_alpha(storage.upward(located, asked)) if flax_lora.needs_alpha(tree.stored) else None
    deltas = trees.deltas(tree, opened, checkpoint.config, located, alpha)
    if text_only:
        deltas = {name: delta for name, delta in deltas.items() if not names.is_multimodal(name)}
    return flax_lora.merge(checkpoint.arrays, deltas, located)
