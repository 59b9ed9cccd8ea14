"""Names and layouts of Gemma 3's tensors in GGUF files, as cores (`hf_names`).

llama.cpp writes text and vision to files of their own (its conversion/gemma.py, gguf-py/gguf/tensor_mapping.py), Ollama
writes one (its convert/convert_gemma3.go). What differs from Hugging Face's tensors besides the name:

- RMSNorms of the text, and the one of the soft tokens, are stored as 1 + w.
- In llama.cpp's vision files `ffn_down` may be the first matrix of the mlp and `ffn_up` the second (its
  tools/mtmd/clip.cpp, is_ffn_swapped).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from gemma_tpu.checkpoint import lazy
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.hf_names import is_multimodal
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.names import Arrays
from gemma_tpu.checkpoint.parameters import HEAD, TABLE

_EMBEDDINGS = "vision.embeddings"
_TOP = {
    "token_embd.weight": TABLE,
    "output.weight": HEAD,
    "output_norm.weight": "norm.weight",
    "v.patch_embd.weight": f"{_EMBEDDINGS}.patch_embedding.weight",
    "v.patch_embd.bias": f"{_EMBEDDINGS}.patch_embedding.bias",
    "v.position_embd.weight": f"{_EMBEDDINGS}.position_embedding.weight",
    "v.post_ln.weight": "vision.post_layernorm.weight",
    "v.post_ln.bias": "vision.post_layernorm.bias",
    "mm.input_projection.weight": "projector.mm_input_projection_weight",
    "mm.soft_emb_norm.weight": "projector.mm_soft_emb_norm.weight",
}
_TEXT = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_UP, _DOWN = "ffn_up", "ffn_down"
_VISION = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    _UP: "mlp.fc1",
    _DOWN: "mlp.fc2",
}
_OLLAMA_TOP = {
    "v.patch_embedding.weight": f"{_EMBEDDINGS}.patch_embedding.weight",
    "v.patch_embedding.bias": f"{_EMBEDDINGS}.patch_embedding.bias",
    "v.position_embedding.weight": f"{_EMBEDDINGS}.position_embedding.weight",
    "v.post_layernorm.weight": "vision.post_layernorm.weight",
    "v.post_layernorm.bias": "vision.post_layernorm.bias",
    "mm.mm_input_projection.weight": "projector.mm_input_projection_weight",
    "mm.mm_soft_emb_norm.weight": "projector.mm_soft_emb_norm.weight",
}
_OLLAMA_VISION = {
    **{name: name for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")},
    "attn_output": "self_attn.out_proj",
}
_LAYER = re.compile(r"(v\.)?blk\.(\d+)\.(.+)\.(weight|bias)")


def cores(arrays: Mapping[str, LazyArray], path: str, width: int | None) -> tuple[Arrays, dict[str, str]]:
    """Arrays and stored names by core. `width`: the vision tower's E, None without one. Unknown names stay."""
    found: Arrays = {}
    stored: dict[str, str] = {}
    for name, array in arrays.items():
        key = _core(name, _is_swapped(name, arrays, width))
        if key in found:
            raise CheckpointError(f"{path}: {stored[key]} and {name} name the same parameter")
        shifted = key.endswith("norm.weight") and (not is_multimodal(key) or key.startswith("projector."))
        found[key] = lazy.elementwise(lambda values: values - np.float32(1), lazy.FLOAT32, array) if shifted else array
        stored[key] = name
    return found, stored


def stored_name(core: str) -> str:
    """llama.cpp's name of a core; an unknown one as it is."""
    if core in _TOP.values():
        return next(name for name, known in _TOP.items() if known == core)
    if match := re.fullmatch(r"(vision\.encoder\.)?layers\.(\d+)\.(.+)\.(weight|bias)", core):
        table = _VISION if match[1] else _TEXT
        for name, known in table.items():
            if known == match[3]:
                return f"{'v.' if match[1] else ''}blk.{match[2]}.{name}.{match[4]}"
    return core


def _core(name: str, swapped: bool) -> str:
    if known := _TOP.get(name) or _OLLAMA_TOP.get(name):
        return known
    if match := _LAYER.fullmatch(name):
        vision, layer, part, kind = match.groups()
        if swapped:
            part = {_UP: _DOWN, _DOWN: _UP}.get(part, part)
        known = {**_VISION, **_OLLAMA_VISION}.get(part) if vision else _TEXT.get(part)
        if known:
            return f"{'vision.encoder.' if vision else ''}layers.{layer}.{known}.{kind}"
    return name


def _is_swapped(name: str, arrays: Mapping[str, LazyArray], width: int | None) -> bool:
    """Whether the two matrices in the mlp of a vision block are called by each other's names."""
    if width is None or not name.startswith("v.blk."):
        return False
    down = arrays.get(f"{'.'.join(name.split('.')[:3])}.{_DOWN}.weight")
    return down is not None and down.shape[-1] == width
