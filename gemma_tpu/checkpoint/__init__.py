"""Checkpoints: finding, opening, loading, saving and converting them."""

from __future__ import annotations

from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.load import load_params
from gemma_tpu.checkpoint.source import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "load_params", "open_checkpoint"]
