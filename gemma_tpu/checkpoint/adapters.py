"""Adapters: merging one into the checkpoint that it was trained on, and saying which that is."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

from gemma_tpu.checkpoint import checksums, flax_lora, hf, hf_names, names, orbax, peft, redundant, storage, trees
from gemma_tpu.checkpoint.arithmetic import Sum
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.hf_names import HEAD, TABLE
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.locate import locate
from gemma_tpu.checkpoint.source import Checkpoint


def merge_adapter(checkpoint: Checkpoint, path: str, *, text_only: bool = False, verify: bool = False) -> Checkpoint:
    """`checkpoint` with a low-rank adapter merged: each weight W becomes W + scale·B·A as it is read.

    The sum is formed in float32 and rounded to the dtype in which W is stored. `path`: a directory of peft, or an Orbax
    checkpoint of gemma's or qwix's LoRA parameters. With `text_only`, what adapts the vision tower is left out with it.
    With `verify`, its files are first compared with their checksums, where those are known.

    Raises `CheckpointError` if `path` is no adapter, if its kind of LoRA is not known, and if any of it has no place in
    this checkpoint. Files of a tokenizer and a chat template that lie beside an adapter of peft come before the base's:
    it was trained with them.
    """
    path = storage.normalise(path)
    if storage.is_file(path):
        raise CheckpointError(
            f"{path}: no adapter: a file; give a directory, with adapter_config.json and the weights, or an Orbax one"
        )
    if verify:
        checksums.compare(checksums.listed(path))
    found = storage.entries(path)
    located = path if peft.is_adapter(found) else locate(path, found)
    entries = storage.entries(located) if located else set()
    if located and peft.is_adapter(entries):
        return _merge_peft(checkpoint, peft.read(located), located, text_only)
    if located and not hf.is_hf(entries):
        return _merge_tree(checkpoint, located, path, text_only)
    holds = ", ".join(sorted(found)[:5]) or "nothing, or does not exist"
    raise CheckpointError(f"{path}: no adapter: neither adapter_config.json and weights, nor Orbax; it has {holds}")


def _merge_peft(checkpoint: Checkpoint, changes: peft.Changes, path: str, text_only: bool) -> Checkpoint:
    config = checkpoint.config
    base = dict(hf_names.cores_from_canonical(checkpoint.arrays, config))
    # While an adapter is trained, a head that is tied to the table keeps the table's weights as they were.
    base.setdefault(HEAD, base[TABLE])

    def fitted(changed: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
        result = {}
        for core, array in changed.items():
            if text_only and hf_names.is_multimodal(core):
                continue
            if core in (TABLE, HEAD) and array.shape[0] == config.vocab_size + hf_names.EXTRA_ROWS:
                array = array.crop(0, 0, config.vocab_size)
            result[core] = array
        expected = {core: base[core].shape for core in result if core in base}
        found = {core: array.shape for core, array in result.items()}
        names.check(expected, found, f"{path}: does not fit {checkpoint.path}")
        return result

    merged = fitted(changes.replaced)
    for core, delta in fitted(changes.deltas).items():
        merged[core] = Sum(merged.get(core, base[core]), delta)
    table, head = (merged.get(core, base[core]) for core in (TABLE, HEAD))
    if config.tied_head and table is not head:
        if redundant.equal(table, head):
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
    return dataclasses.replace(checkpoint, arrays=flax_lora.merge(checkpoint.arrays, deltas, located))
