"""Quantised weights written, and integers that a checkpoint stores: kept as they are, whatever layout they lie in."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import checkpoint_samples as samples
import jax
import jax.numpy as jnp
import numpy as np
import packed_samples
import pytest

import gemma_tpu
from gemma_tpu.checkpoint import (
    CheckpointError,
    convert,
    hf,
    lazy,
    load_params,
    open_checkpoint,
    per_channel,
    save_params,
    stored_quantization,
)
from gemma_tpu.checkpoint.packed import QuantizedArray
from gemma_tpu.model.linear import QuantizedWeight, dequantized
from gemma_tpu.quantization import Quantization, quantize
from gemma_tpu.sharding import make_mesh, param_sharding

# Matrices of 42 and 20 columns, which fill no whole words, and of as many kv heads as query heads.
RAGGED = dataclasses.replace(
    samples.small(layers=2, heads=3, kv_heads=1), vocab_size=36, embed_dim=20, hidden_dim=42, head_dim=6
)
CONFIGS = {"ragged": RAGGED, "ungrouped": samples.CONFIGS["ungrouped-7"], "grouped": samples.CONFIGS["grouped-8"]}
LAYOUTS = ("orbax", "orbax-flat", "safetensors")
MATRICES = {width: Quantization(width, None, None) for width in ("int8", "int4")}


def load(path: Path, quantization: Quantization | None, shape=(1, 1), platform: str = "tpu", config=None) -> dict:
    checkpoint = open_checkpoint(path, config=config)
    mesh = make_mesh(checkpoint.config, shape, jax.devices()[: shape[0] * shape[1]])
    return load_params(
        checkpoint,
        checkpoint.config,
        dtype=jnp.bfloat16,
        sharding=functools.partial(param_sharding, mesh=mesh),
        grid=functools.partial(quantization.grid, platform=platform) if quantization else lambda _: None,
        progress=False,
    )


def save(path: Path, sample: samples.Sample) -> Path:
    return samples.save_hf(path, sample.hf, samples.hf_config(sample.config))


def written(scales: np.ndarray, layout: str) -> np.ndarray:
    """Orbax checkpoints hold the reciprocals."""
    return scales if layout == "safetensors" else 1 / (1 / scales)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", MATRICES)
def test_what_is_written_is_loaded_again_bit_by_bit(width, layout, config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lazy, "BLOCK_BYTES", 512)
    sample = samples.sample(CONFIGS[config])
    path = convert(save(tmp_path / "src", sample), tmp_path / "c", to=layout, quantize=width, progress=False)
    checkpoint = open_checkpoint(path)
    assert stored_quantization(checkpoint) == MATRICES[width]
    assert f"{width[3:]} bits, per channel" in (checkpoint.quantization or "")
    for shape in ((1, 1), (1, 8), (2, 4)):
        found = load(path, MATRICES[width], shape)
        for name, weight in found.items():
            grid = MATRICES[width].grid(name, "tpu")
            if grid is None:
                np.testing.assert_array_equal(weight, sample.ours[name], err_msg=name)
                continue
            assert isinstance(weight, QuantizedWeight)
            values, scales = quantize(sample.ours[name], grid)
            assert weight.values.dtype == jnp.dtype(width)
            for shard in weight.values.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), values[shard.index], err_msg=name)
            np.testing.assert_array_equal(weight.scales, written(scales, layout), err_msg=name)


@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_integers_move_between_layouts_as_they_are(layout, to, tmp_path) -> None:
    sample = samples.sample(CONFIGS["grouped"])
    path = convert(save(tmp_path / "src", sample), tmp_path / "a", to=layout, quantize="int4", progress=False)
    again = convert(path, tmp_path / "b", to=to, quantize="int4", progress=False)
    wider = convert(path, tmp_path / "w", to=to, quantize="int8", progress=False)  # no second rounding
    expected, found, wide = load(path, MATRICES["int4"]), load(again, MATRICES["int4"]), load(wider, MATRICES["int8"])
    assert stored_quantization(open_checkpoint(wider)) == MATRICES["int8"]
    for name, weight in expected.items():
        if not isinstance(weight, QuantizedWeight):
            np.testing.assert_array_equal(found[name], weight, err_msg=name)
            continue
        for one in (found[name], wide[name]):
            np.testing.assert_array_equal(one.values.astype(np.int8), weight.values.astype(np.int8), err_msg=name)
            rtol = 0 if layout != "safetensors" or to == "safetensors" else 2e-7
            np.testing.assert_allclose(one.scales, weight.scales, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quantised_model_is_saved_as_it_is(layout, tmp_path) -> None:
    sample = samples.sample(CONFIGS["ragged"])
    src = save(tmp_path / "src", sample)
    params = load(src, Quantization("int4", "int8", "int8"), (1, 8))
    path = save_params(params, sample.config, tmp_path / "c", layout=layout)
    found = load(path, stored_quantization(open_checkpoint(path)))
    for name, weight in found.items():
        if isinstance(weight, QuantizedWeight):
            np.testing.assert_array_equal(weight.values, params[name].values, err_msg=name)
            np.testing.assert_array_equal(weight.scales, written(np.asarray(params[name].scales), layout), err_msg=name)
        elif isinstance(kept := params[name], QuantizedWeight):
            assert name.startswith(("embedder.", "vision.")), name
            np.testing.assert_array_equal(weight, dequantized(kept).astype(jnp.bfloat16), err_msg=name)
        else:
            np.testing.assert_array_equal(weight, kept, err_msg=name)
    # Of two widths, or with one that is not quantised, there is no format.
    params["layers.1.mlp.down"] = jnp.asarray(sample.ours["layers.1.mlp.down"])
    path = save_params(params, sample.config, tmp_path / "d", layout=layout, dtype="float32")
    assert open_checkpoint(path).quantization is None
    name = "layers.1.mlp.gate_up"
    np.testing.assert_array_equal(load(path, None)[name], dequantized(params[name]).astype(jnp.bfloat16))


def test_load_keeps_what_is_stored_and_none_dequantises(tmp_path) -> None:
    sample = samples.sample(CONFIGS["grouped"], std=0.05)
    sources = {layout: tmp_path / layout for layout in ("plain", "safetensors")}
    plain = save(sources["plain"], sample)
    sizes = {"max_context": 32, "max_rows": 1, "progress": False, "text_only": True, "dtype": "float32"}
    with gemma_tpu.load(plain, **sizes, quantize=MATRICES["int8"]) as model:
        expected = model.logits([[1, 2, 3]])
    with gemma_tpu.load(plain, **sizes) as model:
        assert model.deployment.quantization is None
        exact = model.logits([[1, 2, 3]])
    assert np.abs(exact - expected).max() > 1e-5
    for layout in ("safetensors",):
        convert(plain, sources[layout], to=layout, quantize="int8", progress=False)
        with gemma_tpu.load(sources[layout], **sizes) as model:
            assert model.deployment.quantization == MATRICES["int8"]
            memory = model.deployment.memory
            np.testing.assert_allclose(model.logits([[1, 2, 3]]), expected, atol=2e-6)
        with gemma_tpu.load(sources[layout], **sizes, quantize="none") as model:
            assert model.deployment.quantization is None
            assert model.deployment.memory.weights > 1.5 * memory.weights
            assert not any(isinstance(weight, QuantizedWeight) for weight in model.params.values())
            np.testing.assert_allclose(model.logits([[1, 2, 3]]), expected, atol=2e-5)
        with gemma_tpu.load(sources[layout], **sizes, quantize="int8") as model:
            assert model.deployment.quantization == Quantization("int8")  # the embeddings too


KEPT = {"ct-int8": "int8", "ct-int8-packed": "int8", "ct-int4-packed": "int4", "bnb-int8": "int8"}


@pytest.mark.parametrize("case", KEPT)
@pytest.mark.parametrize("shape", [(1, 1), (1, 8)])
def test_integers_of_other_programs_are_kept(case, shape, tmp_path) -> None:
    """As compressed-tensors and bitsandbytes have written them (goldens/packed), and what they stand for."""
    path = packed_samples.save(tmp_path / "c", case)
    stored, whole, config = packed_samples.stored(case), packed_samples.expected(case), packed_samples.config_of(case)
    assert stored_quantization(open_checkpoint(path)) == MATRICES[KEPT[case]]
    found = load(path, MATRICES[KEPT[case]], shape)

    def part(core: str) -> tuple[np.ndarray, np.ndarray]:
        module = f"model.layers.0.{core}_proj"
        scales = stored.get(f"{module}.weight_scale")
        if scales is None:
            scales = stored[f"{module}.SCB"][:, None] * np.float32(7.874015718698502e-3)
        scales = scales.astype(np.float32)
        return np.rint(whole[f"{module}.weight"] / scales), scales

    def joined(*cores: str) -> tuple[np.ndarray, np.ndarray]:
        values, scales = zip(*map(part, cores), strict=True)
        return np.concatenate(values), np.concatenate(scales)

    heads, d = config.num_heads * config.head_dim, config.embed_dim
    expected = {
        "attention.qkv": joined("self_attn.q", "self_attn.k", "self_attn.v"),
        "attention.out": joined("self_attn.o"),
        "mlp.gate_up": joined("mlp.gate", "mlp.up"),
        "mlp.down": joined("mlp.down"),
    }
    for name, (values, scales) in expected.items():
        weight = found[f"layers.0.{name}"]
        kept, of_kept = np.asarray(weight.values.astype(np.int8)), np.asarray(weight.scales)
        if name == "attention.out":
            kept = kept.reshape(heads, d)
        kept = kept.T if name == "attention.out" else kept.reshape(len(values), -1)
        np.testing.assert_array_equal(kept, values, err_msg=name)
        np.testing.assert_array_equal(of_kept.reshape(-1, 1), scales, err_msg=name)


@pytest.mark.parametrize("case", ["ct-int8-packed", "ct-int4-packed"])
def test_compressed_tensors_has_the_same_bytes(case, tmp_path) -> None:
    """Its own matrices, read and written again."""
    path = packed_samples.save(tmp_path / "c", case)
    again = convert(path, tmp_path / "d", to="safetensors", quantize=KEPT[case], progress=False)
    golden, found = packed_samples.stored(case), {}
    for file in again.glob("*.safetensors"):
        found |= {name: array.read_all() for name, array in hf.read_file(str(file)).items()}
    quantised = {name for name in found if name.endswith(("_packed", "_scale", "_shape"))}
    assert quantised == golden.keys()
    for name, array in golden.items():
        scale = name.endswith("_scale")  # the golden's are bfloat16
        np.testing.assert_array_equal(found[name], array.astype(np.float32) if scale else array, strict=True)
    written = json.loads((again / "config.json").read_text())["quantization_config"]
    theirs = packed_samples.CASES[case]["config"]["quantization_config"]
    for key in theirs.keys() - {"ignore", "config_groups", "moe_sparsity_config"}:
        assert written[key] == theirs[key], key
    (group,), (their_group,) = written["config_groups"].values(), theirs["config_groups"].values()
    assert group == their_group | {"format": "pack-quantized"}


def test_what_shares_scales_in_other_ways_is_dequantised(tmp_path) -> None:
    for case in ("ct-int8-zeros", "ct-int4", "ct-int4-channel", "ct-mixed", "ct-fp8", "gptq", "awq", "mlx", "bnb-nf4"):
        path = packed_samples.save(tmp_path / case, case)
        assert stored_quantization(open_checkpoint(path)) is None, case


def test_a_part_is_kept_only_whole(tmp_path) -> None:
    """With one matrix of floats all are dequantised, and "int8" keeps those of integers."""
    sample = samples.sample(packed_samples.config_of("ct-int8"), std=0.3)

    def change(arrays: dict[str, np.ndarray]) -> None:
        del arrays["model.layers.0.mlp.down_proj.weight_scale"]
        arrays["model.layers.0.mlp.down_proj.weight"] = sample.hf["model.layers.0.mlp.down_proj.weight"]

    path = packed_samples.save(tmp_path / "c", "ct-int8", change=change)
    assert stored_quantization(open_checkpoint(path)) is None
    found = load(path, MATRICES["int8"])
    stored = packed_samples.stored("ct-int8")["model.layers.0.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(found["layers.0.mlp.gate_up"].values[0], stored)
    down = quantize(sample.ours["layers.0.mlp.down"], MATRICES["int8"].grid("layers.0.mlp.down", "tpu"))
    np.testing.assert_array_equal(found["layers.0.mlp.down"].values, down[0])


def test_one_scale_for_a_whole_matrix_is_one_of_each_channel(tmp_path) -> None:
    name = "model.layers.0.mlp.up_proj.weight_scale"
    path = packed_samples.save(
        tmp_path / "c", "ct-int8", change=lambda arrays: arrays.update({name: np.ones(1, np.float32) / 64})
    )
    assert stored_quantization(open_checkpoint(path)) == MATRICES["int8"]
    found = load(path, MATRICES["int8"], (1, 8))["layers.0.mlp.gate_up"]
    stored = packed_samples.stored("ct-int8")
    np.testing.assert_array_equal(found.values[1], stored["model.layers.0.mlp.up_proj.weight"])
    assert found.scales.shape == (2, 42, 1)
    assert (np.asarray(found.scales[1]) == 1 / 64).all()


def test_scales_along_another_axis_are_no_scales_of_channels() -> None:
    """Of the same matrix by rows, by columns and by blocks; and computed with, as an adapter is merged."""
    values = lazy.InMemory(np.ones((4, 6), np.int8), "v")
    arrays = {
        block: QuantizedArray("w", values, lazy.InMemory(np.ones(shape, np.float32), "s"), bits=8, block=block)
        for block, shape in {(1, 6): (4, 1), (4, 1): (1, 6), (2, 3): (2, 2), (2, 6): (2, 1), (4, 6): (1, 1)}.items()
    }
    for axis, channels in ((1, {(1, 6), (2, 6), (4, 6)}), (0, {(4, 1), (4, 6)})):
        for turned in (False, True):
            found = {
                block
                for block, array in arrays.items()
                if per_channel.split(array.transpose(1, 0) if turned else array, (1 - axis if turned else axis,))
            }
            assert found == channels
    by_rows = arrays[1, 6]
    joined = lazy.stack([by_rows, arrays[4, 1]])
    assert per_channel.split(joined, (2,), stacked=(0,)) is None
    assert per_channel.split(lazy.stack([by_rows, by_rows]), (2,), stacked=(0,))
    assert per_channel.split(lazy.add(by_rows, lazy.InMemory(np.ones((4, 6), np.float32), "d")), (1,)) is None


@pytest.mark.parametrize("to", LAYOUTS)
def test_a_matrix_is_read_in_blocks_twice_and_no_more(to, tmp_path, monkeypatch) -> None:
    """Once for its scales, once for its integers, never whole in a wider dtype."""
    config = dataclasses.replace(samples.small(layers=1, vision=None), embed_dim=64, hidden_dim=512)
    sample = samples.sample(config)
    src, reads = save(tmp_path / "src", sample), []
    fill = hf.SafetensorsArray._fill

    def counted(self, out, start):
        if "_proj" in self.name:
            reads.append((self.name, out.nbytes))
        fill(self, out, start)

    monkeypatch.setattr(lazy, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(hf.SafetensorsArray, "_fill", counted)
    convert(src, tmp_path / "c", to=to, quantize="int8", progress=False)
    assert max(nbytes for _, nbytes in reads) <= 8192
    matrices = {name: array.nbytes for name, array in sample.hf.items() if "_proj" in name}
    for name, nbytes in matrices.items():
        assert 2 * nbytes <= sum(size for of, size in reads if of == name) <= 3 * nbytes, name


def test_narrower_than_stored_is_quantised_anew(tmp_path) -> None:
    sample = samples.sample(CONFIGS["ragged"])
    path = convert(save(tmp_path / "s", sample), tmp_path / "c", to="safetensors", quantize="int8", progress=False)
    whole = load(path, None)["layers.0.mlp.down"]
    for platform in ("cpu", "tpu"):  # on a CPU kept in 8 bits, with the levels of 4
        found = load(path, MATRICES["int4"], platform=platform)["layers.0.mlp.down"]
        assert np.abs(found.values.astype(int)).max() == 7
        error = np.abs(found.values.astype(np.float32) * found.scales - whole)
        assert (error <= 0.51 * np.asarray(found.scales) + 0.01).all()


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path) -> None:
    src = save(tmp_path / "src", samples.sample(CONFIGS["ragged"]))
    for wrong in (Quantization("int8", "int8", "int8"), Quantization(None, "int8")):
        with pytest.raises(CheckpointError, match=r'cannot be written.*choose "int8" or "int4"'):
            convert(src, tmp_path / "c", to="safetensors", quantize=wrong, progress=False)
    with pytest.raises(ValueError, match='quantize must be "int8"'):
        convert(src, tmp_path / "c", to="safetensors", quantize="int2", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_weights_that_are_no_numbers_are_not_quantised(tmp_path) -> None:
    sample = samples.sample(CONFIGS["ragged"])
    sample.hf["language_model.model.layers.1.mlp.up_proj.weight"][3, 2] = np.nan
    src = save(tmp_path / "src", sample)
    for to in LAYOUTS:
        with pytest.raises(CheckpointError, match=r"model.safetensors: .*layers.1.mlp.up_proj.weight holds NaN"):
            convert(src, tmp_path / "c", to=to, quantize="int8", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize("width", MATRICES)
def test_damage_is_refused(width, tmp_path) -> None:
    sample = samples.sample(CONFIGS["ragged"])
    path = convert(save(tmp_path / "src", sample), tmp_path / "c", to="safetensors", quantize=width, progress=False)
    file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(path)
    file.write_bytes(content.replace(b"layers.0.mlp.up_proj.weight_scale", b"layers.0.mlp.up_proj.weight_other"))
    with pytest.raises(
        CheckpointError, match=r"up_proj.weight_packed is quantised, and .*up_proj.weight_scale is missing"
    ):
        open_checkpoint(path)
    raw = json.loads((path / "config.json").read_text())
    del raw["quantization_config"]
    file.write_bytes(content)
    (path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"weight_packed is int32, and config.json says nothing"):
        open_checkpoint(path)


def test_all_zero_integers_are_named(tmp_path) -> None:
    sample = samples.sample(CONFIGS["ragged"])
    sample.hf["language_model.model.layers.1.mlp.up_proj.weight"][:] = 0
    src = save(tmp_path / "src", sample)
    path = convert(src, tmp_path / "c", to="safetensors", quantize="int4", progress=False)
    with pytest.warns(gemma_tpu.checkpoint.CheckpointWarning, match="all zeros.*layers.1.mlp.up_proj.weight"):
        load(path, MATRICES["int4"])
