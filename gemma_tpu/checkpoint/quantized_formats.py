"""Finds out how a Hugging Face checkpoint is quantised, and gives its quantised matrices as float32 lazy arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from gemma_tpu.checkpoint import packed, packed_names, storage
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.hf import SafetensorsArray
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checks import brief, one_line

# Formats of compressed-tensors (config/base.py) that are read, for a whole checkpoint or a group of its modules.
_COMPRESSED = ("dense", "int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision")
_WAY_OUT = "take the one with bfloat16 weights: of Google's -qat- checkpoints, that is the one ending in -unquantized"


def dequantize(
    arrays: Mapping[str, SafetensorsArray], directories: tuple[str, ...], path: str, *, explicit: bool
) -> tuple[dict[str, LazyArray], str | None]:
    """The arrays with quantised matrices as float32 ones, and what the format is: None if nothing is quantised.

    `explicit`: the caller gave the architecture, so config.json is read only if there is something quantised.

    Raises `CheckpointError` for a format that is not read here, or if anything of a matrix is missing or does not fit.
    """
    integers = next((array for array in arrays.values() if packed_names.is_packed(array.dtype)), None)
    file = None if explicit and integers is None else storage.find(directories, "config.json")
    raw = storage.read_json(file) if file else {}
    found = _config(raw)
    if found is None:
        if integers is not None:
            says = "says nothing of how it is quantised" if file else "is missing, which says how it is quantised"
            what = f"{integers.file}: {integers.name} is {integers.dtype}"
            raise CheckpointError(f"{what}, and config.json {says}: {_WAY_OUT}")
        return dict(arrays), None
    method, config = found
    stored = packed_names.Stored(arrays)
    where = f"{file}: a quantised checkpoint (quantization_config: {method})"
    if method == "compressed-tensors":
        matrices = packed_names.compressed_tensors(stored, _compressed_weights(config, where))
        if fixed := packed_names.pop_activation_scales(stored):
            warnings.warn(
                f"{path}: made for activations or a KV cache that are quantised with fixed scales ({fixed[0]}, "
                f"{len(fixed)} in all): here they are not quantised, so outputs differ a little from those programs'",
                CheckpointWarning,
                stacklevel=4,
            )
    elif method == "gptq":
        matrices = packed_names.gptq(stored, *_gptq(config, where))
    elif method == "awq":
        _require(config, where, version=("gemm", "GEMM"), format=("gemm",), bits=(4,), w_bit=(4,))
        matrices = packed_names.awq(stored)
    elif method == "mlx":
        _require(config, where, mode=("affine",))
        matrices = packed_names.mlx(stored, config)
    elif method == "bitsandbytes":
        matrices = packed_names.bitsandbytes(stored)
    else:
        raise CheckpointError(f"{where}: {_WAY_OUT}")
    if twice := sorted(stored.keys() & matrices.keys()):
        raise CheckpointError(f"{stored[twice[0]].file}: {twice[0]} is stored twice: as it is, and quantised")
    return {**stored, **matrices}, packed.describe(_title(method, config), matrices.values())


def _config(raw: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The method of quantisation and what else is said of it; None if nothing is."""
    for part in (raw, raw.get("text_config")):
        for key in ("quantization", "quantization_config"):
            config = part.get(key) if isinstance(part, Mapping) else None
            if not config:
                continue
            if not isinstance(config, Mapping):
                return "of no named method", {}
            # mlx-lm writes both keys alike, without a method.
            is_mlx = "quant_method" not in config and {"group_size", "bits"} <= config.keys()
            method = "mlx" if is_mlx else config.get("quant_method") or "of no named method"
            return one_line(method)[:80], config
    return None


def _require(config: Mapping[str, Any], where: str, **allowed: tuple[Any, ...]) -> None:
    """Raises `CheckpointError` if a setting that changes what the arrays mean is another than those read here."""
    for key, values in allowed.items():
        value = config.get(key)
        if value is not None and value not in values:
            raise CheckpointError(
                f"{where}: its {key} is {brief(value)}; only {' and '.join(map(repr, values))} can be read: {_WAY_OUT}"
            )


def _compressed_weights(config: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """What the groups of a compressed-tensors config say of weights."""
    groups = config.get("config_groups")
    groups = [one for one in groups.values() if isinstance(one, Mapping)] if isinstance(groups, Mapping) else []
    for one in (config, *groups):
        _require(one, where, format=_COMPRESSED)
    for key in ("sparsity_config", "transform_config"):
        if (value := config.get(key)) and not (isinstance(value, Mapping) and value.get("format") == "dense"):
            raise CheckpointError(f"{where}: its {key} is {brief(value)}, which is not read here: {_WAY_OUT}")
    return [one["weights"] for one in groups if isinstance(one.get("weights"), Mapping)]


def _gptq(config: Mapping[str, Any], where: str) -> tuple[int, bool]:
    """The bits of most matrices, and whether zeros are stored less one."""
    formats = ("gptq", "gptq_v2")
    _require(config, where, checkpoint_format=formats, format=formats, bits=(2, 4, 8), is_marlin_format=(False,))
    _require(config, where, pack_dtype=("int32",), rotation=(False, "none"))
    form = config.get("checkpoint_format") or config.get("format") or "gptq"
    _require(config, where, format=(form,))  # programs differ in which of the two they go by
    return config.get("bits") or 4, form == "gptq"


def _title(method: str, config: Mapping[str, Any]) -> str:
    names = {"mlx": "MLX", "gptq": "GPTQ", "awq": "AWQ"}
    key = {"compressed-tensors": "format", "bitsandbytes": "bnb_4bit_quant_type"}.get(method)
    form = config.get(key) if key and not config.get("load_in_8bit") else None
    return " ".join([names.get(method, method), *([one_line(form)[:80]] if isinstance(form, str) else [])])
