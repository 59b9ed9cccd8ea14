"""Meshes, and the one table that maps dimension letters (gemma_tpu.config) to mesh axes.

A user's mesh is data × model: copies of the weights, and chips that share one copy. Inside, the model axis is
heads × slots: as many ways as it can over the kv heads, and beyond them over the length of the cache, so that no chip
keeps a kv head's whole cache because another chip has the same head. 27B on 8 chips is heads 8 × slots 1, 4B (4 kv
heads) is 4 × 2, 1B (one kv head) 1 × 8. Weights wider than the kv heads are split over both axes together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma_tpu.config import GemmaConfig
from gemma_tpu.devices import available_devices

AXES = ("data", "heads", "slots")
_MODEL = ("heads", "slots")

# Letters that are split, and over which mesh axes; every other letter is whole on each device. An axis splits the first
# letter of this table that can use it, so D is split only where no other has taken "slots": in the attention's weights,
# but not in those of its output if the slots divide a kv head's query heads.
_MESH_AXES = {
    "R": ("data",),
    "A": ("data",),
    "B": ("data",),
    "I": ("data",),
    "K": ("heads",),
    "G": ("slots",),
    "S": ("slots",),
    "F": _MODEL,
    "V": _MODEL,
    "n": _MODEL,
    "M": _MODEL,
    "D": ("slots",),
}

# Dimensions of each parameter, by its name without the layer number.
_PARAM_DIMS = {
    "embedder.table": "VD",
    "embedder.head": "VD",
    "attention.qkv": "KcHD",
    "attention.out": "KGHD",
    "mlp.gate_up": "cFD",
    "mlp.down": "DF",
    "vision.patch.kernel": "ppcE",
    "vision.positions": "PE",
    "vision.projection": "ED",
    "vision.attention.qkv": "cnhE",
    "vision.attention.qkv_bias": "cnh",
    "vision.attention.out": "nhE",
    "vision.mlp.up": "EM",
    "vision.mlp.up_bias": "M",
    "vision.mlp.down": "ME",
}


def make_mesh(
    config: GemmaConfig, shape: Sequence[int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A data × model mesh over `devices` (default: all); by default every device is on the model axis.

    The model axis comes back as heads × slots, see above. Raises ValueError if the shape does not use each device
    exactly once, or if there are no devices of the kind that $JAX_PLATFORMS names.
    """
    devices = available_devices() if devices is None else devices
    sides = (1, len(devices)) if shape is None else tuple(shape)
    if len(sides) != 2 or min(sides) < 1 or math.prod(sides) != len(devices):
        raise ValueError(f"mesh {shape} does not fit {len(devices)} devices: data × model must be {len(devices)}")
    data, model = sides
    heads = math.gcd(model, config.num_kv_heads)
    return Mesh(np.asarray(devices).reshape(data, heads, model // heads), AXES)


def partition(dims: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose dimensions are named by the letters of `dims`.

    A dimension is split over as many of its mesh axes, from the first, as divide it, and each mesh axis is used once.
    """
    split: dict[str, tuple[str, ...]] = {}
    sizes = dict(zip(dims, shape, strict=True))
    for letter in filter(sizes.get, _MESH_AXES):
        used = {axis for axes in split.values() for axis in axes}
        axes = tuple(axis for axis in _MESH_AXES[letter] if mesh.shape[axis] > 1 and axis not in used)
        while sizes[letter] % math.prod(mesh.shape[axis] for axis in axes):
            axes = axes[:-1]
        split[letter] = axes
    return NamedSharding(mesh, PartitionSpec(*(split.get(letter) or None for letter in dims)))


def constrain(x: jax.Array, dims: str, mesh: Mesh | None, *, summed: tuple[str, Sequence[int]] = ("", ())) -> jax.Array:
    """`x` split as the letters of its dimensions say, where XLA's default would add a collective; without a mesh, `x`.

    `summed`: letters and sizes of the dimensions that the product which gave `x` sums over. Mesh axes that split those
    do not split `x`.
    """
    if mesh is None:
        return x
    letters, sizes = summed
    spec = partition(letters + dims, (*sizes, *x.shape), mesh).spec[len(letters) :]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def param_dims(name: str) -> tuple[str, str]:
    """Letters of a parameter's dimensions, "" for a norm or bias that is whole, and its name without the layer number.

    `name`: as of `gemma_tpu.model.param_shapes`.
    """
    kind = re.sub(r"^layers\.\d+\.|(?<=vision\.)blocks\.\d+\.", "", name)
    return _PARAM_DIMS.get(kind, ""), kind


def param_sharding(name: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of a parameter by its name; norms and biases are whole."""
    return partition(param_dims(name)[0] or "." * len(shape), shape, mesh)
