"""Meshes, and the one table that maps dimension letters (gemma_tpu.config) to mesh axes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "model")

# Letters that are split, and over which mesh axis; every other letter is whole on each device.
_MESH_AXIS = {"R": "data", "B": "data", "K": "model", "F": "model", "V": "model", "n": "model", "M": "model"}

# Dimensions of each parameter, by its name without the layer number.
_PARAM_DIMS = {
    "embedder.table": "VD",
    "attention.qkv": "KcHD",
    "attention.out": "KGHD",
    "mlp.gate_up": "cFD",
    "mlp.down": "FD",
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


def make_mesh(shape: tuple[int, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, model) mesh over `devices` (default: all); by default every device is on the model axis.

    Raises ValueError if the shape does not use each device exactly once.
    """
    devices = jax.devices() if devices is None else devices
    shape = (1, len(devices)) if shape is None else tuple(shape)
    if len(shape) != 2 or min(shape) < 1 or math.prod(shape) != len(devices):
        raise ValueError(f"mesh {shape} does not fit {len(devices)} devices: data × model must be {len(devices)}")
    return Mesh(np.asarray(devices).reshape(shape), AXES)


def partition(dims: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose dimensions are named by the letters of `dims`.

    A dimension that the mesh axis does not divide stays whole, and each mesh axis is used once.
    """
    spec: list[str | None] = []
    for letter, size in zip(dims, shape, strict=True):
        axis = _MESH_AXIS.get(letter)
        usable = axis is not None and axis not in spec and size % mesh.shape[axis] == 0
        spec.append(axis if usable else None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def param_sharding(name: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of a parameter by its name (`gemma_tpu.model.param_shapes`); norms and biases are whole."""
    dims = _PARAM_DIMS.get(re.sub(r"^layers\.\d+\.|(?<=vision\.)blocks\.\d+\.", "", name))
    return partition(dims or "." * len(shape), shape, mesh)
