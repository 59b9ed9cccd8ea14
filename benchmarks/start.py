"""From the start of a process to the first answer, and to all programs compiled, with random weights of a real size.

    python benchmarks/start.py DIRECTORY [--size gemma3-4b] [--max-rows 8] [--max-context 4096] [--no-verify]

Writes random bfloat16 weights of that size into DIRECTORY, unless an earlier run left them there. Each line is of a
fresh process, which reads them from the system's cache: first with an empty cache of compiled programs, then with what
that run left. Seconds count from before Python imports anything. Checksums are compared, unless --no-verify says
otherwise: a directory from elsewhere often has none. "first answer": 16 tokens to a prompt of 40, from a model that is
loaded with `compile_ahead=True`; "all programs": `Model.warmup`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure(path: Path, what: str, options: dict[str, Any], began: float) -> dict[str, float | str]:
    import jax

    import gemma_tpu

    device = jax.devices()[0].device_kind
    ready = time.time() - began
    with gemma_tpu.load(path, dtype="bfloat16", compile_ahead=True, progress=False, **options) as model:
        loaded = time.time() - began
        if what == "first answer":
            params = gemma_tpu.SamplingParams(max_new_tokens=16, ignore_eos=True)
            count = sum(map(len, model.engine.submit(list(range(2, 42)), (), params)))
            if count != 16:
                raise SystemExit(f"{count} tokens instead of 16")
        else:
            model.warmup()
        done = time.time() - began
        return {"device": device, "ready": ready, "loaded": loaded, what: done}


def in_fresh_process(arguments: argparse.Namespace, path: Path, what: str, cache: Path) -> dict[str, float | str]:
    command = [sys.executable, __file__, str(path), "--measure", what, "--began", repr(time.time())]
    command += ["--max-rows", str(arguments.max_rows), "--max-context", str(arguments.max_context)]
    command += [] if arguments.verify else ["--no-verify"]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(said.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", default="gemma3-4b")
    parser.add_argument("--max-rows", type=int, default=8)
    parser.add_argument("--max-context", type=int, default=4096)
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="do not compare checksums")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        options = {name: getattr(arguments, name) for name in ("max_rows", "max_context", "verify")}
        print(json.dumps(measure(arguments.directory, arguments.measure, options, arguments.began)))
        return

    import random_checkpoint

    from gemma_tpu.config import CONFIGS

    path = arguments.directory / f"{arguments.size}-safetensors"
    if not path.exists():
        random_checkpoint.write(path, CONFIGS[arguments.size], "safetensors")
    for what in ("first answer", "all programs"):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "warm"):
                found = in_fresh_process(arguments, path, what, Path(cache))
                print(
                    f"{found['device']}, {arguments.size}, {'an empty' if state == 'empty' else 'a warm'} compilation "
                    f"cache: JAX has its devices after {found['ready']:.1f} s, the model is loaded after "
                    f"{found['loaded']:.1f} s, {what} after {found[what]:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
