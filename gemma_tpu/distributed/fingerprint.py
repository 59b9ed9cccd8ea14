"""Fingerprints of what all processes must share: software versions, settings and weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

import jax
import numpy as np

import gemma_tpu
from gemma_tpu.model import Params

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax")
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Flags that may differ between hosts: dump directories and the number of simulated devices.
_LOCAL_FLAGS = ("--xla_dump", "--xla_force_host_platform_device_count")
# JAX settings that change the compiled programs or their results.
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
    """What determines a process's programs: code, versions, JAX settings, XLA flags."""
    facts = {"gemma_tpu": f"{gemma_tpu.__version__} (code {_code_digest()})"}
    facts |= {name: next((found.version for found in distributions(name=name)), "none") for name in _PACKAGES}
    facts |= {name: _flags(os.environ.get(name, "")) for name in _VARIABLES}
    return facts | {name: str(getattr(jax.config, name)) for name in _SETTINGS}


def _code_digest() -> str:
    folder = Path(gemma_tpu.__file__).parent
    digest = hashlib.blake2b(digest_size=4)
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _flags(value: str) -> str:
    return " ".join(sorted(flag for flag in value.split() if not flag.startswith(_LOCAL_FLAGS))) or "none"


def common_digests(params: Params) -> dict[str, str]:
    """Digests of the shards that several processes hold, by parameter name and slice."""
    shards = {}
    for path, array in jax.tree_util.tree_leaves_with_path(dict(params)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        holders: dict[str, set[int]] = {}
        for shard in array.global_shards:
            holders.setdefault(_slice_name(shard.index), set()).add(shard.device.process_index)
        for shard in array.addressable_shards:
            bounds = _slice_name(shard.index)
            if len(holders[bounds]) > 1:
                shards[f"{name}[{bounds}]"] = shard.data
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(shards, pool.map(_digest, shards.values()), strict=True))


def _slice_name(index: tuple[slice, ...]) -> str:
    return ",".join(f"{part.start or 0}:{'' if part.stop is None else part.stop}" for part in index)


def _digest(values: jax.Array) -> str:
    array = np.ascontiguousarray(values)
    return hashlib.blake2b(array.reshape(-1).view(np.uint8).data, digest_size=8).hexdigest()


def differences(
    by_process: Mapping[str, Mapping[str, str]],
) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """The names whose values differ between processes, each with two (process, value) pairs that differ.

    A name that a process lacks is compared between the others.
    """
    first: dict[str, tuple[str, str]] = {}
    different = {}
    for process, values in by_process.items():
        for name, value in values.items():
            other = first.setdefault(name, (process, value))
            if value != other[1]:
                different.setdefault(name, (name, other, (process, value)))
    return list(different.values())
