"""Checkpoints: finding, opening, loading, saving and converting them."""

from __future__ import annotations

from gemma_tpu.checkpoint.adapters import merge_adapter
from gemma_tpu.checkpoint.companions import Companions, read_companions
from gemma_tpu.checkpoint.convert import convert, save_params
from gemma_tpu.checkpoint.download import download, resolve
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.load import load_params
from gemma_tpu.checkpoint.sample import sample_digests
from gemma_tpu.checkpoint.source import Checkpoint, open_checkpoint, open_tree
from gemma_tpu.checkpoint.storage import read_file

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "Companions",
    "convert",
    "download",
    "load_params",
    "merge_adapter",
    "open_checkpoint",
    "open_tree",
    "read_companions",
    "read_file",
    "resolve",
    "sample_digests",
    "save_params",
]
