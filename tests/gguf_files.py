"""GGUF files of small checkpoints, written with the gguf package as llama.cpp's converter and Ollama's write them.

The names are written down here once more, from gguf-py/gguf/tensor_mapping.py and Ollama's convert/convert_gemma3.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from sentencepiece import sentencepiece_model_pb2 as proto

from gemma_tpu.config import GemmaConfig, VisionConfig

_TEXT = [
    (r"(?:language_model\.)?model\.", ""),
    (r"embed_tokens\.", "token_embd."),
    (r"^norm\.", "output_norm."),
    (r"lm_head\.", "output."),
    (r"layers\.", "blk."),
    (r"input_layernorm", "attn_norm"),
    (r"self_attn\.o_proj", "attn_output"),
    (r"self_attn\.([qkv])_proj", r"attn_\1"),
    (r"self_attn\.([qk])_norm", r"attn_\1_norm"),
    (r"post_attention_layernorm", "post_attention_norm"),
    (r"pre_feedforward_layernorm", "ffn_norm"),
    (r"post_feedforward_layernorm", "post_ffw_norm"),
    (r"mlp\.(gate|up|down)_proj", r"ffn_\1"),
]
_LLAMA_VISION = [
    (r"vision_tower\.vision_model\.(embeddings\.)?", "v."),
    (r"encoder\.layers\.", "blk."),
    (r"patch_embedding", "patch_embd"),
    (r"position_embedding", "position_embd"),
    (r"post_layernorm", "post_ln"),
    (r"layer_norm", "ln"),
    (r"self_attn\.out_proj", "attn_out"),
    (r"self_attn\.([qkv])_proj", r"attn_\1"),
    (r"mlp\.fc1", "ffn_up"),
    (r"mlp\.fc2", "ffn_down"),
    (r"multi_modal_projector\.mm_input_projection_weight", "mm.input_projection.weight"),
    (r"multi_modal_projector\.mm_soft_emb_norm", "mm.soft_emb_norm"),
]
_OLLAMA_VISION = [
    (r"vision_tower\.vision_model\.(embeddings\.)?", "v."),
    (r"encoder\.layers\.", "blk."),
    (r"self_attn\.out_proj", "attn_output"),
    (r"self_attn\.([qkv])_proj", r"attn_\1"),
    (r"multi_modal_projector\.mm_input_projection_weight", "mm.mm_input_projection.weight"),
    (r"multi_modal_projector\.", "mm."),
]

# The type of a tensor, by its name and values.
TypeOf = Callable[[str, np.ndarray], Type]


def all_of(kind: Type) -> TypeOf:
    """Matrices of text are of one type, all else float32, as llama-quantize writes them."""
    return lambda name, array: kind if array.ndim == 2 and not name.startswith(("v.", "mm.")) else Type.F32


def is_vision(name: str) -> bool:
    return name.startswith(("vision_tower.", "multi_modal_projector."))


def renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def tensors(hf: Mapping[str, np.ndarray], *, vision: bool, ollama: bool = False) -> dict[str, np.ndarray]:
    """The text's tensors of a Hugging Face checkpoint, or the vision tower's, by their names in GGUF files."""
    rules = _TEXT if not vision else _OLLAMA_VISION if ollama else _LLAMA_VISION
    found = {}
    for name, array in hf.items():
        if is_vision(name) == vision:
            shift = name.endswith("norm.weight") and not name.startswith("vision_tower.")
            found[renamed(name, rules)] = array.astype(np.float32) + np.float32(1 if shift else 0)
    return found


def write(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    type_of: TypeOf = all_of(Type.F32),
    *,
    architecture: str = "gemma3",
    packed: Mapping[str, tuple[np.ndarray, Type]] | None = None,
    **split: Any,
) -> Path:
    """`packed`: blocks that gguf cannot make, by name, instead of what `arrays` holds."""
    writer = GGUFWriter(path, architecture, **split)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            (writer.add_uint32 if 0 <= value < 2**32 else writer.add_int64 if value < 0 else writer.add_uint64)(
                key, value
            )
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value:
            writer.add_array(key, value)
    for name, array in arrays.items():
        if packed and name in packed:
            data, kind = packed[name]
        else:
            kind = type_of(name, array)
            data = gguf.quants.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text_metadata(config: GemmaConfig) -> dict[str, Any]:
    """As of llama.cpp's converter."""
    local = [layer for layer in config.layers if layer.window is not None]
    whole = [layer for layer in config.layers if layer.window is None]
    values: dict[str, Any] = {
        "context_length": config.max_context,
        "embedding_length": config.embed_dim,
        "block_count": config.num_layers,
        "feed_forward_length": config.hidden_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": whole[0].rope_base if whole else 1e6,
    }
    if local:
        values["attention.sliding_window"] = local[0].window
    if whole and whole[0].rope_scale != 1:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": whole[0].rope_scale}
    return {f"gemma3.{key}": value for key, value in values.items()}


def _tower(vision: VisionConfig) -> dict[str, Any]:
    return {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embedding_length": vision.width,
        "feed_forward_length": vision.mlp_dim,
        "block_count": vision.depth,
        "attention.head_count": vision.num_heads,
        "attention.layer_norm_epsilon": 1e-6,
    }


def vision_metadata(config: GemmaConfig) -> dict[str, Any]:
    """As of llama.cpp's converter, for an mmproj file."""
    vision = config.vision
    assert vision is not None
    values = _tower(vision) | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "projection_dim": config.embed_dim}
    scale = int(vision.grid / vision.num_soft_tokens**0.5)
    if scale != 4:
        values["projector.scale_factor"] = scale
    return {
        "general.type": "mmproj",
        "clip.projector_type": "gemma3",
        "clip.has_vision_encoder": True,
        "clip.use_gelu": True,
        **{f"clip.vision.{key}": value for key, value in values.items()},
    }


def ollama_metadata(config: GemmaConfig) -> dict[str, Any]:
    """As of Ollama's converter for a model with a vision tower: nothing of rotary angles and of norms."""
    vision = config.vision
    assert vision is not None
    kept = {key: value for key, value in text_metadata(config).items() if ".rope." not in key and "rms" not in key}
    tower = {f"gemma3.vision.{key}": value for key, value in (_tower(vision) | {"num_channels": 3}).items()}
    return kept | tower | {"gemma3.mm.tokens_per_image": vision.num_soft_tokens}


def vocabulary(model: bytes, rows: int, *, listed: bool) -> dict[str, Any]:
    """The metadata that llama.cpp's converter makes of a tokenizer.model, padded to `rows`.

    `listed`: a tokenizer_config.json lists the user-defined pieces, as that of the released checkpoints does.
    """
    kinds = proto.ModelProto.SentencePiece
    tokens, scores, types = [], [], []
    for piece in proto.ModelProto.FromString(model).pieces:
        text, score, kind = piece.piece, piece.score, piece.type
        if listed and kind not in (kinds.NORMAL, kinds.BYTE):
            special = kind != kinds.USER_DEFINED or text.startswith(("<start_of", "<end_of", "<unused", "<mask"))
            kind = kinds.CONTROL if special else kinds.USER_DEFINED
            text, score = text if special else text.replace("▁", " "), -1000.0
        elif kind == kinds.USER_DEFINED:
            kind = kinds.NORMAL
        tokens.append(text)
        scores.append(score)
        types.append(kind)
    if rows > len(tokens):
        tokens.append("<image_soft_token>" if listed else f"[PAD{len(tokens)}]")
        scores.append(-1000.0 if listed else -10000.0)
        types.append(kinds.CONTROL if listed else kinds.UNUSED)
    for token in range(len(tokens), rows):
        tokens.append(f"[PAD{token}]")
        scores.append(-10000.0)
        types.append(kinds.UNUSED)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": tokens.index("<bos>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<end_of_turn>"),
        "tokenizer.ggml.add_space_prefix": False,
    }
