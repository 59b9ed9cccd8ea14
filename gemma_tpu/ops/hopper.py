"""Whether kernels for GPUs run here."""

from __future__ import annotations

import importlib.util

from jax.sharding import Mesh


def runs_triton(mesh: Mesh) -> bool:
    """Whether the devices run kernels in Triton: NVIDIA's Hopper, on which ours were tried, if jax has Triton."""
    device = mesh.devices.flat[0]
    hopper = device.platform == "gpu" and str(getattr(device, "compute_capability", "")).startswith("9.")
    return hopper and importlib.util.find_spec("jax.experimental.pallas.triton") is not None
