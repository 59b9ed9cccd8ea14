from __future__ import annotations

import pytest

from gemma_tpu.checkpoint import CheckpointError, family


@pytest.mark.parametrize("raw", [{"model_type": name} for name in ("gemma3", "gemma3_text", "shieldgemma2")])
def test_gemma_3_by_architecture(raw):
    family.require_gemma3(raw, "config.json")
    family.require_gemma3(raw | {"text_config": {"use_bidirectional_attention": False}}, "config.json")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "gemma"}, "a Gemma 1 model, not Gemma 3"),
        ({"model_type": "gemma2"}, "a Gemma 2 model"),
        ({"model_type": "gemma3n_text"}, "a Gemma 3n model"),
        ({"model_type": "gemma4_unified_text"}, "a Gemma 4 model"),
        ({"model_type": "gemma4_unified_assistant"}, "a drafter for Gemma 4,"),
        ({"model_type": "t5gemma2_text"}, "a T5Gemma 2 model"),
        ({"model_type": "t5gemma"}, "a T5Gemma model"),
        ({"model_type": "vaultgemma"}, "a VaultGemma model"),
        ({"model_type": "paligemma"}, "a PaliGemma model"),
        ({"model_type": "recurrent_gemma"}, "a RecurrentGemma model"),
        ({"model_type": "embedding_gemma2"}, "an EmbeddingGemma 2 model"),
        ({"model_type": "diffusion_gemma"}, "a DiffusionGemma model"),
        ({"model_type": "siglip"}, "a SigLIP vision tower alone,"),
        ({"model_type": "llama"}, "a model of type 'llama'"),
        ({}, "a model of type 'None'"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "EmbeddingGemma"),
    ],
)
def test_others_are_refused_by_what_they_are(raw, message):
    with pytest.raises(CheckpointError, match=rf"^config\.json: .*{message}"):
        family.require_gemma3(raw, "config.json")
