"""Weights that `peft.quantize` of Google's gemma package (3.3: peft/_quantization_utils.py) has quantised.

X/w is stored as X/_IntEinsum_0/{kernel, scale}, and X/{name} as X/_IntEinsum_{name}/{kernel, scale}. The kernel has the
shape of the weight in int4 or int8, the scale the same with a size of 1 for contracted axes: the weight is
kernel / scale (gm/nn/_quantization.py, _IntEinsum).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from gemma_tpu.checkpoint import lazy, packed
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import FLOAT32, LazyArray
from gemma_tpu.checkpoint.packed import QuantizedArray

_PART = re.compile(r"(.+)/_IntEinsum_(\w+)/(kernel|scale)")
_BITS = {np.dtype(jnp.int4): 4, np.dtype(np.int8): 8}


# The contracted axes of the decoder's matrices.
_SUMMED = {
    "q_einsum/w": (1,), "kv_einsum/w": (2,), "qkv_einsum/w": (2,), "attn_vec_einsum/w": (0, 1),
    "gating_einsum": (2,), "linear": (0,),
}  # fmt: skip


def quantized_name(canonical: str) -> tuple[str, tuple[int, ...]]:
    """The module that holds kernel and scale of a matrix of the decoder, and its contracted axes."""
    module, _, name = canonical.rpartition("/")
    if name == "w":
        return f"{module}/_IntEinsum_0", _SUMMED[f"{module.rpartition('/')[2]}/w"]
    return f"{module}/_IntEinsum_{name}", _SUMMED[name]


def dequantize(arrays: Mapping[str, LazyArray], path: str) -> dict[str, LazyArray]:
    """The same arrays with each kernel and scale as one of float32, by the name of the weight."""
    found: dict[str, LazyArray] = {}
    parts: dict[str, dict[str, LazyArray]] = {}
    for name, array in arrays.items():
        if match := _PART.fullmatch(name):
            weight = f"{match[1]}/{'w' if match[2].isdigit() else match[2]}"
            parts.setdefault(weight, {})[match[3]] = array
        else:
            found[name] = array
    for name, pair in parts.items():
        if len(pair) != 2:
            (part,) = pair.values()
            raise CheckpointError(f"{path}: {next(part.leaves()).name} is without its kernel or scale")
        if name in found:
            raise CheckpointError(f"{path}: {name} is stored twice: as it is, and quantised")
        found[name] = _weight(name, pair["kernel"], pair["scale"], path)
    return found


def _weight(name: str, kernel: LazyArray, scale: LazyArray, path: str) -> QuantizedArray:
    if kernel.dtype not in _BITS:
        raise CheckpointError(f"{path}: {next(kernel.leaves()).name} is {kernel.dtype}, not int4 or int8")
    if len(scale.shape) != len(kernel.shape):
        raise CheckpointError(
            f"{path}: {next(scale.leaves()).name} is {list(scale.shape)}, not of {len(kernel.shape)} axes"
        )
    block = tuple(size if count == 1 else 1 for size, count in zip(kernel.shape, scale.shape, strict=True))
    scales = lazy.elementwise(lambda values: 1 / values.astype(np.float32), FLOAT32, scale)
    return QuantizedArray(name, kernel, scales, bits=_BITS[kernel.dtype], block=block)


def describe(arrays: Mapping[str, LazyArray]) -> str | None:
    """What is quantised in canonical arrays; None if nothing is."""
    if not any(isinstance(leaf, QuantizedArray) for array in arrays.values() for leaf in array.leaves()):
        return None
    return packed.describe("gemma's peft.quantize", arrays.values())
