"""GGUF files of one small model, written with gguf, for the tests that open them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf_files as files
import gguf_models as models
import numpy as np
from gguf import GGMLQuantizationType as Type

from gemma_tpu.checkpoint import Checkpoint
from gemma_tpu.checkpoint.hf_assets import CHAT_TEMPLATE
from gemma_tpu.config import GemmaConfig

CONFIG = models.CONFIG
TEXT_CONFIG = dataclasses.replace(CONFIG, vision=None)
SAMPLE = models.sample()
ROWS = CONFIG.vocab_size + 64
VOCABULARY = {
    **files.vocabulary(models.TOKENIZER.read_bytes(), ROWS, listed=True),
    "tokenizer.chat_template": CHAT_TEMPLATE,
}


def write_text(path: Path, type_of: files.TypeOf = files.all_of(Type.F32), **changes: Any) -> Path:
    """`changes`: metadata by key without its prefix, tensors under `tensors`; None takes either away."""
    arrays = files.tensors(SAMPLE.hf, vision=False) | changes.pop("tensors", {})
    metadata = files.text_metadata(CONFIG) | VOCABULARY | {f"gemma3.{key}": value for key, value in changes.items()}
    return files.write(path, *map(without_none, (arrays, metadata)), type_of)


def write_tower(path: Path, type_of: files.TypeOf = files.all_of(Type.F32), **changes: Any) -> Path:
    arrays = files.tensors(SAMPLE.hf, vision=True) | changes.pop("tensors", {})
    metadata = files.vision_metadata(CONFIG) | changes
    return files.write(path, *map(without_none, (arrays, metadata)), type_of, architecture="clip")


def without_none(items: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in items.items() if value is not None}


def write_ollama(path: Path, **changes: Any) -> Path:
    arrays = {**files.tensors(SAMPLE.hf, vision=False), **files.tensors(SAMPLE.hf, vision=True, ollama=True)}
    return files.write(path, arrays, files.ollama_metadata(CONFIG) | VOCABULARY | changes)


def write_both(folder: Path) -> Path:
    """A text model, and the tower that belongs to it."""
    write_text(folder / "model.gguf")
    write_tower(folder / "mmproj-model.gguf")
    return folder


def check_values(opened: Checkpoint, config: GemmaConfig = CONFIG, tolerance: float = 1e-6) -> None:
    assert opened.kind == "gguf"
    assert opened.config == config
    for name, array in opened.arrays.items():
        expected = SAMPLE.canonical[name].astype(np.float32)
        assert array.shape == expected.shape
        np.testing.assert_allclose(
            array.read_all(), expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name
        )
