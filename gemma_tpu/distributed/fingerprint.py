"""What several processes must have in common, as short texts that can be compared: software, settings, weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

import gemma_tpu
from gemma_tpu.model import Params

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax")
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Flags of those variables that may differ: where files are written, how many devices a host simulates.
_LOCAL_FLAGS = ("--xla_dump", "--xla_force_host_platform_device_count")
# JAX's settings that change what is computed.
_SETTINGS = (
    "jax_platforms",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
_THREADS = 8


def software() -> dict[str, str]:
    """What decides which programs a process runs: code, versions, settings, XLA's flags."""
    facts = {"gemma_tpu": f"{gemma_tpu.__version__} (code {_code_digest()})"}
    facts |= {name: _version(name) for name in _PACKAGES}
    facts |= {name: _flags(os.environ.get(name, "")) for name in _VARIABLES}
    return facts | {name: str(getattr(jax.config, name)) for name in _SETTINGS}


def _code_digest() -> str:
    folder = Path(gemma_tpu.__file__).parent
    digest = hashlib.blake2b(digest_size=4)
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _flags(value: str) -> str:
    return " ".join(sorted(flag for flag in value.split() if not flag.startswith(_LOCAL_FLAGS))) or "none"


def common_digests(params: Params) -> dict[str, str]:
    """Digests of the parts of parameters that several processes hold, by parameter and place in it."""
    parts = {}
    for path, array in jax.tree_util.tree_leaves_with_path(dict(params)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        holders: dict[str, set[int]] = {}
        for device, index in array.sharding.devices_indices_map(array.shape).items():
            holders.setdefault(_place(index), set()).add(device.process_index)
        for shard in array.addressable_shards:
            place = _place(shard.index)
            if len(holders[place]) > 1:
                parts[f"{name}[{place}]"] = shard.data
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(parts, pool.map(_digest, parts.values()), strict=True))


def _place(index: tuple[slice, ...]) -> str:
    return ",".join(f"{part.start or 0}:{'' if part.stop is None else part.stop}" for part in index)


def _digest(values: jax.Array) -> str:
    held = np.ascontiguousarray(values)
    return hashlib.blake2b(held.reshape(-1).view(np.uint8).data, digest_size=8).hexdigest()


def differences(
    found: Mapping[str, Mapping[str, str]],
) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """Given names and values of each process: each name that has two values, with two processes and their values.

    A name that a process lacks is compared between the others.
    """
    first: dict[str, tuple[str, str]] = {}
    different = {}
    for who, values in found.items():
        for name, value in values.items():
            other = first.setdefault(name, (who, value))
            if value != other[1]:
                different.setdefault(name, (name, other, (who, value)))
    return list(different.values())
