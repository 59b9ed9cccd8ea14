"""Directories with the quantised matrices of goldens/packed, and the rest of a model around them."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_samples as samples
import numpy as np

from gemma_tpu.checkpoint import hf
from gemma_tpu.config import GemmaConfig, VisionConfig

GOLDENS = Path(__file__).parent / "goldens" / "packed"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDENS / "cases.json").read_text())
Q, K = (f"model.layers.0.self_attn.{part}_proj" for part in "qk")
Arrays = dict[str, np.ndarray]

_RAGGED = dataclasses.replace(
    samples.small(layers=1, heads=3, kv_heads=1, vision=None), vocab_size=32, embed_dim=20, hidden_dim=42
)
_GROUPED = dataclasses.replace(_RAGGED, embed_dim=64, hidden_dim=32, num_heads=1, head_dim=32, query_scale=32**-0.5)
_TOWER = VisionConfig(width=32, depth=1, mlp_dim=64, num_heads=2, image_size=28, patch_size=7, num_soft_tokens=4)


def config_of(case: str) -> GemmaConfig:
    config = {"ragged": _RAGGED, "grouped": _GROUPED}[CASES[case]["model"]]
    return dataclasses.replace(config, vision=_TOWER) if case == "mlx-vision" else config


@functools.cache
def _expected() -> Arrays:
    with np.load(GOLDENS / "expected.npz") as file:
        return dict(file)


def expected(case: str) -> Arrays:
    """The matrices of a case by stored name, as the program that quantised them dequantises them."""
    return {name.removeprefix(f"{case}/"): a for name, a in _expected().items() if name.startswith(f"{case}/")}


def stored(case: str) -> Arrays:
    return {name: array.read_all() for name, array in hf.read_file(str(GOLDENS / f"{case}.safetensors")).items()}


def rest(case: str, vocab_size: int | None = None) -> tuple[GemmaConfig, Arrays]:
    """What of a model is not quantised. `vocab_size`: repeats the rows of a quantised embedding table up to that."""
    config = config_of(case)
    config = dataclasses.replace(config, vocab_size=vocab_size or config.vocab_size)
    sample = samples.sample(config, std=0.3)
    return config, {name: array for name, array in sample.hf.items() if name not in expected(case)}


def _as_mlx(arrays: Arrays) -> Arrays:
    """As mlx-vlm stores the kernel of a convolution."""
    return {
        name: array.transpose(0, 2, 3, 1) if name.endswith("patch_embedding.weight") else array
        for name, array in arrays.items()
    }


def save(
    path: Path,
    case: str,
    *,
    change: Callable[[Arrays], object] | None = None,
    vocab_size: int | None = None,
    **of_config: Any,
) -> Path:
    """A checkpoint with the file of a case as it is, unless `change` changes its arrays, beside one of the rest.

    `of_config`: keys of config.json to change.
    """
    config, others = rest(case, vocab_size)
    if case.startswith("mlx"):
        others = _as_mlx(others)
    raw = samples.hf_config(config) | CASES[case]["config"] | of_config
    samples.save_hf(path, others, raw)
    (path / "model.safetensors").rename(path / "model-1.safetensors")
    if change or vocab_size:
        arrays = _with_rows(stored(case), vocab_size, config)
        if change:
            change(arrays)
        samples.save_hf(path / "changed", arrays)
        (path / "changed" / "model.safetensors").rename(path / "model-2.safetensors")
    else:
        shutil.copy(GOLDENS / f"{case}.safetensors", path / "model-2.safetensors")
    return path


def save_dequantized(path: Path, case: str, *, vocab_size: int | None = None) -> Path:
    """The same checkpoint in float32, by what the program makes of its matrices."""
    config, others = rest(case, vocab_size)
    matrices = _with_rows(expected(case), vocab_size, config)
    return samples.save_hf(path, {**others, **matrices}, samples.hf_config(config))


def _with_rows(arrays: Arrays, vocab_size: int | None, config: GemmaConfig) -> Arrays:
    if vocab_size is None:
        return arrays
    rows = vocab_size + (64 if config.vision else 0)
    return {
        name: np.resize(array, (rows, array.shape[1])) if "embed_tokens" in name else array
        for name, array in arrays.items()
    }
