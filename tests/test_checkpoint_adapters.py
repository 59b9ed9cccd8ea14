"""gemma_tpu.checkpoint.adapters: peft's adapters against what peft computes (goldens/adapters)."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import PartitionSpec

import gemma_tpu
from gemma_tpu.checkpoint import (
    CheckpointError,
    CheckpointWarning,
    convert,
    load_params,
    merge_adapter,
    names,
    open_checkpoint,
    parameters,
    read_text_assets,
)
from gemma_tpu.model import param_shapes
from gemma_tpu.sharding import make_mesh, param_sharding

GOLDENS = Path(__file__).parent / "goldens" / "adapters"
PROMPT = [2, 17, 40, 5, 63, 11]  # as in tests/reference/make_adapter_goldens.py
BASES = {"attention": "text", "patterns": "text", "tied-table": "text", "tied-module": "text", "vision": "multimodal"}


def read(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file, without the differences between versions of transformers in the prefixes."""
    arrays = safetensors.numpy.load_file(path)
    prefixes = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower."}
    prefixes |= {"model.multi_modal_projector.": "multi_modal_projector."}
    result = {}
    for name, array in arrays.items():
        for theirs, ours in prefixes.items():
            name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
        result[name.replace("vision_tower.vision_model.", "vision_tower.")] = array
    return result


def copy(name: str, path: Path, **settings) -> Path:
    """The adapter `name` in a directory of its own, with other settings in its config."""
    shutil.copytree(GOLDENS / name, path)
    config = json.loads((path / "adapter_config.json").read_text()) | settings
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def failure(adapter: Path | str, base: Path = GOLDENS / "base-text", config=None) -> str:
    checkpoint = open_checkpoint(base, config=config)
    with pytest.raises(CheckpointError) as caught:
        merge_adapter(checkpoint, str(adapter))
    return str(caught.value)


@pytest.mark.parametrize("case", BASES)
def test_a_merged_conversion_holds_the_weights_that_peft_computes(case, tmp_path):
    base = GOLDENS / f"base-{BASES[case]}"
    convert(base, tmp_path / "out", to="safetensors", adapter=GOLDENS / case, progress=False)
    found, expected = read(tmp_path / "out" / "model.safetensors"), read(base / "model.safetensors")
    merged = read(GOLDENS / "merged" / f"{case}.safetensors")
    del merged["logits"]
    assert merged.keys() <= expected.keys() == found.keys()
    for name, array in found.items():
        rows = len(array) if "embed_tokens" not in name else 96  # those behind the vocabulary are not kept
        if name in merged:
            assert np.abs(merged[name] - expected[name]).max() > 0.01
            np.testing.assert_allclose(array[:rows], merged[name][:rows], rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(array[:rows], expected[name][:rows], err_msg=name)


def test_a_model_with_an_adapter_gives_the_logits_of_the_adapted_model():
    """Of an adapter that changes the embedding table, which is the output head too."""
    expected = safetensors.numpy.load_file(GOLDENS / "merged" / "tied-table.safetensors")["logits"]
    with gemma_tpu.load(GOLDENS / "base-text", adapter=GOLDENS / "tied-table", max_rows=1, progress=False) as model:
        np.testing.assert_allclose(model.logits(np.array([PROMPT]))[0], expected, rtol=1e-4, atol=1e-4)


def test_a_shard_reads_its_part_and_sums_are_rounded_once_to_the_stored_dtype(tmp_path):
    base = open_checkpoint(convert(GOLDENS / "base-text", tmp_path / "b", to="orbax", dtype="bfloat16", progress=False))
    merged = merge_adapter(base, str(GOLDENS / "attention"))
    adapter = safetensors.numpy.load_file(GOLDENS / "attention" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    a, b = (adapter[name.format(part)].astype(np.float64) for part in "AB")
    stored = base.arrays["layer_1/attn/q_einsum/w"].read_all()
    delta = np.stack([head.T for head in np.split(2.0 * b @ a, 4)])  # alpha / r = 2
    expected = (stored.astype(np.float64) + delta).astype(np.float32).astype(ml_dtypes.bfloat16)
    array = merged.arrays["layer_1/attn/q_einsum/w"]
    assert array.dtype == ml_dtypes.bfloat16
    box = (slice(1, 3), slice(3, 9), slice(2, 8))
    np.testing.assert_array_equal(array.read(box), expected[box])
    assert array.cost(box) < array.cost(tuple(slice(0, size) for size in array.shape))
    assert merged.arrays["layer_1/mlp/linear"] is base.arrays["layer_1/mlp/linear"]  # nothing is added to it


@pytest.mark.filterwarnings("ignore:.*differ:gemma_tpu.checkpoint.CheckpointWarning")
@pytest.mark.parametrize(
    ("base", "adapter", "text_only"),
    [("base-multimodal", "vision", False), ("base-multimodal", "vision", True), ("base-text", "untied", False)],
)
def test_another_process_merges_what_process_0_does(base: str, adapter: str, text_only: bool) -> None:
    """What `load` has the other processes of a mesh call, here in one; an adapter may untie the base's head."""
    from gemma_tpu.deployment import Deployment
    from gemma_tpu.loading import _open_there, _read

    opened = open_checkpoint(GOLDENS / base, text_only=text_only)
    merged = merge_adapter(opened, str(GOLDENS / adapter), text_only=text_only)
    deployment = Deployment(merged.config, make_mesh(merged.config, (1, 1), jax.devices()[:1]), 1, 64, "float32")
    read = functools.partial(_read, deployment=deployment, progress=False)
    params = _open_there(read, GOLDENS / base, opened.config, GOLDENS / adapter, True)
    expected = names.params_from_canonical(merged.arrays, merged.config)
    assert params.keys() == expected.keys()
    for name, array in params.items():
        np.testing.assert_array_equal(np.asarray(array), expected[name].read_all(), err_msg=name)


def test_sharded_over_eight_devices(tmp_path):
    merged = merge_adapter(open_checkpoint(GOLDENS / "base-text"), str(GOLDENS / "patterns"))
    config = merged.config
    mesh = make_mesh(config, (2, 4), jax.devices()[:8])

    def sharding(name, shape):
        return param_sharding(name, shape, mesh)

    params = load_params(merged, config, dtype=np.float32, sharding=sharding, progress=False)
    whole = names.params_from_canonical(merged.arrays, config)
    assert any(param.sharding.spec != PartitionSpec() for param in params.values())
    assert params.keys() == param_shapes(config).keys()
    for name, param in params.items():
        np.testing.assert_allclose(np.asarray(param), whole[name].read_all(), rtol=1e-6, atol=1e-6, err_msg=name)


def test_names_of_an_unmerged_file_and_of_other_versions(tmp_path):
    """The adapter's own name behind each part, and the multimodal model's older prefixes."""
    path = copy("attention", tmp_path / "adapter")
    file = path / "adapter_model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    merged = merge_adapter(open_checkpoint(GOLDENS / "base-text"), str(path)).arrays
    expected = {name: merged[name].read_all() for name in ("layer_0/attn/q_einsum/w", "layer_1/attn/kv_einsum/w")}
    renamed = {
        re.sub(r"\.weight$", ".default.weight", name).replace(
            "model.model.layers", "model.language_model.model.layers"
        ): a
        for name, a in arrays.items()
    }
    safetensors.numpy.save_file(renamed, file)
    found = merge_adapter(open_checkpoint(GOLDENS / "base-text"), str(path)).arrays
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].read_all(), array)


def test_with_text_only_the_vision_towers_part_is_left_out():
    checkpoint = open_checkpoint(GOLDENS / "base-multimodal", text_only=True)
    merged = merge_adapter(checkpoint, str(GOLDENS / "vision"), text_only=True)
    assert merged.arrays.keys() == checkpoint.arrays.keys()
    expected = read(GOLDENS / "merged" / "vision.safetensors")["language_model.model.layers.0.mlp.gate_proj.weight"]
    gating = merged.arrays["layer_0/mlp/gating_einsum"].read_all()
    np.testing.assert_allclose(gating[0], expected, rtol=1e-6, atol=1e-6)


def test_an_adapter_has_to_fit_its_base(tmp_path):
    assert failure(GOLDENS / "vision").startswith(
        f"{GOLDENS / 'vision'}: does not fit {GOLDENS / 'base-text'}: unexpected projector.mm_input_projection_weight, "
    )
    file = (path := copy("attention", tmp_path / "a")) / "adapter_model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    arrays["base_model.model.score.weight"] = np.zeros((2, 16), np.float32)
    arrays["base_model.model.model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    for part, shape in (("A", (4, 18)), ("B", (24, 4))):
        arrays[f"base_model.model.model.layers.0.mlp.up_proj.lora_{part}.weight"] = np.zeros(shape, np.float32)
    safetensors.numpy.save_file(arrays, file)
    assert failure(path) == (
        f"{path}: does not fit {GOLDENS / 'base-text'}: unexpected layers.0.self_attn.q_proj.bias, score.weight"
    )
    del arrays["base_model.model.score.weight"], arrays["base_model.model.model.layers.0.self_attn.q_proj.bias"]
    safetensors.numpy.save_file(arrays, file)
    assert failure(path) == (
        f"{path}: does not fit {GOLDENS / 'base-text'}: wrongly shaped: layers.0.mlp.up_proj.weight is [24, 18], "
        "not [24, 16]"
    )
    for name in list(arrays):
        if "lora_B" in name:
            del arrays[name]
    safetensors.numpy.save_file(arrays, file)
    assert "mlp.up_proj has A and lacks the counterpart" in failure(path)
    norm = np.zeros(16, np.float32)
    twice = {"base_model.model.model.norm.weight": norm, "base_model.model.model.norm.modules_to_save.weight": norm}
    safetensors.numpy.save_file(twice, file)
    assert f"{file}: has norm.weight twice" in failure(path)
    safetensors.numpy.save_file({}, file)
    assert failure(path) == f"{file}: holds no parameters"


@pytest.mark.parametrize(
    ("adapter", "settings", "message"),
    [
        (
            "dora",
            {},
            "use_dora is not read here: merge it with peft (merge_and_unload, save_pretrained), and load what",
        ),
        ("pissa", {}, "init_lora_weights 'pissa' changes the base model as well: merge it with peft"),
        ("attention", {"peft_type": "IA3"}, "peft_type is IA3; only LORA is read here: merge it with peft"),
        ("attention", {"trainable_token_indices": [3]}, "trainable_token_indices is not read here: merge it with peft"),
        ("attention", {"r": 8}, "q_proj has A [4, 16] and B [32, 4], but rank 8 by adapter_config.json"),
        ("attention", {"lora_alpha": None}, "q_proj is None in adapter_config.json, not a number"),
        ("attention", {"rank_pattern": ["q_proj"]}, "rank_pattern in adapter_config.json is ['q_proj'], not an object"),
        ("attention", {"alpha_pattern": {"(": 1}}, "alpha_pattern in adapter_config.json is {'(': 1}, not an object"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(adapter, settings, message, tmp_path):
    assert message in failure(copy(adapter, tmp_path / "adapter", **settings))


def test_the_tokenizers_files_beside_an_adapter_come_before_the_bases(tmp_path):
    """Trainers save what they trained with there: another chat template, tokens of their own."""
    base = shutil.copytree(GOLDENS / "base-text", tmp_path / "base")
    (base / "chat_template.jinja").write_text("the base's")
    (base / "generation_config.json").write_text('{"max_new_tokens": 7}')
    path = copy("attention", tmp_path / "adapter")
    (path / "chat_template.jinja").write_text("the adapter's")
    (path / "added_tokens.json").write_text('{"<mine>": 5}')
    assets = read_text_assets(merge_adapter(open_checkpoint(base), str(path)))
    assert assets.chat_template == ("the adapter's", str(path / "chat_template.jinja"))
    assert [token.text for token in assets.added_tokens] == ["<mine>"]
    assert assets.generation_config.options["max_new_tokens"] == 7
    convert(base, tmp_path / "out", to="orbax", adapter=path, progress=False)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "the adapter's"
    assert (tmp_path / "out" / "added_tokens.json").is_file()
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_an_adapter_that_trained_head_and_table_apart_unties_them(tmp_path):
    """The logits are those of peft's adapted model; the weights survive a conversion."""
    expected = safetensors.numpy.load_file(GOLDENS / "merged" / "untied.safetensors")
    out = tmp_path / "out"
    with pytest.warns(CheckpointWarning, match="the output head and the embedding table differ"):
        convert(GOLDENS / "base-text", out, to="safetensors", adapter=GOLDENS / "untied", progress=False)
    found = read(out / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        np.testing.assert_array_equal(found[name], expected[name])
    with gemma_tpu.load(out, max_rows=1, progress=False) as model:
        assert not model.config.tied_head
        np.testing.assert_allclose(model.logits(np.array([PROMPT]))[0], expected["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("adapted", "kept"), [("embed_tokens", "lm_head"), ("lm_head", "embed_tokens")])
def test_an_adapted_head_or_table_alone_unties_them(adapted, kept, tmp_path):
    """As while it was trained, when the one that is not adapted stayed what it was."""
    path = copy("tied-table", tmp_path / "adapter")
    file = path / "adapter_model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({name: array for name, array in arrays.items() if adapted in name}, file)
    base = open_checkpoint(GOLDENS / "base-text")
    with pytest.warns(CheckpointWarning, match="they are no longer one parameter"):
        merged = merge_adapter(base, str(path))
    assert not merged.config.tied_head
    table = base.arrays[parameters.INPUT_TABLE].read_all()
    canonical = {"embed_tokens": parameters.INPUT_TABLE, "lm_head": parameters.OUTPUT_HEAD}
    np.testing.assert_array_equal(merged.arrays[canonical[kept]].read_all(), table)
    assert np.abs(merged.arrays[canonical[adapted]].read_all() - table).max() > 0.01


def test_an_adapter_alone_says_which_base_it_wants(tmp_path):
    path = GOLDENS / "attention"
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(copy("attention", tmp_path / "a"))
    path = tmp_path / "a"
    assert str(caught.value) == (
        f"{path}: is a LoRA adapter, without the model: load example/base-text with adapter='{path}' (--adapter {path})"
    )
    assert "no adapter: neither adapter_config.json and weights, nor Orbax" in failure(GOLDENS / "base-text")
    assert f"{tmp_path / 'none'}: no adapter" in failure(tmp_path / "none")


def test_an_adapter_beside_a_model_is_said_not_to_be_merged(tmp_path):
    path = copy("attention", tmp_path / "both")
    for file in (GOLDENS / "base-text").iterdir():
        shutil.copy(file, path)
    (path / "model.safetensors").rename(path / "weights.safetensors")
    with pytest.warns(CheckpointWarning, match="a LoRA adapter lies beside the weights, and is not merged"):
        checkpoint = open_checkpoint(path)
    assert merge_adapter(checkpoint, str(path)).arrays.keys() == checkpoint.arrays.keys()


def test_the_command_line_merges(tmp_path, capsys):
    from gemma_tpu.cli.main import main

    arguments = ["convert", str(GOLDENS / "base-text"), str(tmp_path / "out"), "--to", "safetensors"]
    assert main([*arguments, "--adapter", str(GOLDENS / "attention")]) == 0
    found, merged = read(tmp_path / "out" / "model.safetensors"), read(GOLDENS / "merged" / "attention.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_allclose(found[name], merged[name], rtol=1e-6, atol=1e-6)
    assert main(["generate", str(GOLDENS / "attention"), "Hi"]) == 1
    assert "load example/base-text with adapter=" in capsys.readouterr().err
