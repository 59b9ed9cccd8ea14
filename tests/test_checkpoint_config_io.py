from __future__ import annotations

import dataclasses
import json

import checkpoint_samples as samples
import pytest

from checkpoints.demo_model import CHECKPOINT
from gemma_tpu.checkpoint import CheckpointError, config_io, hf_names, names, open_checkpoint, storage
from gemma_tpu.config import CONFIGS, GemmaConfig, LayerSpec, gemma3_layers

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
    local, *_, whole = read(raw).layers[:6]
    assert (local, whole) == (LayerSpec(1024, 5_000.0), LayerSpec(None, 500_000.0, 8.0))


SMALL = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "vocab_size": 256,
}
LAYERS = ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 2
ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 7e3},
}
NO_THETA = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}
PLAIN = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}, "sliding_attention": {"rope_theta": 7e3}}
OLD = {"rope_theta": 5e5, "rope_local_base_freq": 7e3}
LINEAR = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        OLD | LINEAR | {"sliding_window_pattern": 6},
        OLD | {"rope_scaling": None, "layer_types": None},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": ROPE, "layer_types": LAYERS},
        {"rope_parameters": ROPE, "layer_types": LAYERS, "_sliding_window_pattern": 6, "rope_theta": 1.0},
        OLD | {"rope_parameters": NO_THETA, "layer_types": LAYERS},
        OLD | {"rope_parameters": ROPE | {"sliding_attention": None}},
        OLD | {"rope_parameters": {"sliding_attention": ROPE["sliding_attention"]}},
        LINEAR | {"rope_parameters": PLAIN},
        LINEAR | OLD | {"rope_parameters": NO_THETA},
        {"layer_types": LAYERS, "sliding_window_pattern": 3},
        {"rope_scaling": {"rope_type": "linear", "factor": 1.0}},
        OLD | LINEAR | {"sliding_window_pattern": 2},
        {"sliding_window_pattern": 1},
        {"rope_parameters": ROPE, "layer_types": ["full_attention"] * 8},
        {"rope_parameters": ROPE, "layer_types": ["sliding_attention"] * 8},
        {"rope_parameters": ROPE, "layer_types": LAYERS[::-1]},
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
    ],
)
def test_every_mixture_of_keys_is_read_as_transformers_reads_it(keys):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Gemma3TextConfig(**json.loads(json.dumps(SMALL | keys)))
    for raw in (SMALL | keys, {"model_type": "gemma3", "text_config": SMALL | keys, "vision_config": SIGLIP}):
        ours = read(raw)
        for layer, kind in zip(ours.layers, theirs.layer_types, strict=True):
            rope = theirs.rope_parameters[kind]
            assert layer.window == (theirs.sliding_window if kind == "sliding_attention" else None)
            assert layer.rope_base == rope["rope_theta"]
            assert layer.rope_scale == (rope["factor"] if rope["rope_type"] == "linear" else 1)


def test_the_type_of_rotary_scaling_by_its_oldest_key():
    """`type`, as in transformers 4.50; transformers 5 takes no notice of it, and computes another model."""
    assert read(SMALL | OLD | {"rope_scaling": {"factor": 8.0, "type": "linear"}}).layers[5].rope_scale == 8


# Relatives of Gemma 3: every layer global, positions scaled; a window on every layer; every second one global.
WHOLE = dataclasses.replace(CONFIGS["gemma3-1b"], layers=(LayerSpec(None, 1e6, 4.0),) * 32)
SLIDING = dataclasses.replace(CONFIGS["gemma3-1b"], layers=(LayerSpec(512, 1e4, 2.0),) * 32)
MIXED = dataclasses.replace(CONFIGS["gemma3-4b"], layers=(LayerSpec(None, 5e5), LayerSpec(64, 1e4)) * 4)


@pytest.mark.parametrize(
    "config", [*CONFIGS.values(), open_checkpoint(CHECKPOINT).config, *samples.CONFIGS.values(), WHOLE, SLIDING, MIXED]
)
def test_what_is_written_is_read_back(config):
    assert config_io.from_json(config_io.to_json(config), "config.json") == config
    for changed in (dataclasses.replace(config, vision=None), dataclasses.replace(config, tied_head=False)):
        assert config_io.from_json(config_io.to_json(changed), "config.json") == changed


@pytest.mark.parametrize("config", [WHOLE, SLIDING, MIXED, CONFIGS["gemma3-27b"]])
def test_transformers_reads_the_layers_that_are_written(config):
    transformers = pytest.importorskip("transformers")
    raw = json.loads(config_io.to_json(config))
    theirs = transformers.Gemma3TextConfig(**raw.get("text_config", raw))
    for layer, kind in zip(config.layers, theirs.layer_types, strict=True):
        assert layer.window == (theirs.sliding_window if kind == "sliding_attention" else None)
        rope = theirs.rope_parameters[kind]
        assert (layer.rope_base, layer.rope_scale) == (rope["rope_theta"], rope.get("factor", 1.0))


@pytest.mark.parametrize("other", [LayerSpec(256, 1e4), LayerSpec(512, 2e4), LayerSpec(None, 1e6, 2.0)])
def test_layers_that_a_config_json_cannot_say(other):
    config = dataclasses.replace(CONFIGS["gemma3-1b"], layers=(*gemma3_layers(12, window=512), other))
    with pytest.raises(CheckpointError, match="cannot say that layers differ in more than"):
        config_io.to_json(config)


def test_integers_where_transformers_wants_them():
    assert json.loads(config_io.to_json(CONFIGS["gemma3-27b"]))["text_config"]["query_pre_attn_scalar"] == 168


@pytest.mark.parametrize("size", CONFIGS)
@pytest.mark.parametrize("vision", [True, False])
def test_the_five_sizes_are_known_by_their_shapes(size, vision):
    config = CONFIGS[size] if vision else dataclasses.replace(CONFIGS[size], vision=None)
    assert config_io.infer(names.canonical_shapes(config), "c") == config
    cores = hf_names.core_shapes(config)
    assert config_io.infer(cores, "c") == config
    cores["embed_tokens.weight"] = (262_208, config.embed_dim)
    assert config_io.infer(cores, "c") == config


def test_other_shapes_are_asked_for():
    for shapes in (names.canonical_shapes(samples.small()), hf_names.core_shapes(samples.small())):
        with pytest.raises(CheckpointError, match=r"c: .*embed 16, .*layers 8, .*put the config.json of its"):
            config_io.infer(shapes, "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, "seems to be a Gemma 2 model"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0, not a positive number"),
        ({"sliding_window_pattern": 1.5}, "sliding_window_pattern is 1.5, not a whole number"),
        ({"_sliding_window_pattern": 2}, "_sliding_window_pattern is 2; say so by layer_types"),
        ({"layer_types": ["full_attention"] * 25}, "layer_types is .*; it must be .* for each of 26 layers"),
        ({"layer_types": ["chunked_attention"] * 26}, r"layer_types is \['chunked_attention', .*; it must be"),
        ({"layer_types": 6}, "layer_types is 6; it must be 'sliding_attention' or 'full_attention'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported on layers of full_attention"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "yarn", "factor": 2.0}}}, "'yarn' .* of sliding"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "rope_parameters has factor, rope_type; .* one"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is None, not a positive number"),
        ({"rope_theta": "1e6"}, "rope_theta is '1e6', not a positive number"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\], not an object"),
        ({"num_key_value_heads": 3}, "no multiple of num_kv_heads 3"),
        ({"hidden_size": "many"}, "hidden_size is 'many', not a positive number"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 8.0}, "num_hidden_layers is 8.0, not a whole number"),
        ({"model_type": "gemma3", "text_config": [1]}, r"text_config is \[1\], not an object"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 1000000000000000000000000000000, not a positive number"),
        ({"num_hidden_layers": 2**30}, "num_hidden_layers is 1073741824; 4096 is the most"),
        ({"num_hidden_layers": [26]}, r"num_hidden_layers is \[26\], not a positive number"),
        ({"hidden_size": {"a": 1}}, "hidden_size is {'a': 1}, not a positive number"),
        ({"vocab_size": 10**400}, "vocab_size is an integer of 1329 bits, not a positive number"),
        ({"vocab_size": 2**40}, "vocab_size must be at least 1 and at most 2147483647"),
        ({"query_pre_attn_scalar": float("inf")}, "query_pre_attn_scalar is inf, not a positive number"),
        ({"query_pre_attn_scalar": float("nan")}, "query_pre_attn_scalar is nan, not a positive number"),
        ({"rope_theta": 10**400}, "rope_theta is an integer of 1329 bits"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', not an object"),
        ({"rope_scaling": {"rope_type": ["linear"], "factor": 8.0}}, r"rope type \['linear'\] is not supported"),
        ({"image_token_index": [1]}, r"image_token_index is \[1\], no token id"),
        ({"hidden_activation": ["x"] * 999}, r"hidden_activation is \['x', .*… \(list\); Gemma 3"),
        ({"layer_types": {"a": 1}}, "layer_types is {'a': 1}; it must be"),
        ({"max_position_embeddings": True}, "max_position_embeddings is True"),
        ({"text_config": []}, r"text_config is \[\], not an object"),
        ({"vision_config": False}, "vision_config is False, not an object"),
    ],
)
def test_what_is_not_supported_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message) as error:
        read(RELEASED["gemma3-1b"] | change)
    assert str(error.value).startswith("config.json: ")
    assert str(error.value).count("config.json: ") == 1


@pytest.mark.parametrize(
    "change", [{"text_config": None}, {"vision_config": None}, {"vocab_size": None}, {"text_config": {"vocab_size": 8}}]
)
def test_a_part_that_is_null_or_of_no_use_is_as_if_it_were_absent(change):
    """In what is written from it, too."""
    raw = json.dumps({**RELEASED["gemma3-1b"], "vocab_size": 262_208} | change)
    plain = json.dumps({**RELEASED["gemma3-1b"], "vocab_size": 262_208})
    assert config_io.from_json(raw, "config.json") == config_io.from_json(plain, "config.json")
    assert config_io.table_rows(raw) == 262_208
    assert config_io.from_json(config_io.updated(raw, "float32", True), "config.json") == CONFIGS["gemma3-1b"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_any_unicode(encoding, tmp_path):
    """As editors on Windows save it: with a byte order mark, or two bytes a character."""
    path = tmp_path / "config.json"
    path.write_bytes(json.dumps(RELEASED["gemma3-1b"]).encode(encoding))
    assert config_io.from_json(storage.read_text(str(path)), str(path)) == CONFIGS["gemma3-1b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "gem', "is no JSON: Unterminated string"),
        (b"[]", "holds no JSON object, but a list"),
        (b"null", "holds no JSON object, but a NoneType"),
        (b"", "is empty: fetch it again"),
        (b"\r\n<!DOCTYPE html><html>Sign in</html>", "is an HTML page, not the file that was asked for"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a Git LFS pointer, .*`git lfs pull`"),
        (b"\x89HDF\r\n\x1a\n\xff\xfe", "is an HDF5 file"),
        (b'{"model_type": "\xff"}', "is no text: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "is no JSON: maximum recursion depth"),
    ],
)
def test_broken_json_names_the_file(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^{path}: {message}"):
        storage.read_json(str(path))


@pytest.mark.parametrize(
    ("top", "text", "tied"),
    [(None, None, True), (True, None, True), (False, None, False), (None, False, False), (False, True, False)],
)
def test_whether_the_head_is_tied(top, text, tied):
    """A multimodal config says it in two places; transformers goes by the outer one."""
    raw = multimodal(hidden_size=2560, intermediate_size=10_240, num_hidden_layers=34)
    if top is not None:
        raw["tie_word_embeddings"] = top
    if text is not None:
        raw["text_config"]["tie_word_embeddings"] = text
    assert read(raw) == dataclasses.replace(CONFIGS["gemma3-4b"], tied_head=tied)


def test_a_multimodal_config_without_a_tower():
    raw = multimodal(hidden_size=2560, intermediate_size=10_240, num_hidden_layers=34)
    del raw["vision_config"]
    assert read(raw) == dataclasses.replace(CONFIGS["gemma3-4b"], vision=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_tokens_per_image": [256]}, r"mm_tokens_per_image is \[256\], not a positive number"),
        ({"mm_tokens_per_image": 255.5}, "mm_tokens_per_image is 255.5, not a whole number"),
        ({"vision_config": [1]}, r"vision_config is \[1\], not an object"),
        ({"vision_config": {"image_size": [[896], {}]}}, r"image_size is \[\[896\], {}\], not square"),
        ({"vision_config": {"image_size": []}}, r"image_size is \[\], not square"),
        ({"vision_config": {"image_size": "896"}}, "image_size is '896', not a positive number"),
        ({"vision_config": {"image_size": [896, 896], "patch_size": {"a": 1}}}, "patch_size is {'a': 1}"),
        ({"vision_config": {"num_hidden_layers": 2**30}}, "num_hidden_layers is 1073741824; 4096"),
        ({"text_config": {"hidden_size": [[[]]]}}, r"hidden_size is \[\[\[\]\]\]"),
    ],
)
def test_a_config_with_a_tower_has_numbers(change, message):
    raw = {"model_type": "gemma3", "text_config": {}, "vision_config": {"patch_size": 14, "image_size": 896}}
    with pytest.raises(CheckpointError, match=f"^config.json: (?!config.json).*{message}"):
        config_io.from_json(json.dumps(raw | change), "config.json")


@pytest.mark.parametrize("text", ["[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000])
def test_a_file_that_is_nested_too_deeply(text):
    with pytest.raises(CheckpointError, match=r"config.json: is no JSON: "):
        config_io.from_json(text, "config.json")
