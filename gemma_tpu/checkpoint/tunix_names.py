"""Parameter names of tunix's Gemma 3, an NNX model (google/tunix, tunix/models/gemma3/{model,vision,params}.py).

| tunix | canonical (Google) |
|---|---|
| layers/{i}/… | layer_{i}/… |
| mlp/{gate,up}_proj/kernel [D,F] | mlp/gating_einsum [2,F,D] |
| mlp/down_proj/kernel [F,D] | mlp/linear [F,D] |
| transformer/blocks/{i}/ln{1,2}/… | Transformer/encoderblock_{i}/LayerNorm_{0,1}/… |
| attn/{query,key,value}_proj/kernel [E,nh] | MultiHeadDotProductAttention_0/{query,key,value}/kernel [E,n,h] |
| attn/out_proj/kernel [nh,E] | MultiHeadDotProductAttention_0/out/kernel [n,h,E] |
| mlp/fc{1,2}/… | MlpBlock_0/Dense_{0,1}/… |

All other names are those of Google's nested layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gemma_tpu.checkpoint import lazy, names
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.parameters import SIGLIP
from gemma_tpu.config import VisionConfig

_GATE, _UP = "mlp/gate_proj/kernel", "mlp/up_proj/kernel"
_LAYER = {"mlp/down_proj/kernel": "mlp/linear", "post_attn_norm/scale": "post_attention_norm/scale"}
_VISION = f"{SIGLIP}/transformer/"
_MHA = "MultiHeadDotProductAttention_0"


def is_tunix(found: Iterable[str]) -> bool:
    """Whether the names below the root of a tree are those of tunix."""
    return any(re.match(r"layers/\d+/", name) for name in found)


def canonical(arrays: Mapping[str, LazyArray]) -> names.Arrays:
    """Canonical arrays of a tunix tree. The heads of its vision tower stay merged, see `split_heads`."""
    found: names.Arrays = {}
    for name, array in arrays.items():
        if match := re.fullmatch(r"layers/(\d+)/(.+)", name):
            layer, rest = match.groups()
            gate, up = f"layers/{layer}/{_GATE}", f"layers/{layer}/{_UP}"
            if rest in (_GATE, _UP) and gate in arrays and up in arrays:
                pair = [arrays[gate].transpose(1, 0), arrays[up].transpose(1, 0)]
                found[f"layer_{layer}/mlp/gating_einsum"] = lazy.stack(pair)
            else:
                found[f"layer_{layer}/{_LAYER.get(rest, rest)}"] = array
        elif name.startswith(_VISION):
            found[_canonical_vision_name(name.removeprefix(_VISION))] = array
        else:
            found[name] = array
    return found


def _canonical_vision_name(name: str) -> str:
    name = re.sub(r"^blocks/(\d+)/", r"encoderblock_\1/", name)
    name = re.sub(r"/ln(\d)/", lambda match: f"/LayerNorm_{int(match[1]) - 1}/", name)
    name = re.sub(r"/mlp/fc(\d)/", lambda match: f"/MlpBlock_0/Dense_{int(match[1]) - 1}/", name)
    name = re.sub(r"/attn/(query|key|value|out)_proj/", rf"/{_MHA}/\1/", name)
    return f"{SIGLIP}/Transformer/{name}"


def split_heads(arrays: Mapping[str, LazyArray], config: VisionConfig) -> names.Arrays:
    """Splits the merged heads axes of tunix's vision tower into the heads of `config`."""
    width, heads = config.width, (config.num_heads, config.head_dim)

    def split(name: str, array: LazyArray) -> LazyArray:
        match = re.search(rf"/{_MHA}/(?:(query|key|value)/(kernel|bias)|out/kernel)$", name)
        if match is None or len(array.shape) != (1 if match[2] == "bias" else 2):
            return array
        axis = 1 if match[2] == "kernel" else 0
        return array.split(axis, heads) if array.shape[axis] == width else array

    return {name: split(name, array) for name, array in arrays.items()}


def add_zero_deltas(deltas: Mapping[str, LazyArray]) -> names.Arrays:
    """Adds a zero delta where only one of a layer's `gate_proj` and `up_proj` has one."""
    zeros: names.Arrays = {}
    for name, array in deltas.items():
        for part, other in ((_GATE, _UP), (_UP, _GATE)):
            if name.endswith(f"/{part}"):
                zeros[name.removesuffix(part) + other] = lazy.Zeros(array.shape, array.dtype)
    return {**zeros, **deltas}
