"""The architecture of a checkpoint: from its config.json, or from the shapes of its parameters.

A config.json is always in Hugging Face's format, beside Orbax files too, so that one reader serves both and
transformers reads what is written here. Both of its styles occur: the old one (`rope_scaling`, `rope_local_base_freq`,
`sliding_window_pattern`; what equals a default may be left out) and that of transformers 5 (`rope_parameters` by layer
type, `layer_types`); a file may hold keys of both.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from gemma_tpu.checkpoint import family, hf_names, names, parameters, storage
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checks import brief, one_line
from gemma_tpu.config import CONFIGS, MAX_LAYERS, GemmaConfig, LayerSpec, VisionConfig
from gemma_tpu.text.special import RELEASED

# Keys of config.json, the fields of `GemmaConfig` and `VisionConfig` that they say, and the defaults of transformers'
# Gemma3TextConfig and SiglipVisionConfig, which config.json files leave out.
_TEXT_FIELDS = {
    "vocab_size": ("vocab_size", 262_208),
    "hidden_size": ("embed_dim", 2304),
    "intermediate_size": ("hidden_dim", 9216),
    "num_hidden_layers": ("num_layers", 26),
    "num_attention_heads": ("num_heads", 8),
    "num_key_value_heads": ("num_kv_heads", 4),
    "head_dim": ("head_dim", 256),
    "max_position_embeddings": ("max_context", 131_072),
}
_VISION_FIELDS = {
    "hidden_size": ("width", 768),
    "intermediate_size": ("mlp_dim", 3072),
    "num_hidden_layers": ("depth", 12),
    "num_attention_heads": ("num_heads", 12),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
}
_TEXT_DEFAULTS: dict[str, Any] = {key: default for key, (_, default) in _TEXT_FIELDS.items()}
_TEXT_DEFAULTS |= {"query_pre_attn_scalar": 256, "sliding_window": 4096}
_VISION_DEFAULTS: dict[str, Any] = {key: default for key, (_, default) in _VISION_FIELDS.items()}
_COUNTS = {*_TEXT_DEFAULTS, *_VISION_DEFAULTS, "mm_tokens_per_image", "sliding_window_pattern"} - {
    "query_pre_attn_scalar"
}
_MOST = 2**53  # of any number; a float holds integers up to it
# What this package computes and nothing else; a config that says otherwise is refused.
_TEXT_FIXED: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
}
_VISION_FIXED: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_channels": 3}
_IMAGE_TOKEN = 262_144  # of the real vocabulary: the first id behind it


def from_json(source: str | bytes, path: str) -> GemmaConfig:
    """The config in a config.json. `path` is what errors name."""
    raw = storage.parse_json(source, path)
    family.check_parts(raw, path)
    family.require_gemma3(raw, path)
    text = _text(raw)
    _require_numbers(text, _TEXT_DEFAULTS, path)
    _refuse(text, _TEXT_FIXED, path)
    image_tokens = (raw.get("image_token_index"), raw.get("image_token_id"), _IMAGE_TOKEN)
    image_token = next(token for token in image_tokens if token is not None)
    if isinstance(image_token, bool) or not isinstance(image_token, int):
        raise CheckpointError(f"{path}: image_token_index is {brief(image_token)}, no token id")
    fields = {field: text[key] for key, (field, _) in _TEXT_FIELDS.items() if field != "num_layers"}
    if fields["vocab_size"] == image_token + hf_names.EXTRA_ROWS:
        fields["vocab_size"] = image_token
    try:
        return GemmaConfig(
            **fields,
            layers=_layers(text, path),
            query_scale=text["query_pre_attn_scalar"] ** -0.5,
            tied_head=False not in (raw.get("tie_word_embeddings"), text.get("tie_word_embeddings")),
            vision=_vision(raw, path) if _is_multimodal(raw) and raw.get("vision_config") else None,
        )
    except CheckpointError:  # has the path
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _is_multimodal(raw: Mapping[str, Any]) -> bool:
    return raw["model_type"] in family.MULTIMODAL


def _text(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the text decoder, with the defaults of what is absent or null."""
    text = (raw.get("text_config") or {}) if _is_multimodal(raw) else raw
    return _TEXT_DEFAULTS | {key: value for key, value in text.items() if value is not None}


def _mapping(raw: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
    """A part of a config, without what is null in it; empty if there is none."""
    part = raw.get(key)
    if not isinstance(part, Mapping | None):
        raise CheckpointError(f"{path}: {key} is {brief(part)}, not an object")
    return {name: value for name, value in (part or {}).items() if value is not None}


def _refuse(values: Mapping[str, Any], fixed: Mapping[str, Any], path: str) -> None:
    for key, value in fixed.items():
        found = values.get(key)
        if found is not None and found != value:
            raise CheckpointError(f"{path}: {key} is {brief(found)}; Gemma 3 models here have {value!r}")


def _require_numbers(values: Mapping[str, Any], keys: Iterable[str], path: str) -> None:
    for key in keys:
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST:
            raise CheckpointError(f"{path}: {key} is {brief(value)}, not a positive number")
        if key in _COUNTS and not isinstance(value, int):
            raise CheckpointError(f"{path}: {key} is {brief(value)}, not a whole number")
        if key == "num_hidden_layers" and value > MAX_LAYERS:
            raise CheckpointError(f"{path}: {key} is {brief(value)}; {MAX_LAYERS} is the most that is taken for true")


_LOCAL, _GLOBAL = "sliding_attention", "full_attention"  # the types of layers


def _layers(text: Mapping[str, Any], path: str) -> tuple[LayerSpec, ...]:
    window = {_LOCAL: text["sliding_window"], _GLOBAL: None}
    specs = {kind: LayerSpec(window[kind], *rope) for kind, rope in _rope(text, path).items()}
    return tuple(specs[kind] for kind in _layer_types(text, path))


def _layer_types(text: Mapping[str, Any], path: str) -> list[str]:
    """The type of each layer. As in transformers, `layer_types` says it; without it `sliding_window_pattern` does.

    `_sliding_window_pattern` is written by transformers 4.53 and later beside `layer_types`, and read by none.
    """
    count, types = text["num_hidden_layers"], text.get("layer_types")
    if types is None:
        every = text.get("sliding_window_pattern", 6)
        _require_numbers({"sliding_window_pattern": every}, ("sliding_window_pattern",), path)
        if (other := text.get("_sliding_window_pattern", every)) != every:
            raise CheckpointError(f"{path}: _sliding_window_pattern is {brief(other)}; say so by layer_types")
        return [_LOCAL if (i + 1) % every else _GLOBAL for i in range(count)]
    if not isinstance(types, list) or any(kind not in (_LOCAL, _GLOBAL) for kind in types) or len(types) != count:
        raise CheckpointError(
            f"{path}: layer_types is {brief(types)}; it must be {_LOCAL!r} or {_GLOBAL!r} for each of {count} layers"
        )
    return types


def _rope(text: Mapping[str, Any], path: str) -> dict[str, tuple[float, float]]:
    """Base and scale of the rotary angles of each type of layer.

    `rope_parameters` comes first, then what the older keys say and it does not. As in transformers, `rope_scaling` is
    laid over what `rope_parameters` says of global layers, where a file has both. The key `type` is that of
    transformers before 4.43.
    """
    by_type, scaling = _mapping(text, "rope_parameters", path), _mapping(text, "rope_scaling", path)
    if unknown := by_type.keys() - {_LOCAL, _GLOBAL}:
        raise CheckpointError(
            f"{path}: rope_parameters has {one_line(', '.join(sorted(unknown)))[:80]}; for Gemma 3 it holds one entry "
            f"for each type of layer, {_GLOBAL} and {_LOCAL}"
        )
    if not scaling.keys() & {_LOCAL, _GLOBAL}:
        scaling = {_GLOBAL: scaling}
    older = {_LOCAL: text.get("rope_local_base_freq", 10_000), _GLOBAL: text.get("rope_theta", 1_000_000)}
    found = {}
    for kind, base in older.items():
        rope = _mapping(by_type, kind, path) | _mapping(scaling, kind, path)
        name = rope.get("rope_type", rope.get("type", "default"))
        if name not in ("default", "linear"):
            raise CheckpointError(
                f"{path}: rope type {brief(name)} is not supported on layers of {kind}; Gemma 3 has 'default' or "
                "'linear' there"
            )
        scale = _positive(rope.get("factor"), "factor", path) if name == "linear" else 1.0
        found[kind] = _positive(rope.get("rope_theta", base), "rope_theta", path), scale
    return found


def _positive(value: Any, key: str, path: str) -> float:
    _require_numbers({key: value}, (key,), path)
    return float(value)


def _vision(raw: Mapping[str, Any], path: str) -> VisionConfig:
    vision = _VISION_DEFAULTS | _mapping(raw, "vision_config", path)
    _refuse(vision, _VISION_FIXED, path)
    for key in ("image_size", "patch_size"):
        side = vision[key]
        if isinstance(side, list):
            if not side or any(other != side[0] for other in side):
                raise CheckpointError(f"{path}: {key} is {brief(side)}, not square")
            vision[key] = side[0]
    _require_numbers(vision, _VISION_DEFAULTS, path)
    soft = {"mm_tokens_per_image": raw.get("mm_tokens_per_image") or 256}
    _require_numbers(soft, soft, path)
    fields = {field: vision[key] for key, (field, _) in _VISION_FIELDS.items()}
    return VisionConfig(num_soft_tokens=soft["mm_tokens_per_image"], **fields)


def to_json(config: GemmaConfig, dtype: str = "bfloat16", special_ids: Mapping[str, int] | None = None) -> str:
    """A config.json as transformers 5 writes it.

    `special_ids`: ids of "pad", "bos", "eos", "start_of_image", "end_of_image" where they are not Gemma's.
    """
    ids = {**RELEASED, **(special_ids or {})}
    scalar = config.query_scale**-2
    if round(scalar) ** -0.5 == config.query_scale:
        scalar = round(scalar)  # transformers accepts integers only
    kinds = [_GLOBAL if layer.window is None else _LOCAL for layer in config.layers]
    specs = dict(zip(kinds, config.layers, strict=True))
    if config.layers != tuple(specs[kind] for kind in kinds):
        raise CheckpointError("a config.json cannot say that layers differ in more than whether they have a window")
    text = {
        "model_type": "gemma3_text",
        **{key: getattr(config, field) for key, (field, _) in _TEXT_FIELDS.items()},
        "vocab_size": config.vocab_size + (hf_names.EXTRA_ROWS if config.vision else 0),
        **({"sliding_window": specs[_LOCAL].window} if _LOCAL in specs else {}),
        "query_pre_attn_scalar": scalar,
        "layer_types": kinds,
        "rope_parameters": {kind: _rope_parameters(spec) for kind, spec in specs.items()},
        "pad_token_id": ids["pad"],
        "eos_token_id": ids["eos"],
        "bos_token_id": ids["bos"],
        "tie_word_embeddings": config.tied_head,
        **_TEXT_FIXED,
    }
    if config.vision is None:
        return _dump({"architectures": ["Gemma3ForCausalLM"], "dtype": dtype, **text})
    return _dump(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "dtype": dtype,
            "mm_tokens_per_image": config.vision.num_soft_tokens,
            "boi_token_index": ids["start_of_image"],
            "eoi_token_index": ids["end_of_image"],
            "image_token_index": config.vocab_size,
            "tie_word_embeddings": config.tied_head,
            "text_config": {**text, "dtype": dtype},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "dtype": dtype,
                **{key: getattr(config.vision, field) for key, (field, _) in _VISION_FIELDS.items()},
                "vision_use_head": False,
                **_VISION_FIXED,
            },
        }
    )


def _rope_parameters(layer: LayerSpec) -> dict[str, Any]:
    linear = {"rope_type": "linear", "factor": layer.rope_scale}
    return {"rope_type": "default", "rope_theta": layer.rope_base} | (linear if layer.rope_scale != 1 else {})


def _dump(raw: dict[str, Any]) -> str:
    return json.dumps(raw, indent=2) + "\n"


def table_rows(text: str | bytes) -> int:
    """Rows of the embedding table in the safetensors files that a config.json describes."""
    return _text(json.loads(text))["vocab_size"]


def updated(text: str | bytes, dtype: str, tied_head: bool) -> str:
    """A config.json for parameters that are stored in `dtype`, with or without an output head of their own."""
    raw = json.loads(text)
    for part in (raw, raw.get("text_config")):
        if part is not None:
            part.pop("quantization_config", None)  # what was quantised is stored in `dtype` too
            part.pop("quantization", None)
    for part in (raw, raw.get("text_config"), raw.get("vision_config")):
        if part is not None:
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
    for part in (raw, raw.get("text_config")):
        if part is not None and part.get("tie_word_embeddings", True) != tied_head:
            part["tie_word_embeddings"] = tied_head
    return _dump(raw)


def infer(shapes: names.Shapes, path: str, *, in_memory: bool = False) -> GemmaConfig:
    """The config of one of the five sizes, from the shapes of parameters by canonical name, or by Hugging Face's core.

    `in_memory`: there are no files to put a config.json beside. Raises `CheckpointError` for other sizes.
    """

    def size(axis: int, *alternatives: str) -> int:
        """The size of an axis of the first of these arrays that has it; 0 if none has."""
        return next((shapes[name][axis] for name in alternatives if len(shapes.get(name, ())) > axis), 0)

    def heads(core: str) -> int:
        return size(0, f"layers.0.self_attn.{core}.weight") // max(head_dim, 1)

    fused, table = "layer_0/attn/qkv_einsum/w", (parameters.INPUT_TABLE, parameters.TABLE)
    head_dim = size(0, "layer_0/attn/_query_norm/scale", "layers.0.self_attn.q_norm.weight")
    layers = [int(match[1]) for name in shapes if (match := re.match(r"layers?[_.](\d+)[/.].", name))]
    found = {
        "embed": size(1, *table),
        "hidden": size(0, "layer_0/mlp/linear", "layers.0.mlp.up_proj.weight"),
        "layers": 1 + max(layers, default=-1),
        "heads": size(0, "layer_0/attn/q_einsum/w") or size(1, fused) or heads("q_proj"),
        "kv_heads": size(1, "layer_0/attn/kv_einsum/w", fused) or heads("k_proj"),
        "head_dim": head_dim,
    }
    for c in CONFIGS.values():
        known = (c.embed_dim, c.hidden_dim, c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim)
        if tuple(found.values()) == known and size(0, *table) in (c.vocab_size, c.vocab_size + hf_names.EXTRA_ROWS):
            has_vision = any(names.is_multimodal(name) or hf_names.is_multimodal(name) for name in shapes)
            return c if has_vision else dataclasses.replace(c, vision=None)
    listed = ", ".join(f"{name} {size}" for name, size in found.items())
    lacks = "no config is given" if in_memory else "has no config.json"
    way_out = "put the config.json of its architecture beside it (or, in Python, give load the GemmaConfig as config)"
    raise CheckpointError(
        f"{path}: {lacks}, and its shapes ({listed}) are none of {', '.join(CONFIGS)}: "
        f"{'give its GemmaConfig as config' if in_memory else way_out}"
    )


# What proves that names are understood: of Google's canonical ones, of Hugging Face's cores.
_CANONICAL = (r"embedder/input_embedding", r"layer_\d+/attn/q(kv)?_einsum/w")
_CORES = (r"(embed_tokens|lm_head)\.weight", r"layers\.\d+\.self_attn\.q_proj\.weight")
_QUERY_NORM = r"(.*[./])?(q_norm|_query_norm)[./].+"
_SECOND_NORM = r"layer_\d+/post_ffw_norm/scale|layers\.\d+\.post_feedforward_layernorm\.weight"


def refuse_others(shapes: names.Shapes, path: str) -> None:
    """Raises `CheckpointError` if canonical or core names are those of another model; says which it is, on proof.

    Gemma 3 normalises queries and keys. Gemma 2, which does not, has norms after attention and mlp; Gemma 1 has not
    even those, and in Hugging Face's names looks like a Llama. Names that are not understood prove nothing.
    """

    def has(*patterns: str) -> bool:
        return all(any(re.fullmatch(pattern, name) for name in shapes) for pattern in patterns)

    seems = None
    if any("altup" in name for name in shapes):
        seems = "this seems to be a Gemma 3n model, not Gemma 3"
    elif has(_QUERY_NORM):
        if has(*_CANONICAL) or has(*_CORES):
            return
    elif has(*_CANONICAL, _SECOND_NORM) or has(*_CORES, _SECOND_NORM):
        seems = "this seems to be a Gemma 2 model (its queries have no norm), not Gemma 3"
    elif has(*_CANONICAL, r"layer_\d+/pre_ffw_norm/scale"):
        seems = "this seems to be a Gemma 1 model (its queries have no norm), not Gemma 3"
    if seems is None:
        held = ", ".join(sorted(shapes)[:3]) or "no parameters"
        seems = f"no Gemma 3 parameters by names that are known here; it holds {held} …"
    raise CheckpointError(f"{path}: {seems}")
