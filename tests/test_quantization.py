"""Quantised weights: what they are rounded to, which there are, and that nothing makes them wide again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from small_models import TEXT, VISION, mesh_of, quantized, random_params

import gemma_tpu
from gemma_tpu.cache.layer import Pages
from gemma_tpu.config import GemmaConfig, gemma3_layers
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine import programs
from gemma_tpu.model import linear, param_shapes
from gemma_tpu.model.linear import QuantizedWeight
from gemma_tpu.plan.hlo import Hlo
from gemma_tpu.quantization import _BLOCK, Grid, Quantization, as_quantization, quantize

MULTIMODAL = dataclasses.replace(TEXT, vision=VISION, tied_head=False)
EVERYTHING = Quantization("int8", "int8", "int8")
# Weights of more rows than are converted at a time, and of sizes that no activation has.
WIDE = GemmaConfig(
    vocab_size=1030, embed_dim=264, hidden_dim=520, layers=gemma3_layers(6, window=16)[4:], num_heads=4, num_kv_heads=2,
    head_dim=72, query_scale=0.1,
)  # fmt: skip


def exactly(weight: np.ndarray, levels: int, summed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """In float64: the nearest multiples of a scale of which the largest weight is `levels`."""
    wide = np.asarray(weight, np.float64)
    scales = np.abs(wide).max(axis=summed, keepdims=True) / levels
    return wide / np.where(scales, scales, 1), scales


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(("levels", "kept"), [(127, "int8"), (7, "int4"), (7, "int8")])
@pytest.mark.parametrize(
    ("shape", "summed"), [((3, 5, 40), (2,)), ((3, 5, 40), (0, 1)), ((7, _BLOCK // 4 + 3), (1,)), ((1030, 513), (0,))]
)
def test_each_weight_is_the_nearest_multiple_of_its_channels_scale(dtype, levels, kept, shape, summed) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal(shape) * rng.uniform(0.01, 10, shape[-1])).astype(dtype)
    values, scales = quantize(weight, Grid(levels, jnp.dtype(kept), summed))
    positions, expected = exactly(weight, levels, summed)
    assert values.dtype == jnp.dtype(kept)
    assert values.shape == shape
    np.testing.assert_allclose(scales, expected, rtol=2e-7)
    assert np.abs(values.astype(np.float64) - positions).max() <= 0.5 + 1e-4
    assert np.array_equal(np.abs(values.astype(np.int32)).max(axis=summed), np.full(expected.squeeze().shape, levels))


def test_weights_on_a_grid_stay_as_they_are_and_channels_of_nothing_are_nothing() -> None:
    rng = np.random.default_rng(1)
    grid = Grid(7, jnp.dtype("int4"), (1,))
    values = rng.integers(-7, 8, (40, 300)).astype(np.int8)
    values[:, 0] = 7
    weight = values * rng.uniform(1e-6, 1e4, (40, 1)).astype(np.float32)
    weight[3], weight[4] = 0, np.float32(1e-44) * values[4]  # subnormal numbers
    found, scales = quantize(weight, grid)
    kept = [row for row in range(40) if row not in (3, 4)]
    assert np.array_equal(found.astype(np.int8)[kept], values[kept])
    restored = found.astype(np.float32) * scales
    np.testing.assert_allclose(restored[kept], weight[kept], rtol=1e-6)
    assert not restored[3].any()
    assert np.isfinite(restored[4]).all()
    assert np.abs(restored[4]).max() < 1e-37


def test_what_int8_by_channel_loses_of_groups_of_32() -> None:
    """Of weights with a scale for every 32 of them, as Google's QAT checkpoints are, which are quantised anew.

    Half a step of the channel at most for each weight, at random a step / √12: for products 1.0%, at most 4.8% (of
    their root mean square), where the four bits have cost 8.6%.
    """
    rng = np.random.default_rng(2)
    exact = rng.standard_normal((512, 36, 32)).astype(np.float32) * rng.uniform(0.3, 3, (512, 36, 1)).astype(np.float32)
    signed = np.take_along_axis(exact, np.abs(exact).argmax(2)[..., None], 2)
    groups = (signed / -8).astype(np.float16).astype(np.float32)  # as llama.cpp's Q4_0
    stored = np.clip(np.trunc(exact / groups + 8.5), 0, 15) - 8
    weight, exact = (stored * groups).reshape(512, -1), exact.reshape(512, -1)
    values, scales = quantize(weight, Grid(127, jnp.dtype("int8"), (1,)))
    error = values * scales - weight
    assert np.abs(error).max() <= 0.5001 * scales.max()
    assert (np.abs(error) <= 0.5001 * scales).all()

    x = rng.standard_normal((64, 1152)).astype(np.float32)
    product, lost = x @ weight.T, x @ error.T
    assert (np.abs(lost) <= 0.5001 * np.abs(x).sum(1)[:, None] * scales.T).all()
    relative = np.linalg.norm(lost) / np.linalg.norm(product)
    rounding = np.sqrt((scales**2).mean() / 12) / np.sqrt((weight**2).mean())
    assert relative == pytest.approx(rounding, rel=0.1)
    assert 0.008 < relative < 0.012
    assert np.abs(lost).max() < 0.06 * np.sqrt((product**2).mean())
    four_bits = np.linalg.norm(x @ (weight - exact).T) / np.linalg.norm(product)
    assert relative < 0.15 * four_bits


@pytest.mark.parametrize("config", [TEXT, MULTIMODAL, WIDE], ids=["text", "multimodal", "wide"])
def test_what_products_sum_over_shares_a_scale(config: GemmaConfig) -> None:
    """As the toy weights of other tests have it, which say so by other names."""
    params = random_params(config)
    for name, weight in quantized(params).items():
        grid = EVERYTHING.grid(name, "tpu")
        assert isinstance(weight, QuantizedWeight) == (grid is not None), name
        if isinstance(weight, QuantizedWeight) and grid:
            values, scales = quantize(np.asarray(params[name]), grid)
            assert scales.shape == weight.scales.shape
            assert np.abs(values.astype(int) - np.asarray(weight.values)).max() <= 1  # of two roundings
    kept = {name for name in params if Quantization().grid(name, "tpu") is None}
    assert kept == {name for name in params if name.startswith("vision.") or params[name].ndim == 1}


def test_what_can_be_asked_for() -> None:
    assert as_quantization(None) is None
    assert as_quantization(Quantization(None, None, None)) is None
    assert as_quantization("none") is None
    assert str(Quantization(None)) == "embedding int8"
    assert as_quantization("int4") == Quantization("int4", "int8", None)
    assert as_quantization(own := Quantization("int8", None, "int4")) is own
    assert str(Quantization("int4")) == "int4"
    assert str(own) == "matrices int8, vision int4"
    for wrong in ("int2", "INT8", 8, True, {"matrices": "int8"}):
        with pytest.raises(
            ValueError, match=r'^quantize must be "int8", "int4", "none", a gemma_tpu\.Quantization or None, got'
        ):
            as_quantization(wrong)
    with pytest.raises(ValueError, match=r'^quantize: embedding must be "int8", "int4" or None, got 4'):
        Quantization(embedding=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantize must be"):
        gemma_tpu.load("nowhere", quantize="int3")
    # On a CPU each value takes a byte: see the docstring.
    assert [Quantization("int4").grid("layers.0.mlp.down", one) for one in ("cpu", "tpu")] == [
        Grid(7, jnp.dtype("int8"), (1,)),
        Grid(7, jnp.dtype("int4"), (1,)),
    ]


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (1, 8)])
def test_memory_counts_what_there_is(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    mesh = mesh_of(*shape, WIDE)
    plain, kept = (Deployment(WIDE, mesh, 2, 64, "bfloat16", quantization=one) for one in (None, EVERYTHING))
    for name, one in kept.abstract_params.items():
        if isinstance(one, QuantizedWeight):
            assert one.values.sharding == plain.abstract_params[name].sharding
            assert one.scales.size == one.values.size / math.prod(one.values.shape[i] for i in kept.grid(name).summed)
    assert kept.memory.weights < 0.6 * plain.memory.weights
    monkeypatch.setattr(Deployment, "platform", "tpu")
    small = Deployment(WIDE, mesh, 2, 64, "bfloat16", quantization=Quantization("int4", "int4"))
    assert small.memory.weights < 0.36 * plain.memory.weights


def mesh_sharding(mesh):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def wide_copies(dtype: str, quantization: Quantization | None, rows: int, sizes: Sequence[int] = ()) -> list[str]:
    """Of weights, in decode steps and prefill of so many tokens, as compiled for the CPU."""
    deployment = Deployment(WIDE, mesh_of(1, 1, WIDE), rows, 64, dtype, chunks=(16, 48), quantization=quantization)
    params, state = deployment.abstract_params, deployment.abstract_state
    whole = mesh_sharding(deployment.mesh)

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=whole)

    pages = Pages(ints(deployment.pages), ints(deployment.pages))
    found = [programs.decode.lower(params, state, None, ints(rows), pages, deployment=deployment, max_steps=4)]
    for size in sizes:
        chunk = ints(1, size), ints(1), ints(1), None, ints(1, size), pages
        found.append(programs.prefill.lower(params, state, ints(1), *chunk, deployment=deployment, fresh=False))
    weights = {math.prod(x.shape) for name, x in param_shapes(WIDE).items() if EVERYTHING.grid(name, "cpu")}
    return [line for one in found for line in Hlo(one.compile().as_text()).widened(weights)]


@pytest.mark.usefixtures("fresh_traces")
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("float32", Quantization("int4")), ("bfloat16", Quantization("int8")), ("bfloat16", None)],
    ids=["int4", "int8", "bfloat16"],
)
def test_a_cpu_makes_no_weight_wide(
    monkeypatch: pytest.MonkeyPatch, dtype: str, quantization: Quantization | None, rows: int
) -> None:
    sizes = (16, 48) if rows == 1 else ()  # a prefill call is of one row here
    assert wide_copies(dtype, quantization, rows, sizes) == []

    jax.clear_caches()  # of traced programs
    monkeypatch.setattr(linear, "cpu_product", linear._product)  # the form of other platforms
    if rows == 1 or quantization:
        assert len(wide_copies(dtype, quantization, rows)) >= 5  # each kind of weight
