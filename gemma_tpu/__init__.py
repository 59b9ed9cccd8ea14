"""Gemma 3 on TPU slices, from plain JAX and Flax."""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # "as" tells type checkers that the name is public
    from gemma_tpu.api import Model as Model
    from gemma_tpu.chat import Chat as Chat
    from gemma_tpu.classify import Verdict as Verdict
    from gemma_tpu.config import CONFIGS as CONFIGS
    from gemma_tpu.config import GemmaConfig as GemmaConfig
    from gemma_tpu.config import LayerSpec as LayerSpec
    from gemma_tpu.config import VisionConfig as VisionConfig
    from gemma_tpu.config import gemma3_layers as gemma3_layers
    from gemma_tpu.distributed.processes import initialize as initialize
    from gemma_tpu.environment import use_compilation_cache as use_compilation_cache
    from gemma_tpu.grammar import Grammar as Grammar
    from gemma_tpu.image import load_image as load_image
    from gemma_tpu.image import pan_and_scan as pan_and_scan
    from gemma_tpu.loader import Loader as Loader
    from gemma_tpu.loader import LoadStatus as LoadStatus
    from gemma_tpu.loading import from_params as from_params
    from gemma_tpu.loading import load as load
    from gemma_tpu.options import Completion as Completion
    from gemma_tpu.options import SamplingParams as SamplingParams
    from gemma_tpu.options import Timings as Timings
    from gemma_tpu.options import TokenLogprob as TokenLogprob
    from gemma_tpu.options import Usage as Usage
    from gemma_tpu.quantization import Quantization as Quantization
    from gemma_tpu.stream import AsyncTextStream as AsyncTextStream
    from gemma_tpu.stream import TextStream as TextStream
    from gemma_tpu.teacher_forcing import AttentionMaps as AttentionMaps
    from gemma_tpu.text import Tokenizer as Tokenizer

__version__ = "0.1.0"
_IMPORTED = time.time()  # files of this package that are newer are not what runs

# Names are imported when first used: `gemma-tpu --help` and a single module should not wait for jax.
_HOME = {
    "gemma_tpu.api": ("Model",),
    "gemma_tpu.chat": ("Chat",),
    "gemma_tpu.classify": ("Verdict",),
    "gemma_tpu.config": ("CONFIGS", "GemmaConfig", "LayerSpec", "VisionConfig", "gemma3_layers"),
    "gemma_tpu.environment": ("use_compilation_cache",),
    "gemma_tpu.grammar": ("Grammar",),
    "gemma_tpu.image": ("load_image", "pan_and_scan"),
    "gemma_tpu.loader": ("LoadStatus", "Loader"),
    "gemma_tpu.loading": ("from_params", "load"),
    "gemma_tpu.distributed.processes": ("initialize",),
    "gemma_tpu.options": ("Completion", "SamplingParams", "Timings", "TokenLogprob", "Usage"),
    "gemma_tpu.quantization": ("Quantization",),
    "gemma_tpu.stream": ("AsyncTextStream", "TextStream"),
    "gemma_tpu.teacher_forcing": ("AttentionMaps",),
    "gemma_tpu.text": ("Tokenizer",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = [*sorted(_MODULE_OF), "__version__"]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
