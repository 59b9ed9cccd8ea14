"""Quantised checkpoints that are damaged, or of a format that is not read: the error names file and array."""

from __future__ import annotations

from pathlib import Path

import checkpoint_samples as samples
import jax
import numpy as np
import packed_samples
import pytest
from packed_samples import CASES, K, Q

from gemma_tpu.checkpoint import (
    CheckpointError,
    load_params,
    open_checkpoint,
)


def failure(path: Path) -> str:
    """The message of the one error of opening or reading everything."""
    with pytest.raises(CheckpointError) as error:
        [array.read_all() for array in open_checkpoint(path).arrays.values()]
    message = str(error.value)
    assert "\n" not in message
    return message


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
