"""Peak host memory and speed of loading a checkpoint of real size.

    python benchmarks/load_memory.py DIRECTORY [--size gemma3-4b] [--layout orbax-flat|safetensors] [--dtype bfloat16]

Writes random bfloat16 weights of that size into DIRECTORY (8.6 GB for 4B), unless an earlier run left them there, and
loads them in a fresh process onto a CPU device, compared with their checksums or, with --no-verify, as they are. There
the parameters end up in host memory too, so that what is reported, sampled every 5 ms, is resident memory less the
arrays that are loaded so far and less what the process held before: the memory that loading itself needs, as on a host
whose devices have a memory of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import random_checkpoint

from gemma_tpu.checkpoint import load_params, open_checkpoint
from gemma_tpu.config import CONFIGS


def memory(line: str) -> int:
    """Bytes of resident memory: "VmRSS" now, "VmHWM" at the peak (getrusage's peak includes the parent's, by fork)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) * 1024


class Sampler(threading.Thread):
    """Watches resident memory less live arrays; `peak` in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.005):
            # In this order what is loaded in between counts as needed, not as given back.
            arrays = sum(array.nbytes for array in jax.live_arrays())
            self.peak = max(self.peak, memory("VmRSS") - arrays)


def measure(path: Path, dtype: str, concurrency: int, verify: bool, cold: bool) -> None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if cold:
        random_checkpoint.forget(path)
    checkpoint = open_checkpoint(path, verify=verify)
    jax.device_put(np.zeros(8), device).block_until_ready()
    before = memory("VmRSS")
    sampler = Sampler()
    sampler.start()
    start, busy = time.perf_counter(), time.process_time()
    params = load_params(
        checkpoint, checkpoint.config, dtype=dtype, sharding=lambda *_: device, concurrency=concurrency
    )
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    sampler.done.set()
    sampler.join()
    largest = max(array.nbytes for array in params.values())
    result = {
        "checkpoint": checkpoint.kind,
        "dtype": dtype,
        "verified": bool(checkpoint.unverified),
        "from": "disk" if cold else "memory, perhaps",
        "concurrency": concurrency,
        "stored_gb": round(checkpoint.nbytes / 1e9, 2),
        "seconds": round(seconds, 1),
        "processor_seconds": round(busy, 2),
        "gb_per_second": round(checkpoint.nbytes / 1e9 / seconds, 2),
        "host_gb": round((sampler.peak - before) / 1e9, 2),
        "bound_gb": round((largest * concurrency + 1e9) / 1e9, 2),
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=CONFIGS, default="gemma3-4b")
    parser.add_argument("--layout", choices=random_checkpoint.LAYOUTS, default="orbax-flat")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="without comparing checksums")
    parser.add_argument("--cold", action="store_true", help="from the disk, not from the system's cache of it")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.dtype, arguments.concurrency, arguments.verify, arguments.cold)
        return
    path = arguments.directory / f"{arguments.size}-{arguments.layout}"
    if not path.exists():
        start, before = time.perf_counter(), memory("VmRSS")
        random_checkpoint.write(path, CONFIGS[arguments.size], arguments.layout)
        seconds, held = time.perf_counter() - start, memory("VmHWM") - before
        print(f"wrote {path} in {seconds:.1f} s, {held / 1e9:.2f} GB of host memory at the peak")
    command = [sys.executable, __file__, str(arguments.directory), "--measure", str(path)]
    command += ["--dtype", arguments.dtype, "--concurrency", str(arguments.concurrency)]
    command += ["--no-verify"] * (not arguments.verify) + ["--cold"] * arguments.cold
    subprocess.run(command, check=True, env={"JAX_PLATFORMS": "cpu"} | os.environ)


if __name__ == "__main__":
    main()
