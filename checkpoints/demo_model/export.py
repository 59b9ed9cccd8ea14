"""A training run's parameters → the checkpoint: `python -m checkpoints.demo_model.export RUN [DIRECTORY]`.

Writes the released (flat) Orbax layout in bf16, with config.json and tokenizer.model beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

from checkpoints.demo_model import tokenizer
from checkpoints.demo_model.train import load_parts
from gemma_tpu.checkpoint import save_params
from gemma_tpu.config import DEMO
from gemma_tpu.model import param_shapes

CHECKPOINT = Path(__file__).parents[1] / "gemma3-demo"
_MAX_BYTES = 19_000_000


def export(run: Path, directory: Path) -> int:
    """Makes (or replaces) `directory` from a training run's folder; its size in bytes."""
    config = dataclasses.replace(DEMO, vocab_size=tokenizer.VOCAB_SIZE)
    trained = load_parts(run)
    params = {name: trained[name] for name in param_shapes(config)}
    if directory.exists():
        shutil.rmtree(directory)
    save_params(params, config, directory, dtype="bfloat16", tokenizer=tokenizer.MODEL)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    if size > _MAX_BYTES:
        raise ValueError(f"{directory}: {size:,} bytes, more than the {_MAX_BYTES:,} that the repository can carry")
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the --out folder of train.py")
    parser.add_argument("directory", type=Path, nargs="?", default=CHECKPOINT)
    options = parser.parse_args()
    print(f"{options.directory}: {export(options.run, options.directory):,} bytes")


if __name__ == "__main__":
    main()
