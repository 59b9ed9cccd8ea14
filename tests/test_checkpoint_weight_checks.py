"""Weights that are not finite, or all zeros, are named when they are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import checkpoint_samples as samples
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma_tpu.checkpoint import CheckpointError, CheckpointWarning, lazy, load_params, open_checkpoint, weight_checks

SAMPLE = samples.sample(samples.small(layers=6))
ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
LAYOUTS = ("hf", "nested", "stacked")


def save(path: Path, layout: str, hf: dict[str, np.ndarray], canonical: dict[str, np.ndarray]) -> Path:
    if layout == "hf":
        return samples.save_hf(path, SAMPLE.hf | hf)
    tree = samples.nested_tree if layout == "nested" else samples.stacked_tree
    return samples.save_orbax(path, tree(SAMPLE.canonical | canonical))


def load(path: Path, sharding=ONE_DEVICE) -> dict[str, jax.Array]:
    checkpoint = open_checkpoint(path, config=SAMPLE.config)
    return load_params(checkpoint, checkpoint.config, dtype=samples.BF16, sharding=lambda *_: sharding, progress=False)


@pytest.mark.parametrize("dtype", [np.float16, samples.BF16, np.float32, np.float64])
def test_the_largest_magnitude(dtype):
    """Against NumPy's own comparison, and every order of dimensions."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(dtype)
    infinity = weight_checks.max_bits(np.array(np.inf, dtype))
    assert weight_checks.max_bits(np.array([0.0, -0.0], dtype)) == weight_checks.max_bits(np.array([-0.0], dtype)) == 0
    for sign in (1, -1):
        array = (sign * abs(rng.standard_normal((6, 7)))).astype(dtype)
        for view in (array, array.T, array[1:5, ::2]):
            largest = view.flat[abs(view).argmax()]
            assert weight_checks.max_bits(view) == weight_checks.max_bits(abs(largest)[None]) < infinity
        for bad in (np.nan, -np.nan, np.inf, -np.inf):
            spoiled = array.copy()
            spoiled[3, 4] = bad
            assert weight_checks.max_bits(spoiled.T) >= infinity
        extreme = np.full(3, sign * float(np.finfo(dtype).max if dtype != samples.BF16 else 3.38e38), dtype)
        assert 0 < weight_checks.max_bits(extreme) < infinity
        tiny = np.array([0, sign * 2.0**-133 if dtype == samples.BF16 else sign * np.finfo(dtype).tiny], dtype)
        assert weight_checks.max_bits(tiny) > 0


CASES = {
    "a matrix": ("language_model.model.layers.3.mlp.down_proj.weight", "layer_3/mlp/linear"),
    "part of another": ("language_model.model.layers.5.self_attn.v_proj.weight", "layer_5/attn/kv_einsum/w"),
    "a norm": ("language_model.model.layers.2.self_attn.q_norm.weight", "layer_2/attn/_query_norm/scale"),
    "the table": ("language_model.model.embed_tokens.weight", "embedder/input_embedding"),
    "a bias of the tower": (
        "vision_tower.vision_model.encoder.layers.1.self_attn.k_proj.bias",
        "vision_encoder/siglip_encoder/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/bias",
    ),
}


@pytest.mark.parametrize(
    ("layout", "case", "value"),
    [
        ("hf", "a matrix", np.nan),
        ("hf", "a norm", -np.inf),
        ("hf", "the table", np.inf),
        ("hf", "a bias of the tower", np.nan),
        ("nested", "part of another", np.nan),
        ("nested", "a bias of the tower", -np.inf),
        ("stacked", "a matrix", np.inf),
    ],
)
def test_what_is_not_finite_is_named(layout, case, value, tmp_path):
    in_hf, in_orbax = CASES[case]
    spoiled = {in_hf: SAMPLE.hf[in_hf].copy()}, {in_orbax: SAMPLE.canonical[in_orbax].copy()}
    for arrays in spoiled:
        for array in arrays.values():
            array.reshape(-1)[array.size // 3] = value
    path = save(tmp_path / "c", layout, *spoiled)
    before = len(jax.live_arrays())
    with pytest.raises(CheckpointError) as error:
        load(path)
    name = in_hf if layout == "hf" else in_orbax
    tail = name if layout != "stacked" else name.split("/", 1)[-1]  # its layers lie in one array
    said = str(error.value)
    assert tail in said
    assert f"holds {'NaN' if np.isnan(value) else 'infinity'}" in said
    assert said.startswith(str(path))
    assert len(jax.live_arrays()) == before


@pytest.mark.parametrize("dtype", [samples.BF16, np.float32], ids=["stored", "cast"])
@pytest.mark.parametrize("place", [0, 0.3, 0.5, 0.999], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_value_in_any_block(layout, place, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "BLOCK_BYTES", 700)
    in_hf, in_orbax = CASES["a matrix"]
    spoiled = {in_hf: SAMPLE.hf[in_hf].copy()}, {in_orbax: SAMPLE.canonical[in_orbax].copy()}
    for arrays in spoiled:
        for array in arrays.values():
            array.reshape(-1)[int(array.size * place)] = np.nan
    checkpoint = open_checkpoint(save(tmp_path / "c", layout, *spoiled), config=SAMPLE.config)
    with pytest.raises(CheckpointError, match="holds NaN"):
        load_params(checkpoint, SAMPLE.config, dtype=dtype, sharding=lambda *_: ONE_DEVICE, progress=False)


def test_float16_that_overflowed(tmp_path):
    name = "language_model.model.norm.weight"
    with np.errstate(over="ignore"):
        overflowed = (SAMPLE.hf[name].astype(np.float32) * 1e6).astype(np.float16)
    hf = {other: array.astype(np.float16) for other, array in SAMPLE.hf.items()} | {name: overflowed}
    path = samples.save_hf(tmp_path / "c", hf)
    with pytest.raises(CheckpointError, match=rf"{name} holds infinity: they overflowed float16; take the bfloat16"):
        load(path)


def test_a_shard_with_nothing_wrong_in_it_and_one_with(tmp_path):
    """The value lies in one device's part of a parameter that eight share."""
    name = "language_model.model.layers.3.mlp.up_proj.weight"
    array = SAMPLE.hf[name].copy()
    array[-1, -1] = np.nan
    path = save(tmp_path / "c", "hf", {name: array}, {})
    mesh = Mesh(np.array(jax.devices()), ("model",))
    checkpoint = open_checkpoint(path, config=SAMPLE.config)

    def sharding(name: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*("model" if size == 24 else None for size in shape)))

    with pytest.raises(CheckpointError, match=rf"{name} holds NaN"):
        load_params(checkpoint, SAMPLE.config, dtype=np.float32, sharding=sharding, progress=False)


ZEROS = {
    "a block that was added": (
        ("layers.2.self_attn.o_proj.weight", "layers.2.mlp.down_proj.weight"),
        ("layer_2/attn/attn_vec_einsum/w", "layer_2/mlp/linear"),
    ),
    "half of an array": (("layers.4.self_attn.v_proj.weight",), ("layer_4/attn/kv_einsum/w[1]",)),
}


@pytest.mark.parametrize("layout", ["hf", "nested"])
@pytest.mark.parametrize("case", ZEROS)
def test_zeros_are_a_warning(layout, case, tmp_path):
    hf, canonical = ({}, {})
    names = [f"language_model.model.{core}" for core in ZEROS[case][0]] if layout == "hf" else list(ZEROS[case][1])
    for name in names:
        if layout == "hf":
            hf[name] = np.zeros_like(SAMPLE.hf[name])
        else:
            whole, _, index = name.removesuffix("]").partition("[")
            canonical[whole] = SAMPLE.canonical[whole].copy()
            canonical[whole][int(index) if index else slice(None)] = 0
    # Zeros that mean nothing: RMSNorm multiplies by 1 + scale, and a bias may well be none.
    hf["language_model.model.layers.1.input_layernorm.weight"] = np.zeros(16, samples.BF16)
    canonical["layer_1/pre_attention_norm/scale"] = np.zeros(16, samples.BF16)
    bias = "vision_encoder/siglip_encoder/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/bias"
    canonical[bias] = np.zeros_like(SAMPLE.canonical[bias])
    path = save(tmp_path / "c", layout, hf, canonical)
    with pytest.warns(CheckpointWarning) as caught:
        load(path)
    (said,) = [str(warning.message) for warning in caught]
    assert said.startswith(f"{path}: all zeros")
    assert sorted(said.rsplit(": ", 1)[1].split(", ")) == sorted(names)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_of_zeros_is_an_error(layout, tmp_path):
    in_hf, in_orbax = CASES["the table"]
    zeros = {in_hf: np.zeros_like(SAMPLE.hf[in_hf])}, {in_orbax: np.zeros_like(SAMPLE.canonical[in_orbax])}
    path = save(tmp_path / "c", layout, *zeros)
    before = len(jax.live_arrays())
    with pytest.raises(CheckpointError, match=rf"{path}: \S+embed\S+ is all zeros: the file is damaged"):
        load(path)
    assert len(jax.live_arrays()) == before


def test_a_head_of_zeros_is_an_error(tmp_path):
    head = {"language_model.lm_head.weight": np.zeros_like(SAMPLE.hf["language_model.model.embed_tokens.weight"])}
    config = dataclasses.replace(SAMPLE.config, tied_head=False)
    checkpoint = open_checkpoint(save(tmp_path / "c", "hf", head, {}), config=config)
    with pytest.raises(CheckpointError, match=r"language_model\.lm_head\.weight is all zeros"):
        load_params(checkpoint, config, dtype=np.float32, sharding=lambda *_: ONE_DEVICE, progress=False)


def test_views_of_watched_arrays_read_the_same():
    """`map_leaves` rebuilds every kind of view around another leaf, and leaves the first as it was."""
    a = lazy.InMemory(np.arange(48.0).reshape(4, 12), "a")
    view = lazy.stack([a.split(1, (3, 4)).transpose(1, 0, 2).merge(0).crop(0, 1, 11), lazy.Zeros((10, 4), a.dtype)])
    view = view.pad(1, 12).take(0, 0).expand(0).astype(np.dtype(np.float32))
    doubled = view.map_leaves(lambda leaf: lazy.InMemory(leaf.read_all() * 2, "doubled"))
    np.testing.assert_array_equal(doubled.read_all(), view.read_all() * 2)
    assert [leaf.name for leaf in view.leaves()] != [leaf.name for leaf in doubled.leaves()]
