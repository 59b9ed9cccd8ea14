"""Quantised checkpoints against the programs that write them (goldens/packed): values, boxes, whole models."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path

import checkpoint_samples as samples
import ml_dtypes
import numpy as np
import packed_samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_samples import CASES, Q
from small_models import mesh_of

import gemma_tpu
from gemma_tpu.checkpoint import (
    CheckpointWarning,
    convert,
    hf,
    open_checkpoint,
    quantized_formats,
)
from gemma_tpu.checkpoint.lazy import InMemory, LazyArray
from gemma_tpu.checkpoint.packed import PackedIntegers, QuantizedArray, unpack
from gemma_tpu.checkpoint.slices import whole
from gemma_tpu.cli.main import main

TOKENIZER = gemma_tpu.Tokenizer(Path(__file__).parent / "goldens" / "text" / "tokenizer.model")
STATIC = "ct-fp8-static"  # warns of what it has beside the weights


def dequantized(path: Path) -> tuple[dict[str, LazyArray], str | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        return quantized_formats.dequantize(hf.read_directory(str(path)), (str(path),), str(path), explicit=False)


@pytest.mark.parametrize("case", CASES)
def test_values(case: str, tmp_path: Path) -> None:
    arrays, _ = dequantized(packed_samples.save(tmp_path / "c", case))
    for name, expected in packed_samples.expected(case).items():
        array = arrays[name]
        assert (array.shape, array.dtype) == (expected.shape, np.float32)
        found = array.read_all()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_boxes(case: str, tmp_path: Path) -> None:
    """Boxes that cut words and groups anywhere."""
    arrays, _ = dequantized(packed_samples.save(tmp_path / "c", case))
    rng = np.random.default_rng(0)
    for name in packed_samples.expected(case):
        array, all_of_it = arrays[name], arrays[name].read_all()
        for _ in range(12):
            box = tuple(slice(*sorted(rng.choice(size + 1, 2, replace=False).tolist())) for size in array.shape)
            np.testing.assert_array_equal(array.read(box), all_of_it[box], err_msg=f"{name} {box}")
            assert 0 < array.cost(box) <= array.cost(whole(array.shape))


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_that_of_the_dequantised_weights(case: str, tmp_path: Path) -> None:
    path = packed_samples.save(tmp_path / "c", case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if case == STATIC else "error", CheckpointWarning)
        found = open_checkpoint(path)
    expected = open_checkpoint(packed_samples.save_dequantized(tmp_path / "f", case))
    assert found.config == expected.config == packed_samples.config_of(case)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        values = array.read_all()
        np.testing.assert_allclose(
            found.arrays[name].read_all(), values, rtol=1e-6, atol=1e-6 * np.abs(values).max(), err_msg=name
        )
    assert expected.quantization is None
    assert found.nbytes < expected.nbytes


@pytest.mark.parametrize("case", CASES)
def test_matrices_can_be_kept_quantised(case: str, tmp_path: Path) -> None:
    """Integers, zeros and scales in the layout of the matrix, whatever the stored one."""
    arrays, _ = dequantized(packed_samples.save(tmp_path / "c", case))
    count = 0
    for name, expected in packed_samples.expected(case).items():
        array = arrays[name]
        if not isinstance(array, QuantizedArray) or array.codebook is not None:
            continue
        count += 1
        rows, columns = array.block
        values = array.values.read_all()
        assert values.dtype in (np.int8, np.uint8, ml_dtypes.float8_e4m3fn)
        if values.dtype != ml_dtypes.float8_e4m3fn:
            assert int(values.max()) - int(values.min()) < 1 << array.bits
        values = values.astype(np.float32)

        def spread(
            part: LazyArray, array: QuantizedArray = array, rows: int = rows, columns: int = columns
        ) -> np.ndarray:
            part = part.read_all().astype(np.float32)
            if array.group_size is None:
                return part[:, array.index.read_all()]
            return part.repeat(rows, 0)[: array.shape[0]].repeat(columns, 1)[:, : array.shape[1]]

        if array.zeros is not None:
            values = values - spread(array.zeros)
        values = values * spread(array.scales)
        if array.biases is not None:
            values = values + spread(array.biases)
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
        assert array.symmetric == (array.zeros is None and array.biases is None)
    assert (count > 0) == ("nf4" not in case and "fp4" not in case)


LOGITS = [
    "ct-int8",
    "ct-int4",
    "ct-fp8",
    "ct-mixed",
    "gptq-zeros-index",
    "awq",
    "mlx",
    "mlx-vision",
    "bnb-nf4-nested",
    "bnb-int8",
]


@pytest.mark.parametrize("case", LOGITS)
def test_logits_are_those_of_the_dequantised_weights(case: str, tmp_path: Path) -> None:
    size = TOKENIZER.vocab_size
    options = {"mesh": mesh_of(1, 1), "max_context": 64, "tokenizer": TOKENIZER, "progress": False, "dtype": "float32"}
    tokens = [[2, 17, 400, 5, 63, 11]]
    logits = []
    for path in (
        packed_samples.save(tmp_path / "c", case, vocab_size=size),
        packed_samples.save_dequantized(tmp_path / "f", case, vocab_size=size),
    ):
        with gemma_tpu.load(path, **options) as model:
            assert (model.config.vision is not None) == (case == "mlx-vision")
            logits.append(np.asarray(model.logits(tokens)))
    assert np.abs(logits[1]).max() > 0.1
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_a_tower_that_is_not_quantised_beside_a_decoder_that_is(tmp_path: Path) -> None:
    """As Gemma 3 is quantised mostly; in the multimodal files' names."""

    def rename(arrays: packed_samples.Arrays) -> None:
        for name in list(arrays):
            arrays[f"language_model.{name}"] = arrays.pop(name)

    whole_model = samples.sample(packed_samples.config_of("mlx-vision"))
    path = packed_samples.save(tmp_path / "c", "ct-int4", change=rename)
    quantised = {f"language_model.{name}" for name in packed_samples.expected("ct-int4")}
    samples.save_hf(tmp_path / "rest", {n: a for n, a in whole_model.hf.items() if n not in quantised})
    (tmp_path / "rest" / "model.safetensors").rename(path / "model-1.safetensors")
    raw = samples.hf_config(whole_model.config) | CASES["ct-int4"]["config"]
    (path / "config.json").write_text(json.dumps(raw))
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == whole_model.config
    name = "vision_encoder/siglip_encoder/embedding/kernel"
    np.testing.assert_array_equal(checkpoint.arrays[name].read_all(), whole_model.canonical[name])
    expected = packed_samples.expected("ct-int4")["model.layers.0.mlp.down_proj.weight"].T
    np.testing.assert_allclose(checkpoint.arrays["layer_0/mlp/linear"].read_all(), expected, rtol=1e-6)


DESCRIBED = {
    "ct-int8": "compressed-tensors int-quantized (8 bits, per channel)",
    "ct-int4-zeros": "compressed-tensors pack-quantized (4 bits, groups of 32; 4 bits, per channel)",
    "ct-mixed": "compressed-tensors mixed-precision (6 bits, per channel; 8 bits, per channel; FP8, per channel)",
    STATIC: "compressed-tensors float-quantized (FP8, one scale)",
    "ct-fp8-block": "compressed-tensors float-quantized (FP8, blocks of 16 × 8)",
    "gptq-v2-8": "GPTQ (8 bits, groups of 32; 8 bits, per channel)",
    "awq": "AWQ (4 bits, groups of 32; 4 bits, per channel)",
    "mlx": "MLX (4 bits, groups of 32; 4 bits, per channel; 6 bits, per channel; 8 bits, per channel)",
    "bnb-nf4-grouped": "bitsandbytes nf4 (4 bits, groups of 64; 4 bits, per channel)",
    "bnb-int8": "bitsandbytes (8 bits, per channel)",
}


@pytest.mark.parametrize("case", DESCRIBED)
def test_info_names_the_format(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = packed_samples.save(tmp_path / "c", case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        assert main(["info", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["quantization"] == DESCRIBED[case]


def test_convert(tmp_path: Path) -> None:
    """Whatever is written is no longer quantised, and says so."""
    path = packed_samples.save(tmp_path / "c", "mlx")
    expected = open_checkpoint(path)
    for to in ("orbax", "safetensors"):
        found = open_checkpoint(convert(path, tmp_path / to, to=to, progress=False))
        assert found.quantization is None
        assert not json.loads(found.config_json).keys() & {"quantization", "quantization_config"}
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(found.arrays[name].read_all(), array.read_all())


def test_fixed_scales_of_activations_are_named(tmp_path: Path) -> None:
    path = packed_samples.save(tmp_path / "c", STATIC)
    said = r"made for activations or a KV cache .* \(model.layers.0.mlp.down_proj.input_scale, 7 in all\): here they"
    with pytest.warns(CheckpointWarning, match=said):
        open_checkpoint(path)


def test_a_scheme_for_the_cache_changes_nothing_without_scales(tmp_path: Path) -> None:
    config = CASES["ct-int8"]["config"]["quantization_config"]
    config = config | {"kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"}}
    path = packed_samples.save(tmp_path / "c", "ct-int8", quantization_config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        open_checkpoint(path)

    def add(arrays: packed_samples.Arrays) -> None:
        arrays["model.layers.0.self_attn.k_scale"] = np.ones(1, np.float32)

    with pytest.warns(CheckpointWarning, match="self_attn.k_scale, 1 in all"):
        open_checkpoint(packed_samples.save(tmp_path / "d", "ct-int8", change=add, quantization_config=config))


def test_zeros_of_zero_points_change_nothing(tmp_path: Path) -> None:
    """Programs have stored them for symmetric matrices too."""

    def add(arrays: packed_samples.Arrays) -> None:
        arrays[f"{Q}.weight_zero_point"] = np.zeros((18, 1), np.int8)

    arrays, _ = dequantized(packed_samples.save(tmp_path / "c", "ct-int8", change=add))
    np.testing.assert_allclose(arrays[f"{Q}.weight"].read_all(), packed_samples.expected("ct-int8")[f"{Q}.weight"])


# The pieces.


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 8),
    size=st.integers(1, 100),
    dtype=st.sampled_from([np.uint8, np.int32, np.uint32]),
    axis=st.integers(0, 1),
    data=st.data(),
)
def test_packed_integers(bits: int, size: int, dtype: type, axis: int, data: st.DataObject) -> None:
    """Against one long Python integer for each row."""
    width = np.dtype(dtype).itemsize * 8
    numbers = [[data.draw(st.integers(0, 2**bits - 1)) for _ in range(size)] for _ in range(2)]
    longs = [sum(number << (bits * i) for i, number in enumerate(row)) for row in numbers]
    count = -(-size * bits // width)
    words = np.array([[(long >> (width * i)) % 2**width for i in range(count)] for long in longs], np.uint64)
    words = words.astype(np.dtype(f"u{width // 8}")).view(dtype)
    expected = np.array(numbers) - (1 << bits >> 1)
    stored = InMemory(np.ascontiguousarray(np.moveaxis(words, -1, axis)), "words")
    found = PackedIntegers(stored, size, bits, axis=axis, offset=1 << bits >> 1)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    box = (slice(0, 2), slice(start, stop)) if axis else (slice(start, stop), slice(0, 2))
    np.testing.assert_array_equal(np.moveaxis(found.read(box), axis, -1), expected[:, start:stop])
    np.testing.assert_array_equal(unpack(words, bits)[:, :size], np.array(numbers))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_scales_of_any_dtype_and_zero_ones(dtype: type) -> None:
    values = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)
    scales = np.array([[0.5, 0], [0, 0], [1 / 3, 3], [1, 2]]).astype(dtype)
    array = QuantizedArray("w", InMemory(values, "v"), InMemory(scales, "s"), bits=8, block=(1, 3))
    expected = values * scales.astype(np.float32).repeat(3, 1)
    for rows, columns in itertools.product(itertools.combinations(range(5), 2), itertools.combinations(range(7), 2)):
        box = (slice(*rows), slice(*columns))
        np.testing.assert_array_equal(array.read(box), expected[box])
    assert array.read(whole((4, 6))).dtype == np.float32


def test_a_config_that_is_given_leaves_the_quantisation_to_config_json(tmp_path: Path) -> None:
    path = packed_samples.save(tmp_path / "c", "awq")
    assert open_checkpoint(path, config=packed_samples.config_of("awq")).quantization == DESCRIBED["awq"]


def test_one_file_alone(tmp_path: Path) -> None:
    path = packed_samples.save(tmp_path / "c", "awq")
    arrays = {**packed_samples.rest("awq")[1], **packed_samples.stored("awq")}
    samples.save_hf(tmp_path / "d", arrays, json.loads((path / "config.json").read_text()))
    assert open_checkpoint(tmp_path / "d" / "model.safetensors").quantization == DESCRIBED["awq"]
