"""The names under which other programs store quantised matrices in safetensors files, and what the arrays mean.

| format | stored beside a module's other arrays |
|---|---|
| compressed-tensors | weight (int8, float8) or weight_packed, weight_shape; weight_{scale, zero_point, g_idx} |
| GPTQ, AWQ | qweight, qzeros, scales; g_idx of GPTQ alone |
| MLX | weight (uint32), scales, biases |
| bitsandbytes, 4 bits | weight (any dtype), weight.{absmax, quant_map, nested_absmax, nested_quant_map, quant_state…} |
| bitsandbytes, 8 bits | weight (int8), SCB, weight_format |

Sources: compressed-tensors 0.20 (compressors/{pack_quantized,naive_quantized}), with `weight_g_idx` as in 0.9
(quantization/lifecycle/forward.py); gptqmodel 7.7 (nn_modules/qlinear/__init__.py, utils/model.py); autoawq 0.2.9
(modules/linear/gemm.py); mlx 0.32 (ops.cpp, affine_dequantize); bitsandbytes 0.50 (functional.py, nn/modules.py).
What a module's arrays are decides how it is read, and a config only what they leave open.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gemma_tpu.checkpoint import lazy
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.hf import SafetensorsArray
from gemma_tpu.checkpoint.lazy import FLOAT32, LazyArray
from gemma_tpu.checkpoint.packed import PackedIntegers, QuantizedArray
from gemma_tpu.checks import brief

Config = Mapping[str, Any]
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_HIGH_FIRST = (1, 0, 3, 2, 5, 4, 7, 6)
_INT8_SCALE = np.float32(7.874015718698502e-3)  # 1/127 as bitsandbytes has it (backends/default/ops.py)


class Stored(dict[str, SafetensorsArray]):
    """The arrays of a checkpoint by stored name, from which those of quantised matrices are taken."""

    def take(self, name: str, of: SafetensorsArray) -> SafetensorsArray:
        """Removes an array without which `of` cannot be read."""
        if name not in self:
            raise CheckpointError(f"{of.file}: {of.name} is quantised, and {name} is missing")
        return self.pop(name)


def is_packed(dtype: np.dtype) -> bool:
    """Whether only quantised matrices have this dtype."""
    return dtype.itemsize == 1 or (dtype.kind in "iu" and dtype != np.int64)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _refuse(array: LazyArray, why: str) -> CheckpointError:
    leaf = next(array.leaves())
    return CheckpointError(f"{leaf.file}: {leaf.name} is {leaf.dtype} {list(leaf.shape)}: {why}")


def _require_matrix(*arrays: LazyArray) -> None:
    for array in arrays:
        if len(array.shape) != 2 or 0 in array.shape:
            raise _refuse(array, "not a matrix")


def _int32(words: SafetensorsArray) -> SafetensorsArray:
    if words.dtype != np.int32:
        raise _refuse(words, "not packed into int32")
    return words


def _fitting_bits(words: LazyArray, axis: int, size: int, among: Iterable[int]) -> int:
    """The number of bits in `among` with which `size` integers fill `words` along `axis`."""
    width = 8 * words.dtype.itemsize
    found = {bits for bits in among if math.ceil(size * bits / width) == words.shape[axis]}
    if len(found) != 1:
        raise _refuse(
            words, f"not {size} integers of {' or '.join(map(str, sorted(set(among))))} bits along axis {axis}"
        )
    return found.pop()


# compressed-tensors.

_ACTIVATIONS = re.compile(r".+\.(?:input|output|q|k|v)_(?:scale|zero_point|global_scale)")


def pop_activation_scales(stored: Stored) -> list[str]:
    """Removes the fixed scales of activations and of the KV cache; returns their names."""
    names = [name for name in stored if _ACTIVATIONS.fullmatch(name)]
    for name in names:
        del stored[name]
    return names


def compressed_tensors(stored: Stored, weights: list[Config]) -> dict[str, LazyArray]:
    """`weights`: what the config's groups say of weights."""
    bits = {args["num_bits"] for args in weights if args.get("num_bits") in range(1, 9)} or {4, 8}
    blocks = {tuple(args["block_structure"]) for args in weights if _is_block(args.get("block_structure"))}
    found: dict[str, LazyArray] = {}
    for name, array in list(stored.items()):
        if name.endswith(".weight_packed"):
            found[f"{_module(name)}.weight"] = _compressed(stored, array, bits, blocks)
        elif name.endswith(".weight") and array.dtype in (np.int8, jnp.float8_e4m3fn):
            found[name] = _compressed(stored, array, None, blocks)
    return found


def _compressed(
    stored: Stored, array: SafetensorsArray, bits: set[int] | None, blocks: set[tuple[int, int]]
) -> QuantizedArray:
    """`bits`: what packed integers may have; None for a matrix that is not packed."""
    del stored[array.name]
    module = _module(array.name)
    _require_matrix(array)
    scales = _as_matrix(stored.take(f"{module}.weight_scale", array))
    zeros, index = (stored.pop(f"{module}.{part}", None) for part in ("weight_zero_point", "weight_g_idx"))
    values, of_values = array, 8
    if bits is not None:
        shape = stored.take(f"{module}.weight_shape", array).read_all().ravel().tolist()
        if len(shape) != 2 or shape[0] != array.shape[0]:
            raise _refuse(array, f"not the packed form of {shape}, which is its weight_shape")
        of_values = _fitting_bits(array, 1, shape[1], bits)
        offset = 1 << (of_values - 1)
        values = PackedIntegers(_int32(array), shape[1], of_values, axis=1, offset=offset)
        if zeros is not None:
            _require_matrix(zeros)
            zeros = PackedIntegers(_int32(zeros), shape[0], of_values, axis=0, offset=offset)
    if index is not None and -1 in index.read_all():
        index = None  # as initialised: never calibrated
    block = _block(values, scales, blocks)
    zeros = zeros and _as_matrix(zeros)
    return QuantizedArray(f"{module}.weight", values, scales, bits=of_values, block=block, zeros=zeros, index=index)


def _as_matrix(array: LazyArray) -> LazyArray:
    """[], [n] and [n, m] as a matrix; a vector is a column."""
    while len(array.shape) < 2:
        array = array.expand(len(array.shape))
    return array


def _is_block(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)


def _block(values: LazyArray, scales: LazyArray, blocks: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The rows and columns that share a scale: one of `blocks`, unless there is one scale, or some for each row."""
    (rows, columns), found = values.shape, scales.shape
    if found == (1, 1):
        return rows, columns
    if found[0] == rows and found[1] and columns % found[1] == 0:
        return 1, columns // found[1]
    for block in blocks:
        if found == (math.ceil(rows / block[0]), math.ceil(columns / block[1])):
            return block
    raise _refuse(scales, f"scales for neither channels, groups nor blocks of a matrix {[rows, columns]}")


# GPTQ and AWQ, which store matrices [in, out].


def gptq(stored: Stored, bits: int, less_one: bool) -> dict[str, LazyArray]:
    """`less_one`: zeros are stored less one, as in checkpoint_format "gptq"; "gptq_v2" stores them as they are."""

    def read(array: SafetensorsArray, qzeros: LazyArray, scales: LazyArray, module: str) -> QuantizedArray:
        index = stored.pop(f"{module}.g_idx", None)
        if index is None:
            size, of_values = array.shape[0] * 8 * array.dtype.itemsize // bits, bits
        else:
            size = index.shape[0]
            fits = math.ceil(size * bits / 32) == array.shape[0]
            of_values = bits if fits else _fitting_bits(array, 0, size, (2, 4, 8))
        if less_one:
            # Over whole words, since gptqmodel subtracts so: a zero of 0 borrows from the next.
            ones = np.uint32(sum(1 << shift for shift in range(0, 32, of_values)))
            qzeros = lazy.elementwise(lambda words: words.view(np.uint32) + ones, np.dtype(np.uint32), qzeros)
        values = PackedIntegers(array, size, of_values, axis=0)
        zeros = PackedIntegers(qzeros, array.shape[1], of_values, axis=1)
        group = math.ceil(size / scales.shape[0])
        return _transposed(module, values, scales, zeros, of_values, group, index)

    return _by_qweight(stored, read)


def awq(stored: Stored) -> dict[str, LazyArray]:
    def read(array: SafetensorsArray, qzeros: LazyArray, scales: LazyArray, module: str) -> QuantizedArray:
        size = 8 * array.shape[1]
        values = PackedIntegers(array, size, 4, axis=1, order=_AWQ_ORDER)
        zeros = PackedIntegers(qzeros, size, 4, axis=1, order=_AWQ_ORDER)
        if array.shape[0] % scales.shape[0]:
            raise _refuse(scales, f"scales for no groups of {array.shape[0]} rows")
        return _transposed(module, values, scales, zeros, 4, array.shape[0] // scales.shape[0], None)

    return _by_qweight(stored, read)


def _by_qweight(stored: Stored, read: Callable[..., QuantizedArray]) -> dict[str, LazyArray]:
    found: dict[str, LazyArray] = {}
    for name, array in list(stored.items()):
        if name.endswith(".qweight"):
            module = _module(stored.pop(name).name)
            qzeros, scales = (stored.take(f"{module}.{part}", array) for part in ("qzeros", "scales"))
            _require_matrix(array, qzeros, scales)
            found[f"{module}.weight"] = read(_int32(array), _int32(qzeros), scales, module)
    return found


def _transposed(
    module: str,
    values: LazyArray,
    scales: LazyArray,
    zeros: LazyArray,
    bits: int,
    group: int,
    index: LazyArray | None,
) -> QuantizedArray:
    values, scales, zeros = (part.transpose(1, 0) for part in (values, scales, zeros))
    return QuantizedArray(f"{module}.weight", values, scales, bits=bits, block=(1, group), zeros=zeros, index=index)


# MLX.


def mlx(stored: Stored, config: Config) -> dict[str, LazyArray]:
    """`config`: group_size and bits, and by module what differs there."""
    found: dict[str, LazyArray] = {}
    for name, array in list(stored.items()):
        if name.endswith(".weight") and array.dtype == np.uint32:
            del stored[name]
            module = _module(name)
            own = config.get(module)
            own = {**config, **own} if isinstance(own, Mapping) else config
            group, bits, mode = own.get("group_size"), own.get("bits"), own.get("mode")
            if mode not in (None, "affine"):
                raise _refuse(array, f"its mode is {brief(mode)}, which is not read here; only 'affine' is")
            if not isinstance(group, int) or not isinstance(bits, int) or group < 1 or bits not in range(2, 9):
                raise _refuse(array, f"config.json says group_size {brief(group)} and bits {brief(bits)} of it")
            scales, biases = (stored.take(f"{module}.{part}", array) for part in ("scales", "biases"))
            _require_matrix(array, scales, biases)
            values = PackedIntegers(array, scales.shape[1] * group, bits, axis=1)
            found[name] = QuantizedArray(name, values, scales, bits=bits, block=(1, group), biases=biases)
        elif name.endswith("patch_embedding.weight") and len(array.shape) == 4 and array.shape[1] == array.shape[2]:
            found[name] = stored.pop(name).transpose(0, 3, 1, 2)  # from [out, height, width, in]
    return found


# bitsandbytes.

_STATE = re.compile(r"(.+\.weight)\.quant_state\.bitsandbytes__\w+")


def bitsandbytes(stored: Stored) -> dict[str, LazyArray]:
    states = {match[1]: name for name in stored if (match := _STATE.fullmatch(name))}
    found: dict[str, LazyArray] = {}
    for name, array in list(stored.items()):
        if name in states:
            found[name] = _four_bits(stored, array, stored.pop(states[name]))
        elif name.endswith(".weight") and array.dtype == np.int8:
            found[name] = _eight_bits(stored, array)
        elif name.endswith(".weight") and array.dtype == np.uint8:
            raise CheckpointError(f"{array.file}: {name} is quantised, and {name}.quant_state… is missing")
    return found


def _four_bits(stored: Stored, array: SafetensorsArray, state: LazyArray) -> LazyArray:
    del stored[array.name]
    leaf = next(state.leaves())
    try:
        said = json.loads(state.read_all().tobytes())
        rows, columns = said["shape"]
        block, nested, offset = said["blocksize"], said.get("nested_blocksize"), said.get("nested_offset")
        if not all(type(size) is int and size > 0 for size in (rows, columns, block, 1 if nested is None else nested)):
            raise ValueError("its sizes are no positive integers")
        offset = np.float32(0 if offset is None else offset)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{leaf.file}: {leaf.name} does not describe how {array.name} is quantised: {error}"
        ) from error
    # The dtype that the bytes are stored in (bnb_4bit_quant_storage) says nothing of them.
    packed = SafetensorsArray(array.file, array.name, np.dtype(np.uint8), (array.nbytes,), array.offset)
    count = rows * columns
    values = PackedIntegers(packed, count, 4, axis=0, order=_HIGH_FIRST)
    codebook = _codebook(stored, f"{array.name}.quant_map", array, 16)
    absmax = stored.take(f"{array.name}.absmax", array)
    if absmax.dtype == np.uint8:
        scales = stored.take(f"{array.name}.nested_absmax", array)
        codes = _codebook(stored, f"{array.name}.nested_quant_map", array, 256)
        nested_block = (1, nested or 256)
        leaf = next(absmax.leaves())
        absmax = QuantizedArray(
            leaf.name, absmax.expand(0), scales.expand(0), bits=8, block=nested_block, codebook=codes
        ).take(0, 0)
        absmax = lazy.elementwise(lambda scales: scales + offset, FLOAT32, absmax)
    if absmax.shape != (math.ceil(count / block),):
        raise _refuse(absmax, f"not one scale for every {block} of {count} numbers")
    if columns % block == 0:
        values, absmax = values.split(0, (rows, columns)), absmax.split(0, (rows, columns // block))
        return QuantizedArray(array.name, values, absmax, bits=4, block=(1, block), codebook=codebook)
    flat = QuantizedArray(array.name, values.expand(0), absmax.expand(0), bits=4, block=(1, block), codebook=codebook)
    return flat.take(0, 0).split(0, (rows, columns))


def _codebook(stored: Stored, name: str, of: SafetensorsArray, size: int) -> LazyArray:
    codebook = stored.take(name, of)
    if codebook.shape != (size,) or not jnp.issubdtype(codebook.dtype, jnp.floating):
        raise _refuse(codebook, f"not {size} floating-point numbers")
    return codebook


def _eight_bits(stored: Stored, array: SafetensorsArray) -> QuantizedArray:
    module = _module(stored.pop(array.name).name)
    _require_matrix(array)
    scales, layout = stored.take(f"{module}.SCB", array), stored.pop(f"{module}.weight_format", None)
    if layout is not None and layout.read_all().any():
        raise _refuse(layout, "not 0, which is row-major: the weights are tiled for one kind of GPU. Save them anew")
    scales = lazy.elementwise(lambda absmax: absmax * _INT8_SCALE, FLOAT32, _as_matrix(scales))
    return QuantizedArray(array.name, array, scales, bits=8, block=(1, array.shape[1]))
