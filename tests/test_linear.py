"""Products with weights and rows of them, whole or quantised; a toy quantised model through every path."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from small_models import TEXT, VISION, make_engine, mesh_of, placed, quantized, random_params, whole

from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.engine.forward import encode_images, forward
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.image import to_pixels
from gemma_tpu.model.linear import QuantizedWeight, Weight, as_matrix, contract, dequantized, lookup
from gemma_tpu.options import SamplingParams

MULTIMODAL = dataclasses.replace(TEXT, vision=VISION, tied_head=False)
SPECS = {  # of every product in the model: shapes of the activations and of the weight, dimensions that are summed over
    "btd,od->bto": ((2, 3, 8), (6, 8), (1,)),
    "bto,od->btd": ((2, 3, 6), (6, 8), (0,)),
    "btd,cfd->cfbt": ((2, 3, 8), (2, 5, 8), (2,)),
    "ipe,cnhe->cipnh": ((2, 3, 8), (3, 2, 4, 8), (3,)),
    "ipnh,nhe->ipe": ((2, 3, 2, 4), (2, 4, 8), (0, 1)),
}
LARGE = {  # more than a block of rows, whole blocks and not; of activations one row, and more than are split
    "btd,vd->btv": [((1, 1, 8), (512, 8), (1,)), ((2, 17, 8), (512, 8), (1,)), ((2, 17, 8), (700, 8), (1,))],
    "bto,od->btd": [((1, 1, 512), (512, 8), (0,)), ((3, 11, 512), (512, 8), (0,)), ((3, 11, 700), (700, 8), (0,))],
    "btf,df->btd": [((1, 1, 700), (8, 700), (1,)), ((33, 1, 700), (300, 700), (1,))],
    "btd,cfd->cfbt": [((1, 1, 8), (2, 513, 8), (2,)), ((2, 17, 8), (2, 513, 8), (2,))],
    "ipe,cnhe->cipnh": [((2, 33, 8), (3, 2, 300, 8), (3,)), ((1, 1, 8), (3, 300, 2, 8), (3,))],
    "ipnh,nhe->ipe": [((2, 33, 2, 300), (2, 300, 8), (0, 1)), ((2, 33, 300, 2), (300, 2, 8), (0, 1))],
}
EVERY = [*SPECS.items(), *((spec, sizes) for spec, several in LARGE.items() for sizes in several)]


def _weight(shape: tuple[int, ...], summed: tuple[int, ...], dtype: str = "float32") -> QuantizedWeight:
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.01, 2, [1 if axis in summed else size for axis, size in enumerate(shape)])
    values = rng.integers(-127, 128, shape, dtype=np.int8)
    return QuantizedWeight(jnp.asarray(values), jnp.asarray(scales, jnp.float32), jnp.dtype(dtype))


@pytest.mark.parametrize(("spec", "sizes"), EVERY, ids=str)
def test_a_product_with_a_quantised_weight(spec: str, sizes: tuple[tuple[int, ...], ...]) -> None:
    activations, shape, summed = sizes
    x, weight = np.random.default_rng(1).standard_normal(activations), _weight(shape, summed)
    exact = np.einsum(spec, x, np.asarray(weight.values, np.float64) * np.asarray(weight.scales, np.float64))
    found = contract(spec, jnp.asarray(x, jnp.float32), weight)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())
    half = contract(spec, jnp.asarray(x, jnp.bfloat16), weight)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float64), exact, atol=0.02 * np.abs(exact).max())
    assert contract(spec, jnp.asarray(x, jnp.bfloat16), weight, dtype=jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize(("spec", "sizes"), EVERY, ids=str)
def test_a_product_in_bfloat16(spec: str, sizes: tuple[tuple[int, ...], ...]) -> None:
    """Sums are in float32, and only the result is rounded."""
    rng = np.random.default_rng(2)
    x, weight = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in sizes[:2])
    exact = np.einsum(spec, np.asarray(x, np.float64), np.asarray(weight, np.float64))
    wide = contract(spec, x, weight, dtype=jnp.float32)
    np.testing.assert_allclose(wide, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())
    found = contract(spec, x, weight)
    assert found.dtype == jnp.bfloat16
    assert np.array_equal(found, wide.astype(jnp.bfloat16))


def test_activations_split_for_int8_are_as_exact_as_their_type() -> None:
    """Beside the largest of the row; rows of zeros, of the smallest numbers, and with what is not finite."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((7, 1, 600)) * np.array([1, 1e-30, 1e30, 0, 1e-40, 1, 1])[:, None, None]
    x[0, 0, 0] = 1000  # an outlier, beside which the others are small
    x[5, 0, 9], x[6, 0, 9] = np.inf, np.nan
    weight = _weight((40, 600), (1,))
    equal = np.asarray(whole(weight), np.float64)
    x32 = x.astype(np.float32)
    exact = np.einsum("btd,vd->btv", x32[:5].astype(np.float64), equal)
    found = np.asarray(contract("btd,vd->btv", jnp.asarray(x32), weight))
    bound = np.abs(x32[:5]).max(axis=-1) * np.abs(equal).sum(axis=1).max()
    assert (np.abs(found[:5] - exact).max(axis=-1) <= 2e-7 * bound + 1e-36).all()
    assert np.isnan(found[5:]).all()


@pytest.mark.parametrize("summed", [(3,), (0, 1, 2)])
def test_a_quantised_weight_as_a_matrix(summed: tuple[int, ...]) -> None:
    weight = _weight((2, 3, 4, 5), summed)
    matrix, plain = as_matrix(weight), whole(weight).reshape(24, 5)
    assert matrix.shape == (24, 5)
    assert np.array_equal(whole(matrix), plain)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
@pytest.mark.parametrize("vocabulary", [24, 23])
def test_rows_of_a_quantised_table(shape: tuple[int, int], vocabulary: int) -> None:
    table = _weight((vocabulary, 16), (1,), "bfloat16")
    ids = np.arange(2 * vocabulary, dtype=np.int32).reshape(2, -1) % vocabulary
    found = jax.jit(functools.partial(lookup, mesh=mesh_of(*shape)))(table, ids)
    assert found.dtype == jnp.bfloat16
    assert np.array_equal(found, whole(table).astype(jnp.bfloat16)[ids])


def test_rows_and_numbers_of_four_bits() -> None:
    """For which jax has no implicit promotion."""
    table = _weight((24, 16), (1,), "bfloat16")
    narrow = dataclasses.replace(table, values=(table.values // 16).astype(jnp.int4))
    wide = dataclasses.replace(table, values=table.values // 16)
    assert np.array_equal(lookup(narrow, jnp.arange(24)[None]), lookup(wide, jnp.arange(24)[None]))
    assert np.array_equal(dequantized(narrow), dequantized(wide))


@pytest.mark.parametrize(("text", "tower"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32")])
def test_every_product_has_the_precision_of_its_own_weight(text: str, tower: str) -> None:
    """Whatever else the parameters hold: here, the tower and the text differ."""
    params = {
        name: value.astype(tower if name.startswith("vision.") else text)
        for name, value in random_params(MULTIMODAL).items()
    }
    pixels, tokens = np.zeros((1, 56, 56, 3), np.float32), np.array([[2, *[SOFT_TOKEN] * VISION.num_soft_tokens, 7]])
    soft = jnp.zeros((1, VISION.num_soft_tokens, MULTIMODAL.embed_dim), text)
    for dtype, run in (
        (tower, lambda params: encode_images(MULTIMODAL, params, pixels)),
        (text, lambda params: forward(MULTIMODAL, params, tokens, soft_tokens=soft)),
    ):
        lowered = jax.jit(run).lower(params).as_text()
        found = re.findall(r"dot_general .*precision = \[(\w+), (\w+)\]", lowered)
        assert len(found) == lowered.count("dot_general ") >= 8  # once for all layers
        assert set(found) == {("HIGHEST",) * 2 if dtype == "float32" else ("DEFAULT",) * 2}


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_a_quantised_model_is_the_model_of_its_values_times_scales(shape: tuple[int, int]) -> None:
    """Text and an image through the plain path, and through the engine's programs on one device and on eight."""
    params: dict[str, Weight] = quantized(random_params(MULTIMODAL))
    equal = {name: whole(weight) for name, weight in params.items()}
    rng = np.random.default_rng(5)
    picture = PIL.Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8))
    pixels = np.stack([to_pixels(picture, VISION.image_size)])
    words = rng.integers(0, 64, 18).tolist()
    prompt = [*words[:9], *[SOFT_TOKEN] * VISION.num_soft_tokens, *words[9:]]
    engine = make_engine(MULTIMODAL, mesh_of(*shape), params, max_rows=2, chunks=(16,), max_context=48)
    try:
        options = SamplingParams(max_new_tokens=8, stop_tokens=())
        request = engine.submit(prompt, placed(prompt, [ImageInput(picture, VISION.image_size)]), options)
        answer = [token for piece in request for token in piece]
    finally:
        engine.close()
    tokens = np.array([[*prompt, *answer]])
    expected = forward(MULTIMODAL, equal, tokens, soft_tokens=encode_images(MULTIMODAL, equal, pixels))
    found = forward(MULTIMODAL, params, tokens, soft_tokens=encode_images(MULTIMODAL, params, pixels))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert answer == np.asarray(expected)[0, len(prompt) - 1 : -1].argmax(axis=-1).tolist()
    assert len(set(answer)) > 3, "an answer that repeats itself shows little"
