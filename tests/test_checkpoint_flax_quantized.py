"""gemma_tpu.checkpoint.flax_quantized, against what gemma's own `peft.quantize` makes of weights (goldens/packed)."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
    load_params,
    open_checkpoint,
    open_tree,
    orbax,
    save_params,
    stored_quantization,
)
from gemma_tpu.checkpoint.packed import QuantizedArray
from gemma_tpu.model.linear import QuantizedWeight
from gemma_tpu.quantization import Quantization
from gemma_tpu.sharding import make_mesh, param_sharding

CONFIG = packed_samples.config_of("ct-int8")
SHAPES = {"int4": (jnp.int4, "4 bits"), "int8": (jnp.int8, "8 bits")}
Q = "layer_0/attn/q_einsum/_IntEinsum_0"


def golden(method: str) -> dict[str, np.ndarray]:
    with np.load(packed_samples.GOLDENS / "gemma.npz") as file:
        arrays = {name.removeprefix(f"{method}/"): file[name] for name in file.files if name.startswith(f"{method}/")}
    dtype = SHAPES[method][0]
    return {name: array.astype(dtype) if name.endswith("kernel") else array for name, array in arrays.items()}


def whole(method: str) -> dict[str, np.ndarray]:
    """Canonical arrays, by the division of gemma's own module (gm/nn/_quantization.py, _IntEinsum)."""
    arrays = dict(samples.sample(CONFIG).canonical)
    for name, kernel in golden(method).items():
        if name.endswith("/kernel"):
            scale = golden(method)[name.replace("/kernel", "/scale")]
            weight = name.removesuffix("/kernel").replace("_IntEinsum_0", "w").replace("_IntEinsum_", "")
            arrays[weight] = kernel.astype(np.float32) / scale
    return arrays


def tree(method: str, change: Callable[[dict[str, np.ndarray]], object] = lambda _: None) -> dict:
    quantized = golden(method)
    arrays = {name: array for name, array in whole(method).items() if array.dtype != np.float32} | quantized
    change(arrays)
    return samples.nested_tree(arrays)


@pytest.mark.parametrize("root", ["", "params"])
@pytest.mark.parametrize("method", SHAPES)
def test_reads_what_peft_quantize_makes(method: str, root: str, tmp_path: Path) -> None:
    state = {root: tree(method)} if root else tree(method)
    checkpoint = open_checkpoint(samples.save_orbax(tmp_path / "c", state), config=CONFIG)
    assert checkpoint.quantization == f"gemma's peft.quantize ({SHAPES[method][1]}, per channel)"
    expected = whole(method)
    assert checkpoint.arrays.keys() == expected.keys()
    rng = np.random.default_rng(0)
    for name, array in checkpoint.arrays.items():
        np.testing.assert_allclose(array.read_all(), expected[name], rtol=1e-6, err_msg=name)
        box = tuple(slice(*sorted(rng.choice(size + 1, 2, replace=False).tolist())) for size in array.shape)
        np.testing.assert_array_equal(array.read(box), array.read_all()[box])
    kept = checkpoint.arrays["layer_0/attn/q_einsum/w"]
    assert isinstance(kept, QuantizedArray)
    assert kept.symmetric
    assert (kept.values.dtype, kept.scales.shape) == (SHAPES[method][0], (3, 1, 6))


@pytest.mark.parametrize("method", SHAPES)
def test_kernels_are_kept_and_written_as_they_were(method: str, tmp_path: Path) -> None:
    path = samples.save_orbax(tmp_path / "c", tree(method))
    checkpoint = open_checkpoint(path, config=CONFIG)
    assert stored_quantization(checkpoint) == Quantization(method, None, None)
    device = make_mesh(CONFIG, (1, 1), jax.devices()[:1])
    params = load_params(
        checkpoint,
        CONFIG,
        dtype=jnp.bfloat16,
        sharding=functools.partial(param_sharding, mesh=device),
        grid=functools.partial(Quantization(method, None, None).grid, platform="tpu"),
        progress=False,
    )
    down, stored = params["layers.0.mlp.down"], golden(method)
    np.testing.assert_array_equal(down.values.T, stored["layer_0/mlp/_IntEinsum_linear/kernel"])
    np.testing.assert_array_equal(down.scales.T, 1 / stored["layer_0/mlp/_IntEinsum_linear/scale"])

    again = save_params(params, CONFIG, tmp_path / "d", layout="orbax")
    found = {name: array for name, array in orbax.open_arrays(str(again), orbax.list_arrays(str(again))).items()}
    assert {name for name in found if "_IntEinsum" in name} == stored.keys()
    for name, array in stored.items():
        values = found[name].read_all()
        assert values.dtype == array.dtype
        if name.endswith("/kernel"):
            np.testing.assert_array_equal(values, array, err_msg=name)
        else:
            np.testing.assert_allclose(values, array, rtol=1.2e-7, err_msg=name)


def test_from_memory() -> None:
    checkpoint = open_tree(tree("int4"), config=CONFIG)
    assert checkpoint.quantization == "gemma's peft.quantize (4 bits, per channel)"
    name = "layer_0/mlp/linear"
    np.testing.assert_allclose(checkpoint.arrays[name].read_all(), whole("int4")[name], rtol=1e-6)
    assert open_tree(samples.nested_tree(samples.sample(CONFIG).canonical), config=CONFIG).quantization is None


def test_a_model_of_parameters_in_memory_keeps_them() -> None:
    with gemma_tpu.from_params(tree("int8"), config=CONFIG, max_context=32, max_rows=1, dtype="float32") as model:
        assert model.deployment.quantization == Quantization("int8", None, None)
        down = model.params["layers.0.mlp.down"]
    assert isinstance(down, QuantizedWeight)
    np.testing.assert_array_equal(down.values.T, golden("int8")["layer_0/mlp/_IntEinsum_linear/kernel"])


DAMAGE = {
    "no scale": (lambda a: a.pop(f"{Q}/scale"), f"{Q}/kernel is without its kernel or scale"),
    "no kernel": (lambda a: a.pop(f"{Q}/kernel"), f"{Q}/scale is without its kernel or scale"),
    "floats": (lambda a: a.update({f"{Q}/kernel": np.ones((3, 20, 6), np.float32)}), "is float32, not int4 or int8"),
    "axes": (lambda a: a.update({f"{Q}/scale": np.ones((3, 6), np.float32)}), f"{Q}/scale is [3, 6], not of 3 axes"),
    "shape": (
        lambda a: a.update({f"{Q}/scale": np.ones((2, 1, 6), np.float32)}),
        f"{Q}/scale is [2, 1, 6], which do",
    ),
    "twice": (lambda a: a.update({"layer_0/attn/q_einsum/w": np.ones((3, 20, 6), np.float32)}), "/w is stored twice"),
    "nan": (lambda a: a.update({f"{Q}/scale": np.full((3, 1, 6), np.nan, np.float32)}), f"{Q}/scale holds NaN"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_names_the_file_and_the_array(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGE[damage]
    path = samples.save_orbax(tmp_path / "c", tree("int8", change))
    with pytest.raises(CheckpointError) as error:
        [array.read_all() for array in open_checkpoint(path, config=CONFIG).arrays.values()]
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
