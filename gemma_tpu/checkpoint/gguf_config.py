"""The architecture in the metadata of GGUF files, as llama.cpp and Ollama write and read it.

llama.cpp: conversion/base.py, conversion/gemma.py, src/models/gemma3.cpp, tools/mtmd/clip.cpp. Ollama:
convert/convert_gemma3.go, model/models/gemma3.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.gguf_file import GgufFile
from gemma_tpu.checks import brief
from gemma_tpu.config import CONFIGS, MAX_LAYERS, GemmaConfig, LayerSpec, VisionConfig

TEXT, VISION = "gemma3", "clip"  # values of general.architecture
_PATTERN = 6  # a global layer after five local ones
_LOCAL_BASE, _GLOBAL_BASE = 10_000.0, 1_000_000.0
_LARGE = 62  # layers of the 27B, which llama.cpp and Ollama tell by them
_EPSILON = 1e-6
_MEAN = [0.5] * 3  # and standard deviation of a picture's channels
_MERGE = 4  # patches on a side of what a soft token is the mean of (clip.cpp)
_REQUIRED = object()


class _Reader:
    """Checked values of one file's metadata, by key below `prefix`. Errors name the file and the key."""

    def __init__(self, file: GgufFile, prefix: str):
        self.file, self.path, self.prefix = file, file.path, prefix

    def error(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.prefix}.{key} is {brief(self.get(key))}{what}")

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.get(f"{self.prefix}.{key}", default)

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """A positive number, or `default` if there is none. One for each layer counts as one if they are equal."""
        value = self.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if isinstance(value, list) and value and all(other == value[0] for other in value):
            value = value[0]
        if value is None:
            raise CheckpointError(f"{self.path}: its metadata lacks {self.prefix}.{key}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**53:
            raise self.error(key, ", not a positive number")
        return value

    def integer(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.number(key, default)
        if value is not default and not isinstance(value, int):
            raise self.error(key, ", not a whole number")
        return value

    def require(self, key: str, expected: float) -> None:
        """Raises unless a value is about `expected`, in float32, or is left out."""
        if not math.isclose(self.number(key, expected), expected, rel_tol=1e-4):
            raise self.error(key, f"; Gemma 3 models here have {expected}")


def read_config(text: GgufFile, vision: GgufFile | None, vocab_size: int) -> GemmaConfig:
    """The config of a text model; `vision` is the file with its tower, which may be the same one."""
    read = _Reader(text, TEXT)
    num_layers = read.integer("block_count")
    if num_layers > MAX_LAYERS:
        raise read.error("block_count", f"; {MAX_LAYERS} is the most that is taken for true")
    sizes = {
        "embed_dim": read.integer("embedding_length"),
        "hidden_dim": read.integer("feed_forward_length"),
        "num_heads": (heads := read.integer("attention.head_count")),
        "num_kv_heads": read.integer("attention.head_count_kv", heads),
        "head_dim": (head_dim := read.integer("attention.key_length", 256)),
    }
    released = find_released(num_layers, sizes)
    read.require("attention.value_length", head_dim)
    read.require("attention.layer_norm_rms_epsilon", _EPSILON)
    if not read.get("attention.causal", True):
        raise read.error("attention.causal", ": it turns texts into vectors and writes none")
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        # Ollama's first files of the 1B have 30 for the former, which none of Gemma 3 has.
        if read.get(key) and not (released is CONFIGS["gemma3-1b"] and key == "final_logit_softcapping"):
            raise read.error(key, "; Gemma 3 models here have none")
    query_dim = sizes["embed_dim"] // heads if num_layers == _LARGE else head_dim
    with _naming(text):
        return GemmaConfig(
            vocab_size=vocab_size,
            layers=_layers(read, num_layers, released),
            query_scale=query_dim**-0.5,
            max_context=read.integer("context_length", 131_072),
            vision=None if vision is None else _read_vision(vision),
            **sizes,
        )


@contextlib.contextmanager
def _naming(file: GgufFile) -> Iterator[None]:
    """Names the file in what the configs say of a value."""
    try:
        yield
    except CheckpointError:  # has the path
        raise
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def find_released(num_layers: int, sizes: Mapping[str, int]) -> GemmaConfig | None:
    """The released config with these sizes."""
    for config in CONFIGS.values():
        if num_layers == config.num_layers and all(getattr(config, name) == size for name, size in sizes.items()):
            return config
    return None


def _layers(read: _Reader, count: int, released: GemmaConfig | None) -> tuple[LayerSpec, ...]:
    window = read.integer("attention.sliding_window", None) if read.get("attention.sliding_window") else None
    local = LayerSpec(window, read.number("rope.freq_base_swa", read.number("rope.local.freq_base", _LOCAL_BASE)))
    whole = LayerSpec(None, read.number("rope.freq_base", _GLOBAL_BASE), _rope_scale(read, released))
    every = read.get("attention.sliding_window_pattern", _PATTERN)
    if isinstance(every, list):
        if len(every) != count:
            raise read.error("attention.sliding_window_pattern", f", not one value for each of {count} layers")
        is_local = [bool(value) for value in every]
    else:
        every = read.integer("attention.sliding_window_pattern", _PATTERN)
        is_local = [bool((i + 1) % every) for i in range(count)]
    return tuple(local if window is not None and here else whole for here in is_local)


def _rope_scale(read: _Reader, released: GemmaConfig | None) -> float:
    """How far apart the positions of global layers are. Ollama's files with a tower say nothing of rotary angles."""
    if read.get("rope.freq_base") is None and read.get("rope.scaling.type") is None and released is not None:
        return next(layer.rope_scale for layer in released.layers if layer.window is None)
    kind = read.get("rope.scaling.type", "linear")
    if kind not in ("linear", "none"):
        raise read.error("rope.scaling.type", "; Gemma 3 models here have linear or none")
    return float(read.number("rope.scaling.factor", 1.0)) if kind == "linear" else 1.0


def _read_vision(file: GgufFile) -> VisionConfig:
    own_file = file.architecture == VISION
    read = _Reader(file, "clip.vision" if own_file else f"{TEXT}.vision")
    read.require("attention.layer_norm_epsilon", _EPSILON)
    read.require("num_channels", 3)
    for key in ("image_mean", "image_std"):
        if read.get(key, _MEAN) != _MEAN:
            raise read.error(key, "; Gemma 3 models here have 0.5")
    image_size, patch_size = read.integer("image_size"), read.integer("patch_size")
    if own_file:
        grid, merge = image_size // patch_size, read.integer("projector.scale_factor", _MERGE)
        if grid % merge:
            raise CheckpointError(
                f"{file.path}: clip.vision.projector.scale_factor {merge} does not divide a grid of {grid} patches"
            )
        soft_tokens = (grid // merge) ** 2
    else:
        soft_tokens = _Reader(file, TEXT).integer("mm.tokens_per_image", VisionConfig().num_soft_tokens)
    with _naming(file):
        return VisionConfig(
            width=read.integer("embedding_length"),
            depth=read.integer("block_count"),
            mlp_dim=read.integer("feed_forward_length"),
            num_heads=read.integer("attention.head_count"),
            image_size=image_size,
            patch_size=patch_size,
            num_soft_tokens=soft_tokens,
        )
