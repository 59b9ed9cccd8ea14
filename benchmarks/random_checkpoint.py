"""Checkpoints of real size with random bfloat16 weights, for the benchmarks that load them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np

from gemma_tpu.checkpoint import checksums, convert, hf, hf_names, lazy, names
from gemma_tpu.checkpoint.config_io import to_json
from gemma_tpu.config import GemmaConfig

LAYOUTS = ("orbax", "orbax-flat", "safetensors")


class Random(lazy.Zeros):
    """Random bits in the range of weights, made when they are read: the same few million again and again."""

    _bits = np.random.default_rng(0).standard_normal(1 << 22, np.float32).astype(ml_dtypes.bfloat16)

    def read(self, box: lazy.Box) -> np.ndarray:
        return np.resize(self._bits, lazy.box_shape(box))


def write(path: Path, config: GemmaConfig, layout: str) -> None:
    """Writes a checkpoint with its checksums; one in Orbax's layout by way of safetensors, which it removes."""
    hf_path = path.with_name(f"{path.name}-safetensors") if layout != "safetensors" else path
    write_safetensors(hf_path, config)
    if layout != "safetensors":
        convert(hf_path, path, to=layout)
        shutil.rmtree(hf_path)


def write_safetensors(path: Path, config: GemmaConfig) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16)
    canonical = {name: Random(shape, dtype) for name, shape in names.canonical_shapes(config).items()}
    path.mkdir(parents=True)
    rows = config.vocab_size + (hf_names.EXTRA_ROWS if config.vision else 0)
    hf.write_directory(path, hf_names.hf_from_canonical(canonical, config, rows))
    (path / "config.json").write_text(to_json(config))
    checksums.write(path)


def files(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*")) if file.is_file()]


def forget(path: Path) -> None:
    """Takes the files out of memory, so that they come from the disk."""
    for file in files(path):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
