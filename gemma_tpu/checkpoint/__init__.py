"""Resolves, opens, loads, saves and converts checkpoints."""

from __future__ import annotations

from gemma_tpu.checkpoint.adapters import merge_adapter
from gemma_tpu.checkpoint.convert import convert, save_params
from gemma_tpu.checkpoint.digests import sample_digests
from gemma_tpu.checkpoint.download import download, resolve
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.load import load_params
from gemma_tpu.checkpoint.open import Checkpoint, open_checkpoint, open_tree
from gemma_tpu.checkpoint.per_channel import stored_quantization
from gemma_tpu.checkpoint.storage import read_file
from gemma_tpu.checkpoint.text_assets import TextAssets, read_text_assets

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "TextAssets",
    "convert",
    "download",
    "load_params",
    "merge_adapter",
    "open_checkpoint",
    "open_tree",
    "read_text_assets",
    "read_file",
    "resolve",
    "sample_digests",
    "save_params",
    "stored_quantization",
]
