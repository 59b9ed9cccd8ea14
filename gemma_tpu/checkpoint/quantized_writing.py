"""Writes weights as integers with one scale for each output channel, in the formats that other programs read.

| format | arrays of X |
|---|---|
| safetensors: compressed-tensors, pack-quantized | X.weight_packed (int32), X.weight_scale, X.weight_shape |
| Orbax: gemma's peft.quantize (`flax_quantized`) | X/_IntEinsum_0/kernel (int8 or int4), X/_IntEinsum_0/scale |

Weights alone are quantised, for which compressed-tensors itself chooses "pack-quantized" (0.12: config/format.py). Both
leave the embeddings and the vision tower as they are: programs that read these formats have no place for the former.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gemma_tpu.checkpoint import flax_quantized, lazy, names, packed, per_channel, slices
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import FLOAT32, InMemory, LazyArray
from gemma_tpu.checkpoint.names import Arrays
from gemma_tpu.checkpoint.per_channel import Kept
from gemma_tpu.checkpoint.slices import Box
from gemma_tpu.config import GemmaConfig
from gemma_tpu.quantization import Quantization

BITS = {"int8": 8, "int4": 4}
# By module, of which neither Hugging Face's nor vLLM's names are quantised.
_IGNORED = ["re:.*lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"]


def require_writable(quantization: Quantization) -> None:
    """Raises `CheckpointError` for what the formats have no place for."""
    if quantization.matrices is None or quantization.vision is not None:
        raise CheckpointError(
            f"quantize: {quantization} cannot be written, since the decoder's matrices are what is quantised in a "
            'checkpoint: choose "int8" or "int4" here, and Quantization(vision=…, embedding=…) when it is loaded'
        )


def kept(arrays: Arrays, config: GemmaConfig, quantization: Quantization) -> Arrays:
    """The canonical arrays, with the decoder's matrices as `Kept` ones."""
    width = quantization.matrices
    assert width is not None
    grids, params = Quantization(width, None, None), names.params_from_canonical(arrays, config)
    for name, array in params.items():
        if grid := grids.grid(name, "cpu"):
            params[name] = per_channel.kept(array, name, grid, BITS[width])
    found = names.canonical_from_params(params, config)
    return {name: found[name] if is_kept(found[name]) else array for name, array in arrays.items()}


def is_kept(array: LazyArray) -> bool:
    return array.rearranged(lambda leaf: leaf if isinstance(leaf, Kept) else None) is not None


def in_memory(name: str, values: Any, scales: Any) -> Kept:
    """A parameter that is quantised already."""
    bits = 4 if values.dtype == jnp.int4 else 8
    return per_channel.as_kept(name, InMemory(values, name), InMemory(scales, f"{name} (scales)"), bits)


# Orbax.


def orbax_arrays(canonical: Mapping[str, LazyArray]) -> Arrays:
    """Canonical arrays with the two of `flax_quantized` for each `Kept` one."""
    arrays: Arrays = {}
    for name, array in canonical.items():
        if not is_kept(array):
            arrays[name] = array
            continue
        module, summed = flax_quantized.quantized_name(name)
        values, scales, bits = _split(array, summed)
        arrays[f"{module}/kernel"] = values if bits == 8 else values.astype(np.dtype(jnp.int4))
        # In float32 another division gives the scale back up to its last bit, and that one stays as it is.
        arrays[f"{module}/scale"] = lazy.elementwise(lambda scales: 1 / scales, FLOAT32, scales)
    return arrays


def _split(array: LazyArray, summed: tuple[int, ...]) -> per_channel.PerChannel:
    found = per_channel.split(array, summed, of=Kept)
    assert found is not None, array
    return found


# compressed-tensors.


def hf_arrays(named: Mapping[str, LazyArray]) -> Arrays:
    """Arrays by Hugging Face's names, with the three of a packed matrix [out, in] for each `Kept` one."""
    arrays: Arrays = {}
    for name, array in named.items():
        if not is_kept(array):
            arrays[name] = array
            continue
        values, scales, bits = _split(array, (1,))
        arrays[f"{name}_packed"] = _Packed(values, bits)
        arrays[f"{name}_scale"] = scales
        arrays[f"{name}_shape"] = InMemory(np.array(array.shape, np.int64), f"{name}_shape")
    return arrays


class _Packed(LazyArray):
    """The integers of `bits` bits of each row of a matrix in int32 words, biased so that none is negative."""

    dtype = np.dtype(np.int32)

    def __init__(self, values: LazyArray, bits: int):
        self.sources, self.bits, self.each = (values,), bits, 32 // bits
        self.shape = values.shape[0], math.ceil(values.shape[1] / self.each)

    def _values_box(self, box: Box) -> Box:
        (values,), part = self.sources, box[1]
        return box[0], slice(part.start * self.each, min(part.stop * self.each, values.shape[1]))

    def read(self, box: Box) -> np.ndarray:
        return packed.pack(slices.contiguous(self.sources[0].read(self._values_box(box))), self.bits)

    def cost(self, box: Box) -> int:
        return self.sources[0].cost(self._values_box(box))


def with_config(config_json: str, quantization: Quantization) -> str:
    """A config.json that says how the matrices are stored, as compressed-tensors writes it."""
    weights = {"num_bits": BITS[quantization.matrices or "int8"], "type": "int", "symmetric": True}
    weights |= {"group_size": None, "strategy": "channel", "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    said = {
        "config_groups": {"group_0": group | {"format": "pack-quantized"}},
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": None,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": _IGNORED,
    }
    return json.dumps(json.loads(config_json) | {"quantization_config": said}, indent=2) + "\n"
