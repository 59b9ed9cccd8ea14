"""What devices are here, and what they can do: the one place that decides by the kind of a chip.

Decisions are made for the devices of a mesh, which need not be those that JAX puts first: a mesh of CPU devices on a
machine with a GPU, chips of a topology that is only compiled for.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gemma_tpu.environment import quiet_libtpu

AttentionKernel = Literal["tpu", "cudnn", "plain"]
_Device = Any  # a jax.Device; its attributes differ by platform

_AMPERE = (8, 0)  # the first NVIDIA generation with bfloat16 units; a T4 is 7.5, an A100 8.0, an H100 9.0
_HOPPER = (9, 0)
_MEMORY = Path("/proc/meminfo")
_CONTAINER_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")  # v2, v1


def available_devices() -> list[jax.Device]:
    """`jax.devices()`; ValueError in one line if $JAX_PLATFORMS asks for what is not here."""
    quiet_libtpu()
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: of "cuda" alone, and no GPU (jax 0.10)
        if wanted := jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
            reason = f" ({lines[0]})" if (lines := str(error).splitlines()) else ""
            raise ValueError(
                f"JAX_PLATFORMS={wanted}: JAX finds no such device{reason}. Unset JAX_PLATFORMS to use what is here; "
                "GPUs need pip install 'gemma_tpu[cuda]', TPUs 'gemma_tpu[tpu]'"
            ) from error
        raise


def attention_kernel(mesh: Mesh, dtype: jax.typing.DTypeLike, head_dim: int) -> AttentionKernel:
    """What unmasked attention between patches runs on: a TPU's kernel, cuDNN's, or plain JAX.

    cuDNN's flash attention takes 16-bit floats on NVIDIA GPUs from Ampere on, with heads of a multiple of 8 up to 128
    (Hopper: 256) (jax 0.10, jax/_src/cudnn/fused_attention_stablehlo.py). JAX does not start on such a GPU without
    cuDNN. A T4 is older, and an AMD GPU, which JAX calls "gpu" too, has none.
    """
    devices = list(mesh.devices.flat)
    if all(device.platform == "tpu" for device in devices):
        return "tpu"
    if jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0:
        oldest = min(map(_cuda_capability, devices))
        if oldest >= _AMPERE and head_dim <= (256 if oldest >= _HOPPER else 128):
            return "cudnn"
    return "plain"


def choose_dtype(mesh: Mesh, fits: Callable[[jnp.dtype], bool]) -> tuple[jnp.dtype, str]:
    """What weights and caches are kept in unless the user says: bfloat16 or float32, and why.

    GPUs without bfloat16 units compute its products in float32 on copies of the weights: they cost time and save
    memory. On a CPU they may save time as well, and lose the exactness for which one tries a model there. So those
    devices get float32, but for a model that `fits` only in bfloat16. (float16, which a T4 is made for, overflows in
    Gemma 3.)
    """
    devices = list(mesh.devices.flat)
    bfloat16, float32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
    if not (lacking := [device for device in devices if not _computes_bfloat16(device)]):
        return bfloat16, f"{_kinds(devices)} has bfloat16 units"
    why, other = f"on {_kinds(lacking)} XLA computes bfloat16 in float32", "which makes it slow, but float32"
    if all(device.platform == "cpu" for device in lacking):
        why, other = f"{_kinds(lacking)} computes in float32", "but that"
    if fits(float32) or not fits(bfloat16):
        return float32, why
    return bfloat16, f"{why}, {other} would not fit"


def wake(mesh: Mesh) -> None:
    """Has GPUs begin to reserve their memory, which takes seconds of a large one, and else the first array waits for.

    That is three quarters of it, or what JAX's own variables say.
    """
    for device in mesh.local_devices:
        if device.platform == "gpu":
            first = functools.partial(jax.device_put, np.zeros(1, np.int8), device)
            threading.Thread(target=first, name="gemma-wake", daemon=False).start()  # XLA must not end in between


def device_capacity(mesh: Mesh) -> int | None:
    """Bytes a program may have on each device of this host; None where the platform does not say.

    Devices of a CPU share what the host has free.
    """
    local = mesh.local_devices
    if all(device.platform == "cpu" for device in local):
        free = free_memory()
        return free and free // len(local)
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in local]
    return min((limit for limit in limits if limit), default=None)


def free_memory() -> int | None:
    """Bytes that Linux would give without swapping, and a container may have; None elsewhere."""
    limits = []
    with contextlib.suppress(OSError):
        found = re.search(rb"^MemAvailable:\s+(\d+) kB", _MEMORY.read_bytes(), re.MULTILINE)
        limits = [int(found[1]) * 1024] if found else []
    for path in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is no such file, or it says "max"
            limits += [limit for limit in [int(path.read_text())] if limit > 0]
    return min(limits, default=None)


def _computes_bfloat16(device: _Device) -> bool:
    if device.platform == "gpu":
        # AMD's GPUs that JAX supports (MI200 and later, RDNA 3 and later) have bfloat16 units.
        return not _is_cuda(device) or _cuda_capability(device) >= _AMPERE
    return device.platform != "cpu"


def _cuda_capability(device: _Device) -> tuple[int, ...]:
    """Of an NVIDIA GPU, such as (8, 0); lower than any for another device."""
    return tuple(int(part) for part in device.compute_capability.split(".")) if _is_cuda(device) else ()


def _is_cuda(device: _Device) -> bool:
    return device.platform == "gpu" and "cuda" in device.client.platform_version


def _kinds(devices: Iterable[_Device]) -> str:
    names = {"CPU" if device.platform == "cpu" else device.device_kind for device in devices}
    return "this " + " or ".join(sorted(names))
