"""Values of `model_type` for Gemma 3 and its relatives, as in transformers 5.24 (models/auto/auto_mappings.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checks import brief

TEXT = ("gemma3_text",)
MULTIMODAL = ("gemma3", "shieldgemma2")

# The longest matching prefix decides: gemma4_text is Gemma 4, gemma4_assistant is not.
_OTHERS = {
    "gemma": "a Gemma 1 model",
    "gemma2": "a Gemma 2 model",
    "gemma3n": "a Gemma 3n model",
    "gemma4": "a Gemma 4 model",
    "gemma4_assistant": "a drafter for Gemma 4",
    "gemma4_unified_assistant": "a drafter for Gemma 4",
    "diffusion_gemma": "a DiffusionGemma model",
    "gemma_embedding": "EmbeddingGemma",  # llama.cpp's name
    "embedding_gemma2": "an EmbeddingGemma 2 model",
    "paligemma": "a PaliGemma model",
    "recurrent_gemma": "a RecurrentGemma model",
    "t5gemma": "a T5Gemma model",
    "t5_gemma": "a T5Gemma model",
    "t5gemma2": "a T5Gemma 2 model",
    "vaultgemma": "a VaultGemma model",
    "siglip": "a SigLIP vision tower alone",
}


def hf_prefix(config_json: str) -> str:
    """The prefix of every stored parameter name of a model with this config.json."""
    # ShieldGemma 2 holds a whole Gemma 3 as its attribute `model`.
    return "model." if json.loads(config_json).get("model_type") == "shieldgemma2" else ""


def check_parts(raw: Mapping[str, Any], path: str) -> None:
    """Raises `CheckpointError` if a part of a config is neither an object nor null, which is as if it were absent."""
    for key in ("text_config", "vision_config"):
        if not isinstance(part := raw.get(key), Mapping | None):
            raise CheckpointError(f"{path}: {key} is {brief(part)}, not an object")


def require_gemma3(raw: Mapping[str, Any], path: str) -> None:
    """Raises `CheckpointError` naming the model if a config is not of Gemma 3's architecture."""
    model_type = str(raw.get("model_type"))
    if model_type not in (*TEXT, *MULTIMODAL):
        known = max((prefix for prefix in _OTHERS if model_type.startswith(prefix)), key=len, default=None)
        seems = _OTHERS[known] if known else f"a model of type {brief(model_type)}"
        raise CheckpointError(f"{path}: this seems to be {seems}, not Gemma 3")
    text = raw.get("text_config") or raw
    if text.get("use_bidirectional_attention"):
        raise CheckpointError(
            f"{path}: this seems to be EmbeddingGemma (use_bidirectional_attention is true): it turns texts into "
            "vectors and writes none"
        )
