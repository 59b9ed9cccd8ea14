"""Where a config and the stored parameters disagree: what is stored is taken, and said; nothing is dropped unproved."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import checkpoint_samples as samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_tpu.checkpoint import (
    CheckpointError,
    CheckpointWarning,
    config_io,
    convert,
    lazy,
    load_params,
    open_checkpoint,
)
from gemma_tpu.checkpoint.reconcile import check_buffers, equal_arrays
from gemma_tpu.config import LayerSpec, VisionConfig
from gemma_tpu.engine.forward import forward

SAMPLES = {
    "multimodal": samples.sample(samples.small(layers=6)),
    "text": samples.sample(samples.small(layers=6, kv_heads=1, vision=None)),
}
TABLE = {"multimodal": "language_model.model.embed_tokens.weight", "text": "model.embed_tokens.weight"}
HEAD = {"multimodal": "language_model.lm_head.weight", "text": "lm_head.weight"}
ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def another_head(kind: str) -> np.ndarray:
    """As many rows as the table has; one value in the last row that a token has is another."""
    sample = SAMPLES[kind]
    head = sample.hf[TABLE[kind]].copy()
    head[sample.config.vocab_size - 1, -1] += 1
    return head


def save(path: Path, kind: str, added: dict[str, np.ndarray], **config: object) -> Path:
    sample = SAMPLES[kind]
    return samples.save_hf(path, sample.hf | added, samples.hf_config(sample.config) | config)


def load(path: Path, **options) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(path, **options)
    params = load_params(
        checkpoint, checkpoint.config, dtype=samples.BF16, sharding=lambda *_: ONE_DEVICE, progress=False
    )
    return {name: np.asarray(array) for name, array in params.items()}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("declared", [None, True, False])
def test_a_head_that_differs_is_used(kind, declared, tmp_path, monkeypatch):
    """Merged LoRA, with a config that says otherwise or nothing; one value makes the difference, in a later block."""
    monkeypatch.setattr(lazy, "BLOCK_BYTES", 512)
    config = {} if declared is None else {"tie_word_embeddings": declared}
    path = save(tmp_path / "c", kind, {HEAD[kind]: another_head(kind)}, **config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        params = load(path)
    said = [str(warning.message) for warning in caught if warning.category is CheckpointWarning]
    if declared is False:
        assert said == []
    else:
        assert said == [
            f"{path}: {HEAD[kind]} differs from the embedding table, to which its config ties it: it is used as it is"
        ]
    vocabulary = SAMPLES[kind].config.vocab_size
    np.testing.assert_array_equal(params.pop("embedder.head"), another_head(kind)[:vocabulary])
    assert set(params) == set(SAMPLES[kind].ours)


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}])
def test_a_head_that_repeats_the_table_is_dropped(kind, config, tmp_path):
    path = save(tmp_path / "c", kind, {HEAD[kind]: SAMPLES[kind].hf[TABLE[kind]]}, **config)
    assert open_checkpoint(path).config.tied_head
    assert set(load(path)) == set(SAMPLES[kind].ours)


@pytest.mark.parametrize("rows", ["of the vocabulary", "of the table"])
def test_rows_that_no_token_uses_do_not_count(rows, tmp_path):
    """Hugging Face's 64 extra rows: a head may lack them, or have other values there."""
    table = SAMPLES["multimodal"].hf[TABLE["multimodal"]]
    head = table[:-64] if rows == "of the vocabulary" else np.concatenate([table[:-64], table[-64:] + 1])
    path = save(tmp_path / "c", "multimodal", {HEAD["multimodal"]: head})
    assert open_checkpoint(path).config.tied_head


def test_a_comparison_stops_at_the_first_difference(monkeypatch):
    class Counted(lazy.InMemory):
        reads = 0

        def read(self, box: lazy.Box) -> np.ndarray:
            self.reads += 1
            return super().read(box)

    monkeypatch.setattr(lazy, "BLOCK_BYTES", 64)
    values = np.arange(256, dtype=np.float32).reshape(64, 4)
    a, b = Counted(values, "a"), Counted(values.copy(), "b")
    assert equal_arrays(a, b)
    assert a.reads == b.reads == 16
    b.array[20] = 0
    assert not equal_arrays(a, b)
    assert a.reads == b.reads == 16 + 6


def test_a_tied_head_that_was_saved_in_the_tables_place(tmp_path):
    """As transformers reads it too: either of the two may be the one that is there."""
    sample = SAMPLES["text"]
    hf = {("lm_head.weight" if name == TABLE["text"] else name): array for name, array in sample.hf.items()}
    path = samples.save_hf(tmp_path / "c", hf, samples.hf_config(sample.config))
    params = load(path)
    np.testing.assert_array_equal(params["embedder.table"], sample.ours["embedder.table"])
    assert set(params) == set(sample.ours)


def test_a_head_that_the_config_has_and_the_files_have_not(tmp_path):
    path = save(tmp_path / "c", "text", {}, tie_word_embeddings=False)
    with pytest.raises(
        CheckpointError, match=rf"^{path}: its config has an output head .* no lm_head.weight is stored"
    ):
        open_checkpoint(path)
    sample = SAMPLES["text"]
    path = samples.save_orbax(tmp_path / "orbax", samples.flat_tree(sample.canonical))
    with pytest.raises(CheckpointError, match="no embedder/output_embedding is stored"):
        open_checkpoint(path, config=dataclasses.replace(sample.config, tied_head=False))


def test_a_head_of_another_shape_is_refused(tmp_path):
    path = save(tmp_path / "c", "text", {"lm_head.weight": np.ones((50, 16), np.float32)})
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match=r"lm_head.weight is \[50, 16\], not"):
        open_checkpoint(path)


def test_a_callers_own_config_decides(tmp_path):
    """As in another process, which is told what process 0 found."""
    path = save(tmp_path / "c", "text", {"lm_head.weight": another_head("text")})
    config = dataclasses.replace(SAMPLES["text"].config, tied_head=False)
    assert open_checkpoint(path, config=config).config == config


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("to", ["orbax", "orbax-flat"])
def test_a_head_survives_conversion_both_ways(kind, to, tmp_path):
    head = another_head(kind)
    source = save(tmp_path / "c", kind, {HEAD[kind]: head}, tie_word_embeddings=True)
    with pytest.warns(CheckpointWarning, match="differs from the embedding table"):
        orbax = convert(source, tmp_path / "orbax", to=to, progress=False)
    back = convert(orbax, tmp_path / "back", to="safetensors", progress=False)
    vocabulary = SAMPLES[kind].config.vocab_size
    for path in (orbax, back):
        assert not config_io.from_json((path / "config.json").read_bytes(), "c").tied_head
        np.testing.assert_array_equal(load(path)["embedder.head"], head[:vocabulary])
    stored = samples.safetensors.numpy.load_file(back / "model.safetensors")
    assert stored[HEAD[kind]].shape == stored[TABLE[kind]].shape == head.shape
    (orbax / "config.json").unlink()
    with pytest.warns(CheckpointWarning, match="embedder/output_embedding differs from the embedding table"):
        assert not open_checkpoint(orbax, config=SAMPLES[kind].config).config.tied_head


def test_logits_come_from_the_head():
    """A head of unit vectors shows the hidden states, which another head multiplies; the tied one is the table."""
    sample = samples.sample(samples.small(layers=1, vision=None))
    config = dataclasses.replace(sample.config, tied_head=False)
    params = {name: jnp.asarray(array, np.float32) / 4 for name, array in sample.ours.items()}
    table, tokens = params["embedder.table"], np.arange(12)[None]
    D = config.embed_dim
    hidden = forward(config, params | {"embedder.head": jnp.eye(*table.shape)}, tokens)[..., :D]
    np.testing.assert_allclose(forward(sample.config, params, tokens), hidden @ table.T, atol=1e-4)
    head = jax.random.normal(jax.random.key(1), table.shape)
    logits = forward(config, params | {"embedder.head": head}, tokens)
    np.testing.assert_allclose(logits, hidden @ head.T, atol=1e-4)
    assert abs(logits - hidden @ table.T).max() > 1


# Vision towers.


def without_vision(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: array for name, array in arrays.items() if not name.startswith(("vision_", "multi_modal", "embedder/mm"))
    }


@pytest.mark.parametrize("layout", ["hf", "orbax"])
def test_text_weights_under_a_multimodal_config(layout, tmp_path):
    sample, path = SAMPLES["multimodal"], tmp_path / "c"
    if layout == "hf":
        samples.save_hf(path, without_vision(sample.hf), samples.hf_config(sample.config))
    else:
        samples.save_orbax(path, samples.nested_tree(without_vision(sample.canonical)))
        (path / "config.json").write_text(config_io.to_json(sample.config))
    with pytest.warns(CheckpointWarning, match=rf"^{path}: its config has a vision tower, and no weights") as caught:
        params = load(path)
    assert len(caught) == 1
    assert set(params) == {name for name in sample.ours if not name.startswith("vision.")}
    with pytest.warns(CheckpointWarning):
        converted = convert(path, tmp_path / "converted", to="safetensors", progress=False)
    assert open_checkpoint(converted).config == dataclasses.replace(sample.config, vision=None)


@pytest.mark.parametrize("layout", ["hf", "orbax"])
def test_vision_weights_under_a_text_config(layout, tmp_path):
    """Of a tower that is none of Gemma 3's, whose heads and pooling nothing tells."""
    sample, path = SAMPLES["multimodal"], tmp_path / "c"
    text = dataclasses.replace(sample.config, vision=None)
    if layout == "hf":
        samples.save_hf(path, sample.hf)
    else:
        samples.save_orbax(path, samples.flat_tree(sample.canonical))
    (path / "config.json").write_text(config_io.to_json(text))
    with pytest.warns(CheckpointWarning, match="has no vision tower: the weights of one are left out"):
        assert open_checkpoint(path).config == text
    assert open_checkpoint(path, text_only=True).config == text


@pytest.mark.parametrize("given", ["gemma3_text", "gemma3"])
def test_the_released_tower_is_known(given, tmp_path):
    """Under a config of the decoder alone, and under one whose vision_config is missing."""
    small = VisionConfig(depth=1, width=16, mlp_dim=8, image_size=224, num_soft_tokens=16)
    sample = samples.sample(samples.small(layers=6, vision=small))
    config = samples.hf_config(sample.config)
    if given == "gemma3_text":
        config = config["text_config"] | {"vocab_size": sample.config.vocab_size}
    else:
        del config["vision_config"]
    path = samples.save_hf(tmp_path / "c", sample.hf, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemma_tpu.checkpoint.reconcile.VisionConfig", lambda: small)
        with pytest.warns(CheckpointWarning, match="weights of Gemma 3's are there: the model takes images"):
            opened = open_checkpoint(path)
        assert opened.config == sample.config
        with pytest.warns(CheckpointWarning):
            converted = convert(path, tmp_path / "converted", to="orbax-flat", progress=False)
    assert open_checkpoint(converted).config == sample.config


@pytest.mark.parametrize("layout", ["hf", "orbax"])
@pytest.mark.parametrize("lacking", ["mm_input_projection", "post_layernorm.bias|encoder_norm/bias"])
def test_a_part_of_a_tower_is_named(layout, lacking, tmp_path):
    """Such as the int4 checkpoint of 4B as it was first released, without its projection."""
    sample, path = SAMPLES["multimodal"], tmp_path / "c"
    arrays = sample.hf if layout == "hf" else sample.canonical
    kept = {name: array for name, array in arrays.items() if not any(part in name for part in lacking.split("|"))}
    assert len(kept) == len(arrays) - 1
    if layout == "hf":
        samples.save_hf(path, kept, samples.hf_config(sample.config))
    else:
        samples.save_orbax(path, samples.flat_tree(kept))
    (missing,) = set(arrays) - set(kept)
    config = None if layout == "hf" else sample.config
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path, config=config)
    assert str(error.value) == f"{path}: missing {missing}: it can be loaded for text alone, with text_only"
    assert open_checkpoint(path, config=config, text_only=True).config.vision is None


# Buffers, prefixes, other files.


def buffers(sample: samples.Sample) -> dict[str, np.ndarray]:
    """What transformers computes and some of its versions stored: models/gemma3 and models/siglip."""
    c = sample.config
    steps = np.arange(0, c.head_dim, 2) / c.head_dim
    return {
        "language_model.model.rotary_emb.inv_freq": (1e6**-steps / 8).astype(np.float32),
        "language_model.model.rotary_emb_local.inv_freq": (1e4**-steps).astype(samples.BF16),
        "model.rotary_emb.full_attention_inv_freq": (1e6**-steps / 8).astype(np.float32),
        "model.rotary_emb.sliding_attention_original_inv_freq": (1e4**-steps).astype(np.float32),
        "language_model.model.layers.5.self_attn.rotary_emb.inv_freq": (1e6**-steps / 8).astype(np.float32),
        "language_model.model.layers.4.self_attn.rotary_emb.inv_freq": (1e4**-steps).astype(np.float32),
        "vision_tower.vision_model.embeddings.position_ids": np.arange(16, dtype=np.int64)[None],
        "language_model.model.embed_tokens.embed_scale": np.array(c.embed_dim**0.5, samples.BF16),
    }


def test_buffers_that_repeat_the_config_are_dropped(tmp_path):
    path = save(tmp_path / "c", "multimodal", buffers(SAMPLES["multimodal"]))
    assert set(load(path)) == set(SAMPLES["multimodal"].ours)


@pytest.mark.parametrize("name", buffers(SAMPLES["multimodal"]))
def test_buffers_that_do_not_are_refused(name, tmp_path):
    value = buffers(SAMPLES["multimodal"])[name]
    other = value[:, ::-1] if "position" in name else (value * np.float32(1.05)).astype(value.dtype)
    path = save(tmp_path / "c", "multimodal", {name: other})
    with pytest.raises(CheckpointError, match=rf"^{path}: {name} is stored, and is not what follows from the config"):
        open_checkpoint(path)


def test_buffers_of_layers_that_the_model_has_none_of_are_dropped():
    sample = SAMPLES["multimodal"]
    names = [name for name in buffers(sample) if name.endswith("inv_freq") and "layers.4" not in name]
    stored = {name: lazy.InMemory(buffers(sample)[name], name) for name in names}
    whole, sliding = ((LayerSpec(None, 1e6, 8.0),) * 8, (LayerSpec(8, 1e4),) * 8)
    check_buffers(stored, dataclasses.replace(sample.config, layers=whole), "c")
    with pytest.raises(CheckpointError, match=r"layers\.5\..*inv_freq is stored, and is not what follows"):
        check_buffers(stored, dataclasses.replace(sample.config, layers=sliding), "c")


PREFIXES = {
    "DistributedDataParallel": "module.{}",
    "torch.compile": "_orig_mod.{}",
    "both": "module._orig_mod.{}",
    "the other way round": "_orig_mod.module.{}",
    "PEFT": "base_model.model.{}",
    "FSDP": "_fsdp_wrapped_module.{}",
    "Lightning": "_forward_module.model.{}",
    "a wrapper's attribute": "transformer.{}",
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("wrapped", PREFIXES)
def test_names_under_a_wrapper(kind, wrapped, tmp_path):
    sample = SAMPLES[kind]
    hf = {PREFIXES[wrapped].format(name): array for name, array in sample.hf.items()}
    path = samples.save_hf(tmp_path / "c", hf, samples.hf_config(sample.config))
    for name, array in load(path).items():
        np.testing.assert_array_equal(array, sample.ours[name])
    missing = next(name for name in hf if name.endswith("layers.4.mlp.up_proj.weight"))
    path = samples.save_hf(tmp_path / "less", {name: a for name, a in hf.items() if name != missing})
    with pytest.raises(CheckpointError, match=rf"missing {missing}$"):
        open_checkpoint(path, config=sample.config)


def test_wrappers_of_single_layers(tmp_path):
    """Activation checkpointing and compiled blocks leave their names in the middle."""
    sample = SAMPLES["text"]
    hf = {
        name.replace("layers.3.", "layers.3._checkpoint_wrapped_module.").replace(".mlp.", "._orig_mod.mlp."): array
        for name, array in sample.hf.items()
    }
    assert set(load(samples.save_hf(tmp_path / "c", hf, samples.hf_config(sample.config)))) == set(sample.ours)


@pytest.mark.parametrize("kind", SAMPLES)
def test_names_that_are_not_understood_prove_nothing(kind, tmp_path):
    """No name of Gemma 3 is found, and yet it is no Gemma 2; nor is anything said of a vision tower."""
    hf = {f"student.{name}": array for name, array in SAMPLES[kind].hf.items()}
    path = samples.save_hf(tmp_path / "c", hf)
    first = f"student.{TABLE[kind].removesuffix('embed_tokens.weight')}"
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path, config=SAMPLES[kind].config)
    assert str(error.value) == (
        f"{path}: no Gemma 3 parameters by names that are known here; it holds {first}embed_tokens.weight, "
        f"{first}layers.0.input_layernorm.weight, {first}layers.0.mlp.down_proj.weight …"
    )


def test_a_llama_is_no_gemma_1(tmp_path):
    llama = {  # two norms in a layer, none on queries: Gemma 1 too, or any of its kind
        name: array
        for name, array in SAMPLES["text"].hf.items()
        if not any(p in name for p in ("q_norm", "k_norm", "feedforward"))
    }
    with pytest.raises(CheckpointError, match="no Gemma 3 parameters by names that are known here; it holds"):
        open_checkpoint(samples.save_hf(tmp_path / "llama", llama))


@pytest.mark.parametrize("shards", [1, 2])
def test_files_that_are_not_part_of_a_checkpoint_are_named(shards, tmp_path):
    sample = SAMPLES["text"]
    path = samples.save_hf(tmp_path / "c", sample.hf, samples.hf_config(sample.config), shards=shards)
    samples.safetensors.numpy.save_file({"tok_embeddings.weight": np.zeros(3)}, path / "consolidated.safetensors")
    listed = "model.safetensors" if shards == 1 else "model.safetensors.index.json"
    with pytest.warns(CheckpointWarning, match=rf"^{path}: read by {listed}, without consolidated.safetensors$"):
        open_checkpoint(path)


def test_a_parameter_in_two_files(tmp_path):
    """Whether or not the index says which: one of them would be dropped unread."""
    sample = SAMPLES["text"]
    path = samples.save_hf(tmp_path / "c", sample.hf, samples.hf_config(sample.config), shards=2)
    name = "model.norm.weight"
    for file in sorted(path.glob("*.safetensors")):
        held = samples.safetensors.numpy.load_file(file)
        samples.safetensors.numpy.save_file(held | {name: sample.hf[name] + np.ones((), samples.BF16)}, file)
    with pytest.raises(CheckpointError, match=rf"{name} is in model-00001-of-00002\S+ and in model-00002"):
        open_checkpoint(path)
