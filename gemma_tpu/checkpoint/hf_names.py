"""Hugging Face's parameter names: their prefixes, and the table that maps them to canonical names and layouts.

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
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from gemma_tpu.checkpoint import lazy
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.names import OUTPUT_HEAD, SIGLIP, Arrays, Shapes, canonical_shapes
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
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"


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


class _Layout(NamedTuple):
    """Conversions of an array's layout; `from_hf` also takes the canonical shape."""

    to_hf: Callable[[LazyArray], LazyArray]
    from_hf: Callable[[LazyArray, tuple[int, ...]], LazyArray]


_SAME = _Layout(lambda a: a, lambda a, _: a)
_TRANSPOSED = _Layout(lambda a: a.transpose(1, 0), lambda a, _: a.transpose(1, 0))
# [N,D,H] ↔ [NH,D]
_HEADS_IN = _Layout(
    lambda a: a.transpose(0, 2, 1).merge(0), lambda a, shape: a.split(0, (shape[0], shape[2])).transpose(0, 2, 1)
)
# [N,H,D] ↔ [D,NH]
_HEADS_OUT = _Layout(lambda a: a.merge(0).transpose(1, 0), lambda a, shape: a.transpose(1, 0).split(0, shape[:2]))
# [E,n,h] ↔ [nh,E]
_VISION_IN = _Layout(lambda a: a.merge(1).transpose(1, 0), lambda a, shape: a.transpose(1, 0).split(1, shape[1:]))
_BIAS = _Layout(lambda a: a.merge(0), lambda a, shape: a.split(0, (shape[0], shape[1])))  # [n,h] ↔ [nh]
_PATCH = _Layout(lambda a: a.transpose(3, 2, 0, 1), lambda a, _: a.transpose(2, 3, 1, 0))  # [p,p,3,E] ↔ [E,3,p,p]
_FIRST = _Layout(lambda a: a.take(0, 0), lambda a, _: a.expand(0))  # [1,P,E] ↔ [P,E]


class _Row(NamedTuple):
    """A canonical name and its cores: several if they are stacked along its first axis."""

    canonical: str
    cores: tuple[str, ...]
    layout: _Layout


_LAYER = [
    _Row("pre_attention_norm/scale", ("input_layernorm.weight",), _SAME),
    _Row("post_attention_norm/scale", ("post_attention_layernorm.weight",), _SAME),
    _Row("pre_ffw_norm/scale", ("pre_feedforward_layernorm.weight",), _SAME),
    _Row("post_ffw_norm/scale", ("post_feedforward_layernorm.weight",), _SAME),
    _Row("attn/_query_norm/scale", ("self_attn.q_norm.weight",), _SAME),
    _Row("attn/_key_norm/scale", ("self_attn.k_norm.weight",), _SAME),
    _Row("attn/attn_vec_einsum/w", ("self_attn.o_proj.weight",), _HEADS_OUT),
    _Row("mlp/gating_einsum", ("mlp.gate_proj.weight", "mlp.up_proj.weight"), _SAME),
    _Row("mlp/linear", ("mlp.down_proj.weight",), _TRANSPOSED),
]
_Q, _K, _V = (f"self_attn.{part}_proj.weight" for part in "qkv")
_GROUPED = [_Row("attn/q_einsum/w", (_Q,), _HEADS_IN), _Row("attn/kv_einsum/w", (_K, _V), _HEADS_IN)]
_UNGROUPED = [_Row("attn/qkv_einsum/w", (_Q, _K, _V), _HEADS_IN)]
_MHA = "MultiHeadDotProductAttention_0"
_BLOCK = [
    *(
        _Row(f"LayerNorm_{n}/{ours}", (f"layer_norm{n + 1}.{theirs}",), _SAME)
        for n in (0, 1)
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    ),
    *(_Row(f"{_MHA}/{p}/kernel", (f"self_attn.{p[0]}_proj.weight",), _VISION_IN) for p in ("query", "key", "value")),
    *(_Row(f"{_MHA}/{p}/bias", (f"self_attn.{p[0]}_proj.bias",), _BIAS) for p in ("query", "key", "value")),
    _Row(f"{_MHA}/out/kernel", ("self_attn.out_proj.weight",), _HEADS_OUT),
    _Row(f"{_MHA}/out/bias", ("self_attn.out_proj.bias",), _SAME),
    *(_Row(f"MlpBlock_0/Dense_{n}/kernel", (f"mlp.fc{n + 1}.weight",), _TRANSPOSED) for n in (0, 1)),
    *(_Row(f"MlpBlock_0/Dense_{n}/bias", (f"mlp.fc{n + 1}.bias",), _SAME) for n in (0, 1)),
]
_VISION_REST = [
    _Row(f"{SIGLIP}/embedding/kernel", ("vision.embeddings.patch_embedding.weight",), _PATCH),
    _Row(f"{SIGLIP}/embedding/bias", ("vision.embeddings.patch_embedding.bias",), _SAME),
    _Row(f"{SIGLIP}/pos_embedding", ("vision.embeddings.position_embedding.weight",), _FIRST),
    _Row(f"{SIGLIP}/Transformer/encoder_norm/scale", ("vision.post_layernorm.weight",), _SAME),
    _Row(f"{SIGLIP}/Transformer/encoder_norm/bias", ("vision.post_layernorm.bias",), _SAME),
    _Row("embedder/mm_soft_embedding_norm/scale", ("projector.mm_soft_emb_norm.weight",), _SAME),
    _Row("embedder/mm_input_projection/w", ("projector.mm_input_projection_weight",), _SAME),
]


def _rows(config: GemmaConfig) -> Iterator[_Row]:
    yield _Row("embedder/input_embedding", (TABLE,), _SAME)
    if not config.tied_head:
        yield _Row(OUTPUT_HEAD, (HEAD,), _SAME)
    for i in range(config.num_layers):
        for row in (*_LAYER, *(_UNGROUPED if config.num_kv_heads == config.num_heads else _GROUPED)):
            yield _Row(f"layer_{i}/{row.canonical}", tuple(f"layers.{i}.{c}" for c in row.cores), row.layout)
    yield _Row("final_norm/scale", ("norm.weight",), _SAME)
    if config.vision:
        for i in range(config.vision.depth):
            prefix = f"{SIGLIP}/Transformer/encoderblock_{i}"
            for row in _BLOCK:
                names = tuple(f"vision.encoder.layers.{i}.{c}" for c in row.cores)
                yield _Row(f"{prefix}/{row.canonical}", names, row.layout)
        yield from _VISION_REST


def core_shapes(config: GemmaConfig) -> Shapes:
    """Shapes of all parameters by core, without extra embedding rows."""
    zeros: Arrays = {name: lazy.Zeros(shape, lazy.FLOAT32) for name, shape in canonical_shapes(config).items()}
    return {name: array.shape for name, array in cores_from_canonical(zeros, config)}


def canonical_from_cores(found: Mapping[str, LazyArray], config: GemmaConfig) -> Arrays:
    """Canonical arrays as views of arrays by core, whose shapes must be `core_shapes`."""
    shapes = canonical_shapes(config)
    canonical = {row.canonical: _from_cores(row, found, shapes[row.canonical]) for row in _rows(config)}
    return {name: canonical[name] for name in shapes}


def changed_rows(changed: Mapping[str, LazyArray], base: Mapping[str, LazyArray], config: GemmaConfig) -> Arrays:
    """The canonical arrays with a core in `changed`; `base` provides their other cores."""
    shapes, found = canonical_shapes(config), {**base, **changed}
    return {
        row.canonical: _from_cores(row, found, shapes[row.canonical])
        for row in _rows(config)
        if not changed.keys().isdisjoint(row.cores)
    }


def _from_cores(row: _Row, found: Mapping[str, LazyArray], shape: tuple[int, ...]) -> LazyArray:
    if len(row.cores) == 1:
        return row.layout.from_hf(found[row.cores[0]], shape)
    return lazy.stack([row.layout.from_hf(found[name], shape[1:]) for name in row.cores])


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
    for row in _rows(config):
        array = canonical[row.canonical]
        if len(row.cores) == 1:
            yield row.cores[0], row.layout.to_hf(array)
        else:
            for index, name in enumerate(row.cores):
                yield name, row.layout.to_hf(array.take(0, index))
