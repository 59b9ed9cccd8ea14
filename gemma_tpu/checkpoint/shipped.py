"""The small trained checkpoint that comes with this package: where it lies."""

from __future__ import annotations

from pathlib import Path

from gemma_tpu.checkpoint.errors import CheckpointError

NAME = "gemma3-demo"
_ROOT = Path(__file__).parents[2]


def shipped() -> Path:
    """Its directory, in a clone and where the package is installed. `CheckpointError` if it is not there."""
    path = _ROOT / "checkpoints" / NAME
    if not path.is_dir():
        raise CheckpointError(f"{NAME} is not at {path}: install gemma_tpu again, or clone its repository")
    return path
