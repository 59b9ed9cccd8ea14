"""Quantised checkpoints against the programs that write them (goldens/packed): values, boxes, and what is refused."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path

import checkpoint_samples as samples
import jax
import ml_dtypes
import numpy as np
import packed_samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_samples import CASES
from small_models import mesh_of

import gemma_tpu
from gemma_tpu.checkpoint import (
    CheckpointError,
    CheckpointWarning,
    convert,
    hf,
    load_params,
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


def failure(path: Path) -> str:
    """The message of the one error of opening or reading everything."""
    with pytest.raises(CheckpointError) as error:
        [array.read_all() for array in open_checkpoint(path).arrays.values()]
    message = str(error.value)
    assert "\n" not in message
    return message


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


# Damage.

Q, K = (f"model.layers.0.self_attn.{part}_proj" for part in "qk")


def _set(name: str, array: np.ndarray):
    return lambda arrays: arrays.__setitem__(name, array)


def _drop(*names: str):
    return lambda arrays: [arrays.pop(name) for name in names]


def _nan(name: str, value: float = np.nan):
    def change(arrays: packed_samples.Arrays) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].flat[-1] = value

    return change


def _int32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


DAMAGE = {
    "ct scale": ("ct-int8", _drop(f"{Q}.weight_scale"), f"{Q}.weight is quantised, and {Q}.weight_scale is missing"),
    "ct shape": ("ct-int4", _drop(f"{Q}.weight_shape"), f"{Q}.weight_packed is quantised, and {Q}.weight_shape is mi"),
    "ct words": (
        "ct-int4",
        _set(f"{Q}.weight_packed", _int32(32, 7)),
        f"{Q}.weight_packed is int32 [32, 7]: not 64 in",
    ),
    "ct rows": (
        "ct-int4",
        _set(f"{Q}.weight_packed", _int32(31, 8)),
        f"{Q}.weight_packed is int32 [31, 8]: not the pa",
    ),
    "ct other shape": ("ct-int4", _set(f"{Q}.weight_shape", np.array([8])), "not the packed form of [8], which is its"),
    "ct vector": ("ct-int8", _set(f"{Q}.weight", np.zeros(18, np.int8)), f"{Q}.weight is int8 [18]: not a matrix"),
    "ct scales": (
        "ct-int8",
        _set(f"{Q}.weight_scale", np.ones((17, 1), np.float32)),
        f"{Q}.weight_scale is float32 [17, 1",
    ),
    "ct integers": (
        "ct-int8",
        _set(f"{Q}.weight_scale", np.ones((18, 1), np.int8)),
        f"{Q}.weight_scale is int8: not floa",
    ),
    "ct zeros": (
        "ct-int8-zeros",
        _set(f"{Q}.weight_zero_point", np.ones((9, 1), np.int8)),
        f"{Q}.weight_zero_point is [9, 1",
    ),
    "ct bytes": (
        "ct-int4",
        _set(f"{Q}.weight_zero_point", np.zeros((32, 2), np.int8)),
        "[32, 2]: not packed into int32",
    ),
    "ct twice": ("ct-int4", _set(f"{Q}.weight", np.ones((32, 64), np.float32)), f"{Q}.weight is stored twice"),
    "ct nan": ("ct-int4", _nan(f"{Q}.weight_scale"), f"{Q}.weight_scale holds NaN"),
    "ct infinity": ("ct-int8", _nan(f"{Q}.weight_scale", np.inf), f"{Q}.weight_scale holds infinity"),
    "ct index": (
        "ct-int4-index",
        _nan(f"{Q}.weight_g_idx", 9),
        f"{Q}.weight_g_idx names groups 0 to 9, and {Q}.weight h",
    ),
    "ct short index": (
        "ct-int4-index",
        _set(f"{Q}.weight_g_idx", _int32(63)),
        f"{Q}.weight_g_idx is int32 [63], not one group",
    ),
    "ct index of another kind": (
        "ct-int4-index",
        _set(f"{Q}.weight_g_idx", np.zeros(64, np.float32)),
        "is float32 [64], no",
    ),
    "ct no weight": ("ct-int8", _drop(f"{K}.weight"), f"missing {K}.weight; unexpected {K}.weight_scale"),
    "gptq zeros": ("gptq-v2-8", _drop(f"{Q}.qzeros"), f"{Q}.qweight is quantised, and {Q}.qzeros is missing"),
    "gptq words": (
        "gptq-v2-8",
        _set(f"{Q}.qweight", _int32(15, 32)),
        f"{Q}.qweight is int32 [15, 32]: not 64 integers",
    ),
    "gptq dtype": (
        "gptq-v2-8",
        _set(f"{Q}.qweight", np.zeros((64, 32), np.int8)),
        f"{Q}.qweight is int8 [64, 32]: not packe",
    ),
    "gptq scales": (
        "gptq-v2-8",
        _set(f"{Q}.scales", np.ones((2, 31), np.float16)),
        f"{Q}.scales is [2, 31], which does not",
    ),
    "gptq qzeros": ("gptq-v2-8", _set(f"{Q}.qzeros", _int32(2, 9)), f"{Q}.qzeros is [2, 9]: not 32 integers of 8 bits"),
    "gptq infinity": (
        "gptq-zeros-index",
        _nan(f"{Q}.scales", np.inf),
        f"{Q}.scales holds infinity: they overflowed fl",
    ),
    "gptq index": ("gptq-zeros-index", _nan(f"{Q}.g_idx", -1), f"{Q}.g_idx names groups -1 to 1"),
    "awq scales": ("awq", _drop(f"{Q}.scales"), f"{Q}.qweight is quantised, and {Q}.scales is missing"),
    "awq groups": (
        "awq",
        _set(f"{Q}.scales", np.ones((3, 32), np.float16)),
        f"{Q}.scales is float16 [3, 32]: scales for no",
    ),
    "mlx biases": ("mlx", _drop(f"{Q}.biases"), f"{Q}.weight is quantised, and {Q}.biases is missing"),
    "mlx words": (
        "mlx",
        _set(f"{Q}.weight", np.zeros((32, 11), np.uint32)),
        f"{Q}.weight is [32, 11]: not 64 integers of 6 b",
    ),
    "mlx nan": ("mlx", _nan(f"{Q}.biases"), f"{Q}.biases holds NaN"),
    "bnb state": (
        "bnb-nf4",
        _drop(f"{Q}.weight.quant_state.bitsandbytes__nf4"),
        f"{Q}.weight is quantised, and {Q}.weight.qu",
    ),
    "bnb no state": (
        "bnb-nf4",
        _set(f"{Q}.weight.quant_state.bitsandbytes__nf4", np.zeros(9, np.uint8)),
        f"{Q}.weight.quant_state.bitsandbytes__nf4 does not describe how {Q}.weight is quantised: ",
    ),
    "bnb absmax": (
        "bnb-nf4",
        _drop(f"{Q}.weight.absmax"),
        f"{Q}.weight is quantised, and {Q}.weight.absmax is missing",
    ),
    "bnb absmax shape": (
        "bnb-nf4",
        _set(f"{Q}.weight.absmax", np.ones(5, np.float32)),
        f"{Q}.weight.absmax is float32 [5]: no",
    ),
    "bnb map": (
        "bnb-nf4",
        _set(f"{Q}.weight.quant_map", np.ones(15, np.float32)),
        f"{Q}.weight.quant_map is float32 [15]: not 16",
    ),
    "bnb bytes": (
        "bnb-nf4",
        _set(f"{Q}.weight", np.zeros((179, 1), np.uint8)),
        f"{Q}.weight is [179]: not 360 integers of 4 b",
    ),
    "bnb nested": ("bnb-nf4-nested", _nan(f"{Q}.weight.nested_absmax"), f"{Q}.weight.nested_absmax holds NaN"),
    "bnb SCB": ("bnb-int8", _drop(f"{Q}.SCB"), f"{Q}.weight is quantised, and {Q}.SCB is missing"),
    "bnb tiles": (
        "bnb-int8",
        _set(f"{Q}.weight_format", np.array([2], np.uint8)),
        f"{Q}.weight_format is uint8 [1]: not 0, whi",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_names_the_file_and_the_array(damage: str, tmp_path: Path) -> None:
    case, change, message = DAMAGE[damage]
    path = packed_samples.save(tmp_path / "c", case, change=change)
    said = failure(path)
    assert message in said
    assert said.startswith(f"{path}/model-2.safetensors: " if "unexpected" not in message else f"{path}: ")


def test_numbers_that_are_not_finite_leave_no_arrays_on_devices(tmp_path: Path) -> None:
    path = packed_samples.save(tmp_path / "c", "ct-int4", change=_nan(f"{Q}.weight_scale"))
    checkpoint = open_checkpoint(path)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    before = {id(array) for array in jax.live_arrays()}
    with pytest.raises(CheckpointError, match=f"model-2.safetensors: {Q}.weight_scale holds NaN"):
        load_params(checkpoint, checkpoint.config, dtype=np.float32, sharding=lambda *_: one_device, progress=False)
    assert not [array for array in jax.live_arrays() if id(array) not in before]


REFUSED = {
    "another method": (
        "ct-int8",
        {"quant_method": "torchao"},
        r"a quantised checkpoint \(quantization_config: torchao\)",
    ),
    "no method": ("ct-int8", {"quant_method": None}, "of no named method"),
    "Gemma 4's": ("ct-int8", {"quant_method": "gemma"}, "quantization_config: gemma"),
    "NVFP4": ("ct-int8", {"format": "nvfp4-pack-quantized"}, "its format is 'nvfp4-pack-quantized'; only 'dense' and"),
    "a group's format": ("ct-int8", {"config_groups": {"a": {"format": "marlin-24"}}}, "its format is 'marlin-24'"),
    "rotated": ("ct-int8", {"transform_config": {"config_groups": {}}}, "its transform_config is"),
    "sparse": ("ct-int8", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "its sparsity_config is"),
    "Marlin": ("gptq-v2-8", {"checkpoint_format": "marlin"}, "its checkpoint_format is 'marlin'"),
    "two formats": ("gptq-v2-8", {"format": "gptq"}, "its format is 'gptq'; only 'gptq_v2'"),
    "GPTQ of 3 bits": ("gptq-v2-8", {"bits": 3}, "its bits is 3; only 2 and 4 and 8"),
    "gemv": ("awq", {"version": "gemv"}, "its version is 'gemv'"),
    "FP4 of MLX": ("mlx", {"mode": "mxfp4"}, "its mode is 'mxfp4'"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_read_is_refused_by_name_with_a_way_out(why: str, tmp_path: Path) -> None:
    case, change, message = REFUSED[why]
    config = {key: value | change for key, value in CASES[case]["config"].items()}
    path = packed_samples.save(tmp_path / "c", case, **config)
    with pytest.raises(CheckpointError, match=rf"^{path}/config.json: .*{message}.*-unquantized$"):
        open_checkpoint(path)


def test_a_method_may_be_named_by_the_text_config_alone(tmp_path: Path) -> None:
    config = packed_samples.config_of("mlx-vision")
    raw = samples.hf_config(config)
    raw["text_config"]["quantization_config"] = {"bits": 4}
    path = samples.save_hf(tmp_path / "c", samples.sample(config).hf, raw)
    with pytest.raises(CheckpointError, match=r"config\.json: a quantised checkpoint .* no named method"):
        open_checkpoint(path)


def test_modules_of_mlx_have_a_mode_too(tmp_path: Path) -> None:
    config = CASES["mlx"]["config"]["quantization"] | {Q: {"group_size": 32, "bits": 4, "mode": "nvfp4"}}
    path = packed_samples.save(tmp_path / "c", "mlx", quantization=config)
    assert f"{Q}.weight is uint32 [32, 12]: its mode is 'nvfp4', which is not read here" in failure(path)
    config[Q] = {"group_size": 0, "bits": 4}
    path = packed_samples.save(tmp_path / "d", "mlx", quantization=config)
    assert "config.json says group_size 0 and bits 4 of it" in failure(path)


def test_integers_of_which_config_json_says_nothing(tmp_path: Path) -> None:
    path = packed_samples.save(tmp_path / "c", "gptq-v2-8", quantization_config=None)
    said = r"model-2.safetensors: \S+ is int32, and config.json says nothing of how it is quantised: take"
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(path)
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"is int32, and config\.json is missing, which says how it is quantised"):
        open_checkpoint(path, config=packed_samples.config_of("gptq-v2-8"))
    # One matrix that the method does not know of.
    config = CASES["awq"]["config"]["quantization_config"]
    path = packed_samples.save(tmp_path / "d", "bnb-int8", quantization_config=config)
    assert "is int8" in failure(path) or "unexpected" in failure(path)


def test_a_config_that_is_given_leaves_the_quantisation_to_config_json(tmp_path: Path) -> None:
    path = packed_samples.save(tmp_path / "c", "awq")
    assert open_checkpoint(path, config=packed_samples.config_of("awq")).quantization == DESCRIBED["awq"]


def test_one_file_alone(tmp_path: Path) -> None:
    path = packed_samples.save(tmp_path / "c", "awq")
    arrays = {**packed_samples.rest("awq")[1], **packed_samples.stored("awq")}
    samples.save_hf(tmp_path / "d", arrays, json.loads((path / "config.json").read_text()))
    assert open_checkpoint(tmp_path / "d" / "model.safetensors").quantization == DESCRIBED["awq"]
