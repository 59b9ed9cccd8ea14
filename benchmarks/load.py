"""Loading a checkpoint, as a share of what the disk and the link to the device give in the same run.

    python benchmarks/load.py DIRECTORY [--size gemma3-1b] [--layouts safetensors orbax-flat] [--repeats 2] [--cold]

Writes random bfloat16 weights of that size into DIRECTORY (2 GB for 1B, 24 GB for 12B, once in each layout, unless an
earlier run left them there; --remove deletes each after use) and measures on JAX's default device, each line the best
of --repeats fresh processes:

- read: the files, by as many threads as there are cores, in blocks of 16 MB: into memory that is used again, and into
  new memory, as it must be on a CPU device, which keeps it. From the system's cache, or with --cold from the disk.
- put: `jax.device_put` of arrays of 256 MB, aligned, by 1, 2 and 4 threads; the best of them.
- decode: TensorStore alone reads the arrays of an Orbax checkpoint, which it stores compressed, and drops them.
- load: `load_params`, compared with the checksums (as `gemma_tpu.load` does) and without.

The least time is that of the slower of read and put, as if the two overlapped fully. "share" is the least time over
that of `load_params`. A load that compares checksums has SHA-256 to compute of every byte beside that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import random_checkpoint

from gemma_tpu.checkpoint import convert, load_params, open_checkpoint
from gemma_tpu.checkpoint.orbax import OrbaxArray
from gemma_tpu.config import CONFIGS

_BLOCK = 16 << 20
_CORES = len(os.sched_getaffinity(0))


def aligned(size: int) -> np.ndarray:
    buffer = np.empty(size + 64, np.uint8)
    return buffer[-buffer.ctypes.data % 64 :][:size]


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def read(path: Path, new_memory: bool) -> float:
    """Bytes per second."""
    files = random_checkpoint.files(path)
    blocks = [(file, start) for file in files for start in range(0, file.stat().st_size, _BLOCK)]
    share = -(-len(blocks) // _CORES)

    def run(part: list[tuple[Path, int]]) -> list[np.ndarray]:
        kept, buffer = [], np.zeros(_BLOCK, np.uint8)
        for file, start in part:
            if new_memory:
                kept.append(buffer := np.empty(_BLOCK, np.uint8))
            with open(file, "rb", buffering=0) as opened:
                opened.seek(start)
                opened.readinto(buffer)
        return kept

    with ThreadPoolExecutor(_CORES) as pool:
        parts = [blocks[start : start + share] for start in range(0, len(blocks), share)]
        return sum(file.stat().st_size for file in files) / seconds(lambda: list(pool.map(run, parts)))


def put(_: Path) -> float:
    """Bytes per second. A CPU device adopts the arrays, so that only memory sets a limit there."""
    device, size, count = jax.devices()[0], 256 << 20, 8
    sources = [aligned(size).view(ml_dtypes.bfloat16) for _ in range(4)]
    for source in sources:
        source[:] = 1

    def run(source: np.ndarray) -> None:
        jax.device_put(source, device).block_until_ready()

    def rate(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, sources[:threads]))
            work = [sources[i % threads] for i in range(count)]
            return size * count / seconds(lambda: list(pool.map(run, work)))

    return max(map(rate, (1, 2, 4)))


def decode(path: Path) -> float:
    """Bytes of the arrays per second."""
    checkpoint = open_checkpoint(path, verify=False)
    leaves = {
        leaf.name: leaf
        for array in checkpoint.arrays.values()
        for leaf in array.leaves()
        if isinstance(leaf, OrbaxArray)
    }

    def run(leaf: OrbaxArray) -> None:
        leaf.store.read().result()

    with ThreadPoolExecutor(4) as pool:
        return checkpoint.nbytes / seconds(lambda: list(pool.map(run, leaves.values())))


def load(path: Path, verify: bool) -> float:
    """Bytes of the arrays per second."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    jax.device_put(np.zeros(8), device).block_until_ready()
    checkpoint = open_checkpoint(path, verify=verify)
    if verify and not checkpoint.unverified:
        raise SystemExit(f"{path}: has no checksums to compare")
    how = {"dtype": "bfloat16", "sharding": lambda *_: device, "progress": False}
    return checkpoint.nbytes / seconds(lambda: load_params(checkpoint, checkpoint.config, **how))


MEASURES: dict[str, Callable[[Path], float]] = {
    "read": lambda path: read(path, new_memory=False),
    "read into new memory": lambda path: read(path, new_memory=True),
    "put": put,
    "decode": decode,
    "load": lambda path: load(path, verify=False),
    "load and verify": lambda path: load(path, verify=True),
}


def in_fresh_processes(measure: str, path: Path, repeats: int, cold: bool) -> tuple[float, str]:
    """The best rate, and the kind of the device."""
    results = []
    for _ in range(repeats):
        if cold:
            random_checkpoint.forget(path)
        command = [sys.executable, __file__, str(path), "--measure", measure]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results.append(json.loads(said.splitlines()[-1]))
    best = max(results, key=lambda result: result["rate"])
    return best["rate"], best["device"]


def compare(path: Path, layout: str, repeats: int, cold: bool) -> dict[str, object]:
    measures = [name for name in MEASURES if name != "decode" or layout != "safetensors"]
    in_fresh_processes("read", path, 1, cold=False)  # into the system's cache
    found = {name: in_fresh_processes(name, path, repeats, cold) for name in measures}
    rates, device = {name: rate for name, (rate, _) in found.items()}, found["put"][1]
    stored = sum(file.stat().st_size for file in random_checkpoint.files(path))
    arrays = open_checkpoint(path, verify=False).nbytes
    reading = rates["read into new memory" if device == "cpu" else "read"]
    least = max(stored / reading, arrays / rates["put"])
    result: dict[str, object] = {
        "layout": layout,
        "device": device,
        "cores": _CORES,
        "from": "disk" if cold else "memory",
        "files_gb": round(stored / 1e9, 2),
        "arrays_gb": round(arrays / 1e9, 2),
        "least_seconds": round(least, 2),
    }
    print(f"\n{layout}: {stored / 1e9:.2f} GB of files, {arrays / 1e9:.2f} GB of arrays, least {least:.2f} s")
    print(f"{'':22}{'GB/s':>8}{'seconds':>9}{'share':>7}")
    for name, rate in rates.items():
        taken = (stored if name.startswith("read") else arrays) / rate
        share = f"{least / taken:7.0%}" if name.startswith("load") else ""
        print(f"{name:22}{rate / 1e9:8.2f}{taken:9.2f}{share}")
        result[name] = {"gb_per_second": round(rate / 1e9, 2), "seconds": round(taken, 2)}
        if share:
            result[name] |= {"share": round(least / taken, 3)}
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=CONFIGS, default="gemma3-1b")
    parser.add_argument(
        "--layouts", nargs="+", choices=random_checkpoint.LAYOUTS, default=["safetensors", "orbax-flat"]
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="from the disk, not from the system's cache of it")
    parser.add_argument("--remove", action="store_true", help="delete each checkpoint after its measurement")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        rate = MEASURES[arguments.measure](arguments.directory)
        print(json.dumps({"rate": rate, "device": jax.devices()[0].device_kind}))  # this process alone starts JAX
        return
    paths = {layout: arguments.directory / f"{arguments.size}-{layout}" for layout in arguments.layouts}
    source = arguments.directory / f"{arguments.size}-safetensors"
    # Orbax's are converted from safetensors, which need not be written twice.
    for layout, path in sorted(paths.items(), key=lambda item: item[0] != "safetensors"):
        start = time.perf_counter()
        if not path.exists() and layout != "safetensors" and source.exists():
            convert(source, path, to=layout, verify=False, progress=False)
        elif not path.exists():
            random_checkpoint.write(path, CONFIGS[arguments.size], layout)
        print(f"{path}: made in {time.perf_counter() - start:.1f} s", flush=True)
    for layout, path in paths.items():
        compare(path, layout, arguments.repeats, arguments.cold)
        if arguments.remove:
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
