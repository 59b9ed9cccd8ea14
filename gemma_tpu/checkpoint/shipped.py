"""Locates gemma3-demo, the small trained checkpoint bundled with this package."""

from __future__ import annotations

from pathlib import Path

from gemma_tpu.checkpoint.errors import CheckpointError

NAME = "gemma3-demo"
_ROOT = Path(__file__).parents[2]


def shipped() -> Path:
    """Its directory, in a clone or an installation. Raises `CheckpointError` if it does not exist."""
    path = _ROOT / "checkpoints" / NAME
    if not path.is_dir():
        raise CheckpointError(f"{NAME} is not at {path}: install gemma_tpu again, or clone its repository")
    return path
