from __future__ import annotations

import dataclasses
import json

import checkpoint_samples as samples
import pytest

from gemma_tpu.checkpoint import CheckpointError, config_io, hf_names, names
from gemma_tpu.config import CONFIGS, DEMO, GemmaConfig

# The config.json files of the released checkpoints (transformers 4.50): what equals a default is left out.
SIGLIP = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}


def multimodal(**text) -> dict:
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "eos_token_id": [1, 106],
        "image_token_index": 262_144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
            **text,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": SIGLIP,
    }


RELEASED: dict[str, dict] = {
    "gemma3-1b": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32_768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10_000,
        "rope_scaling": None,
        "rope_theta": 1_000_000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262_144,
    },
    "gemma3-4b": multimodal(hidden_size=2560, intermediate_size=10_240, num_hidden_layers=34),
    "gemma3-12b": multimodal(
        hidden_size=3840,
        intermediate_size=15_360,
        num_attention_heads=16,
        num_hidden_layers=48,
        num_key_value_heads=8,
    ),
    "gemma3-27b": multimodal(
        head_dim=128,
        hidden_size=5376,
        intermediate_size=21_504,
        num_attention_heads=32,
        num_hidden_layers=62,
        num_key_value_heads=16,
        query_pre_attn_scalar=168,
    ),
}


def read(raw: dict) -> GemmaConfig:
    return config_io.from_json(json.dumps(raw), "config.json")


@pytest.mark.parametrize("size", RELEASED)
def test_released_configs(size):
    assert read(RELEASED[size]) == CONFIGS[size]


def test_new_style_of_transformers_5():
    raw = multimodal(hidden_size=2560, intermediate_size=10_240, num_hidden_layers=34)
    text = raw["text_config"]
    del text["rope_scaling"]
    text["rope_parameters"] = {
        "full_attention": {"factor": 8.0, "rope_theta": 1_000_000.0, "rope_type": "linear"},
        "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
    }
    text["layer_types"] = (["sliding_attention"] * 5 + ["full_attention"]) * 5 + ["sliding_attention"] * 4
    assert read(raw) == CONFIGS["gemma3-4b"]
    text["rope_parameters"]["full_attention"]["rope_theta"] = 500_000.0
    text["rope_parameters"]["sliding_attention"]["rope_theta"] = 5_000.0
    assert (read(raw).global_rope_base, read(raw).local_rope_base) == (500_000.0, 5_000.0)


@pytest.mark.parametrize("config", [*CONFIGS.values(), DEMO, *samples.CONFIGS.values()])
def test_what_is_written_is_read_back(config):
    assert config_io.from_json(config_io.to_json(config), "config.json") == config
    text_only = dataclasses.replace(config, vision=None)
    assert config_io.from_json(config_io.to_json(text_only), "config.json") == text_only


def test_integers_where_transformers_wants_them():
    assert json.loads(config_io.to_json(CONFIGS["gemma3-27b"]))["text_config"]["query_pre_attn_scalar"] == 168


@pytest.mark.parametrize("size", CONFIGS)
@pytest.mark.parametrize("vision", [True, False])
def test_the_five_sizes_are_known_by_their_shapes(size, vision):
    config = CONFIGS[size] if vision else dataclasses.replace(CONFIGS[size], vision=None)
    assert config_io.infer_from_canonical(names.canonical_shapes(config), "c") == config
    cores = hf_names.core_shapes(config)
    assert config_io.infer_from_cores(cores, "c") == config
    cores["embed_tokens.weight"] = (262_208, config.embed_dim)
    assert config_io.infer_from_cores(cores, "c") == config


def test_other_shapes_are_asked_for():
    for shapes, infer in (
        (names.canonical_shapes(samples.small()), config_io.infer_from_canonical),
        (hf_names.core_shapes(samples.small()), config_io.infer_from_cores),
    ):
        with pytest.raises(CheckpointError, match=r"c: .*embed 16, .*layers 8, .*put the config.json of its"):
            infer(shapes, "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, "seems to be a Gemma 2 model"),
        ({"model_type": "gemma"}, "seems to be a Gemma 1 model"),
        ({"model_type": "gemma3n"}, "seems to be a Gemma 3n model"),
        ({"model_type": "llama"}, "a model of type 'llama'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"sliding_window_pattern": 2}, "sliding_window_pattern is 2"),
        ({"layer_types": ["full_attention"] * 26}, "layer_types"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({"num_key_value_heads": 3}, "no multiple of num_kv_heads 3"),
        ({"hidden_size": "many"}, "hidden_size is 'many', not a positive number"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    ],
)
def test_what_is_not_supported_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message) as error:
        read(RELEASED["gemma3-1b"] | change)
    assert str(error.value).startswith("config.json: ")


def test_no_json():
    for text in ("{", "[]", ""):
        with pytest.raises(CheckpointError, match=r"config\.json: is no config"):
            config_io.from_json(text, "config.json")
