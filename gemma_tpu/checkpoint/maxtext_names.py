"""MaxText's parameter names for Gemma 3, and what it stores differently.

Read in maxtext 0.2.5: `GEMMA3_MAXTEXT_TO_HF_PARAM_MAPPING`, `…_HOOK_FN` (checkpoint_conversion/utils/param_mapping.py)
and standalone_scripts/convert_gemma3_chkpt.py.

| MaxText | canonical (Google) |
|---|---|
| token_embedder/embedding [V,D], times √D in bfloat16 | embedder/input_embedding [V,D] |
| decoder/decoder_norm/scale | final_norm/scale |
| {pre,post}_self_attention_norm, {pre,post}_ffw_norm | {pre,post}_attention_norm, the same |
| self_attention/{query,key}_norm/scale | attn/_{query,key}_norm/scale |
| self_attention/query/kernel [D,N,H] | attn/q_einsum/w [N,D,H] |
| self_attention/{key,value}/kernel [D,K,H] | attn/kv_einsum/w [2,K,D,H] |
| self_attention/out/kernel [N,H,D] | attn/attn_vec_einsum/w [N,H,D] |
| mlp/wi_{0,1}/kernel [D,F] | mlp/gating_einsum [2,F,D] |
| mlp/wo/kernel [F,D] | mlp/linear [F,D] |
| vision_encoder/Gemma3VisionEncoderLayer_0, MlpBlockViT_0 | vision_encoder/siglip_encoder, MlpBlock_0 |
| vision_encoder/VisionEmbedder_0/mm_… | embedder/mm_… |

RMS norms (not the vision tower's layer norms) are stored as 1 + scale. Layers are `decoder/layers_{i}`, or stacked: in
`decoder/layers/layers_{t}` lie layers t, t + 6, … along the axis `param_scan_axis`, the second by default, and those
behind the last whole six in `decoder/layers_remainder/layers_{t}`. Older conversions stack all layers in
`decoder/layers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from gemma_tpu.checkpoint import lazy, names
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.parameters import SIGLIP

_SCANNED = 6  # layers that MaxText scans over together
EMBEDDING = "token_embedder/embedding"  # in every tree of MaxText, below its root
_LAYER = {
    "pre_self_attention_norm/scale": "pre_attention_norm/scale",
    "post_self_attention_norm/scale": "post_attention_norm/scale",
    "self_attention/query_norm/scale": "attn/_query_norm/scale",
    "self_attention/key_norm/scale": "attn/_key_norm/scale",
    "self_attention/out/kernel": "attn/attn_vec_einsum/w",
    "mlp/wo/kernel": "mlp/linear",
}
_QKV = tuple(f"self_attention/{part}/kernel" for part in ("query", "key", "value"))
_GATING = ("mlp/wi_0/kernel", "mlp/wi_1/kernel")


def canonical(arrays: Mapping[str, LazyArray]) -> names.Arrays:
    """Canonical names and values for the arrays of a MaxText tree; a name that is not known is left as it is."""
    found: names.Arrays = {}
    layers: dict[int, names.Arrays] = {}
    width = arrays[EMBEDDING].shape[-1]
    for name, array in arrays.items():
        if name == EMBEDDING:
            factor = np.float32(ml_dtypes.bfloat16(width**0.5))
            found["embedder/input_embedding"] = lazy.elementwise(
                lambda x, by=factor: x.astype(np.float32) / by, array.dtype, array
            )
        elif name == "decoder/decoder_norm/scale":
            found["final_norm/scale"] = _norm(array)
        elif name.startswith("decoder/layers"):
            for layer, rest, part in _layers(name, arrays, width):
                layers.setdefault(layer, {})[rest] = part
        else:
            name = name.replace("vision_encoder/Gemma3VisionEncoderLayer_0/", f"{SIGLIP}/")
            name = name.replace("/MlpBlockViT_0/", "/MlpBlock_0/")
            name = name.replace("vision_encoder/VisionEmbedder_0/", "embedder/")
            found[name] = _norm(array) if name == "embedder/mm_soft_embedding_norm/scale" else array
    for layer, parts in layers.items():
        found |= {f"layer_{layer}/{name}": array for name, array in _layer(parts)}
    return found


def _norm(array: LazyArray) -> LazyArray:
    # In float32, because the dtype that holds 1 + scale need not hold scale.
    return lazy.elementwise(lambda x: x.astype(np.float32) - 1, lazy.FLOAT32, array)


def _layers(name: str, arrays: Mapping[str, LazyArray], width: int) -> Iterator[tuple[int, str, LazyArray]]:
    """The layers whose parameters `name` holds: each layer's number, the name within it, and its array."""
    array = arrays[name]
    if match := re.fullmatch(r"decoder/layers_(\d+)/(.+)", name):
        yield int(match[1]), match[2], array
    elif match := re.fullmatch(r"decoder/layers_remainder/layers_(\d+)/(.+)", name):
        scanned = arrays.get("decoder/layers/layers_0/pre_ffw_norm/scale")
        before = 0 if scanned is None else scanned.shape[_stacked_axis(scanned, width)] * _SCANNED
        yield before + int(match[1]), match[2], array
    elif match := re.fullmatch(r"decoder/layers/(?:layers_(\d+)/)?(.+)", name):
        first, every = (int(match[1]), _SCANNED) if match[1] else (0, 1)
        norm = arrays.get(f"{name.removesuffix(match[2])}pre_ffw_norm/scale")
        axis = 1 if norm is None else _stacked_axis(norm, width)
        for s in range(array.shape[axis]):
            yield first + s * every, match[2], array.take(axis, s)


def _stacked_axis(norm: LazyArray, width: int) -> int:
    return 1 if norm.shape[0] == width else 0


def _layer(parts: Mapping[str, LazyArray]) -> Iterator[tuple[str, LazyArray]]:
    parts = dict(parts)
    if all(name in parts for name in _GATING):
        yield "mlp/gating_einsum", lazy.stack([parts.pop(name).transpose(1, 0) for name in _GATING])
    if all(name in parts for name in _QKV):
        query, key, value = (parts.pop(name).transpose(1, 0, 2) for name in _QKV)
        if query.shape == key.shape:
            yield "attn/qkv_einsum/w", lazy.stack([query, key, value])
        else:
            yield "attn/q_einsum/w", query
            yield "attn/kv_einsum/w", lazy.stack([key, value])
    for name, array in parts.items():
        yield _LAYER.get(name, name), _norm(array) if name.endswith("_norm/scale") else array
