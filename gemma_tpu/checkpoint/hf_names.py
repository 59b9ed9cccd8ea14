"""Hugging Face's parameter names: their prefixes, and conversions to and from canonical arrays by `parameters`.

| where | text | vision | projector |
|---|---|---|---|
| released multimodal files | language_model.model. | vision_tower.vision_model. | multi_modal_projector. |
| written by transformers 5 | language_model.model. | vision_tower. | multi_modal_projector. |
| in memory, transformers 5 | model.language_model. | model.vision_tower. | model.multi_modal_projector. |
| text-only files | model. | | |
| untied output head | (language_model.)lm_head. | | |
| ShieldGemma 2, transformers 5 | model.model.language_model.model. | model.model.vision_tower. | … |

Programs that wrap a model before saving it add further parts (`_WRAPPERS`). A name without prefixes and wrappers is
called its core, which all of these share. Vision and projector cores begin with `vision.` and `projector.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gemma_tpu.checkpoint import lazy
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.names import Arrays, Shapes, shapes, zeros
from gemma_tpu.checkpoint.parameters import HEAD, TABLE, Parameter, parameters
from gemma_tpu.config import GemmaConfig

EXTRA_ROWS = 64  # unused rows after the vocabulary in Hugging Face's multimodal embedding tables

# Attributes in which the wrappers of distributed training, torch.compile, activation checkpointing and PEFT store the
# wrapped module (torch: nn/parallel/distributed.py, _dynamo/eval_frame.py, fsdp/_common_utils.py,
# algorithms/_checkpoint/checkpoint_wrapper.py; lightning: fabric/wrappers.py; peft: peft_model.py).
_WRAPPERS = {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "base_model")
}
_PREFIX = r"(?:(?:model|language_model|transformer)\.)*"
_TEXT = re.compile(_PREFIX + r"((?:layers\.\d+\.|embed_tokens\.|norm\.|lm_head\.).+)")
_VISION = re.compile(_PREFIX + r"vision_tower\.(?:vision_model\.)?(.+)")
_PROJECTOR = re.compile(_PREFIX + r"multi_modal_projector\.(.+)")
# Buffers derived from the config, which some versions stored (transformers: models/gemma3, models/siglip).
_BUFFER = re.compile(r"(?:.*\.)?(?:rotary_emb\w*\.\w*inv_freq|embeddings\.position_ids|embed_scale)")


def core(name: str) -> str:
    """A stored name without prefixes and wrappers; an unknown name as it is."""
    bare = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    if match := _VISION.fullmatch(bare):
        return f"vision.{match[1]}"
    if match := _PROJECTOR.fullmatch(bare):
        return f"projector.{match[1]}"
    match = _TEXT.fullmatch(bare)
    return match[1] if match else name


def is_multimodal(core: str) -> bool:
    """Whether a core belongs to the vision tower or the projection of its output."""
    return core.startswith(("vision.", "projector."))


class Cores(NamedTuple):
    """`arrays` and `stored` (the stored name) by core; `buffers` by stored name."""

    arrays: Arrays
    stored: dict[str, str]
    buffers: Arrays


def cores(arrays: Mapping[str, LazyArray], path: str) -> Cores:
    found = Cores({}, {}, {})
    for name, array in arrays.items():
        if _BUFFER.fullmatch(name):
            found.buffers[name] = array
            continue
        if (key := core(name)) in found.arrays:
            raise CheckpointError(f"{path}: {found.stored[key]} and {name} name the same parameter")
        found.arrays[key], found.stored[key] = array, name
    return found


def core_shapes(config: GemmaConfig) -> Shapes:
    """Shapes of all parameters by core, without extra embedding rows."""
    return shapes(dict(cores_from_canonical(zeros(config), config)))


def canonical_from_cores(found: Mapping[str, LazyArray], config: GemmaConfig) -> Arrays:
    """Canonical arrays as views of arrays by core, whose shapes must be `core_shapes`."""
    return {row.canonical: _from_cores(row, found) for row in parameters(config)}


def changed_rows(changed: Mapping[str, LazyArray], base: Mapping[str, LazyArray], config: GemmaConfig) -> Arrays:
    """The canonical arrays with a core in `changed`; `base` provides their other cores."""
    rows = (row for row in parameters(config) if not changed.keys().isdisjoint(row.cores))
    return {row.canonical: _from_cores(row, {**base, **changed}) for row in rows}


def _from_cores(row: Parameter, found: Mapping[str, LazyArray]) -> LazyArray:
    if len(row.cores) == 1:
        return row.layout.from_hf(found[row.cores[0]], row.shape)
    return lazy.stack([row.layout.from_hf(found[name], row.shape[1:]) for name in row.cores])


def hf_from_canonical(
    canonical: Mapping[str, LazyArray], config: GemmaConfig, table_rows: int, prefix: str = ""
) -> Arrays:
    """Arrays by the names of the released files, which transformers 4.50 and later load.

    `table_rows`: rows to zero-pad the embedding table and an untied head to. `prefix`: prepended to every name.
    """
    named: Arrays = {}
    for name, array in cores_from_canonical(canonical, config):
        if name.startswith("vision."):
            named[f"vision_tower.vision_model.{name.removeprefix('vision.')}"] = array
        elif name.startswith("projector."):
            named[f"multi_modal_projector.{name.removeprefix('projector.')}"] = array
        else:
            if name in (TABLE, HEAD):
                array = array.pad(0, table_rows)
            named[("language_model." if config.vision else "") + ("" if name == HEAD else "model.") + name] = array
    return {prefix + name: array for name, array in named.items()}


def cores_from_canonical(canonical: Mapping[str, LazyArray], config: GemmaConfig) -> Iterator[tuple[str, LazyArray]]:
    """Yields each core and its array, as a view of the canonical arrays."""
    for row in parameters(config):
        array = canonical[row.canonical]
        if len(row.cores) == 1:
            yield row.cores[0], row.layout.to_hf(array)
        else:
            for index, name in enumerate(row.cores):
                yield name, row.layout.to_hf(array.take(0, index))
