"""Architecture of Gemma 3 models: shapes and constants, nothing about how they are run.

The dimension letters used by every annotation, einsum and sharding rule of this package:

| letter | dimension | letter | dimension |
|---|---|---|---|
| B | batch rows | N | query heads |
| T | query tokens | K | key/value heads |
| S | cache slots, or keys attended to | G | query heads per kv head, N / K |
| D | embedding | H | head dimension |
| F | mlp hidden | V | vocabulary |
| L | layers | W | sliding window |
| I | images | E | vision width |
| P | patches of an image | M | vision mlp hidden |
| A | pages of the cache | | |
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from gemma_tpu.checks import brief, check_flag, check_integer, check_number

MAX_LAYERS = 4096  # nothing is that deep; a number that is no number of layers should be an error at once
_MAX_SIZE = 2**31 - 1  # of a dimension

SOFT_TOKEN = -1  # stands in token sequences for a soft token of an image; no vocabulary has it


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """What differs between the layers of a decoder.

    `window` is the W of sliding-window attention, None for attention to the whole context. Rotary angles are
    `position / rope_scale * rope_base^(-2i/H)`.
    """

    window: int | None
    rope_base: float
    rope_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.window is not None:
            check_integer("LayerSpec: window", self.window, 1, _MAX_SIZE)
        for name in ("rope_base", "rope_scale"):
            check_number(f"LayerSpec: {name}", getattr(self, name), 0, 2**53, low_open=True)


def gemma3_layers(count: int, *, window: int, rope_scale: float = 1.0) -> tuple[LayerSpec, ...]:
    """Gemma 3's pattern (its report, section 2): five local layers, then a global one, whose positions are scaled."""
    check_integer("gemma3_layers: count", count, 1, MAX_LAYERS)
    period = (*[LayerSpec(window, 10_000.0)] * 5, LayerSpec(None, 1_000_000.0, rope_scale))
    return tuple(itertools.islice(itertools.cycle(period), count))


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower. `image_size` and `patch_size` are in pixels."""

    width: int = 1152
    depth: int = 27
    mlp_dim: int = 4304
    num_heads: int = 16
    image_size: int = 896
    patch_size: int = 14
    num_soft_tokens: int = 256

    def __post_init__(self) -> None:
        for name in ("width", "mlp_dim", "num_heads", "image_size", "patch_size", "num_soft_tokens"):
            check_integer(f"VisionConfig: {name}", getattr(self, name), 1, _MAX_SIZE)
        check_integer("VisionConfig: depth", self.depth, 1, MAX_LAYERS)
        pooled = math.isqrt(self.num_soft_tokens)
        problems = []
        if self.width % self.num_heads:
            problems.append(f"width {self.width} is no multiple of num_heads {self.num_heads}")
        if self.image_size % self.patch_size:
            problems.append(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if pooled**2 != self.num_soft_tokens or self.grid % pooled:
            problems.append(f"num_soft_tokens {self.num_soft_tokens} is no square that pools a {self.grid}-grid evenly")
        if problems:
            raise ValueError(f"VisionConfig: {'; '.join(problems)}")

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """A Gemma 3 text decoder, with a vision tower if `vision` is set.

    `query_scale` multiplies queries after their norm and rotary embedding. `max_context` is the longest context the
    weights were trained for, in tokens. `tied_head`: logits are products with the embedding table, as in every released
    Gemma 3; otherwise with a head of its own.
    """

    vocab_size: int
    embed_dim: int
    hidden_dim: int
    layers: tuple[LayerSpec, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_scale: float
    max_context: int = 131_072
    tied_head: bool = True
    vision: VisionConfig | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = f"GemmaConfig: {field.name}", getattr(self, field.name)
            if field.type == "int":
                check_integer(name, value, 1, _MAX_SIZE)
            elif field.type == "float":
                check_number(name, value, 0, 2**53, low_open=True)
        are_layers = isinstance(self.layers, tuple) and all(isinstance(layer, LayerSpec) for layer in self.layers)
        if not are_layers or not 1 <= len(self.layers) <= MAX_LAYERS:
            raise ValueError(
                f"GemmaConfig: layers must be a tuple of 1 to {MAX_LAYERS} LayerSpecs, got {brief(self.layers)}"
            )
        check_flag("GemmaConfig: tied_head", self.tied_head)
        if not isinstance(self.vision, VisionConfig | None):
            raise ValueError(f"GemmaConfig: vision must be a VisionConfig or None, got {brief(self.vision)}")
        problems = []
        if self.num_heads % self.num_kv_heads:
            problems.append(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            problems.append(f"head_dim {self.head_dim} is odd: rotary embedding pairs its halves")
        if problems:
            raise ValueError(f"GemmaConfig: {'; '.join(problems)}")

    @property
    def group_size(self) -> int:
        """G: query heads that share one kv head."""
        return self.num_heads // self.num_kv_heads

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def summary(self) -> dict[str, Any]:
        """The config as JSON's own types, with the number of layers and the shortest pattern that they repeat.

        The pattern is a list of runs of equal layers: {"count": 5, "window": 512, …}, {"count": 1, "window": None, …}.
        """
        layers, values = self.layers, dataclasses.asdict(self)
        del values["layers"]
        period = next(n for n in range(1, len(layers) + 1) if layers[n:] == layers[:-n])
        runs = [(len(list(run)), layer) for layer, run in itertools.groupby(layers[:period])]
        pattern = [{"count": count, **dataclasses.asdict(layer)} for count, layer in runs]
        return {"num_layers": len(layers), "layer_pattern": pattern, **values}

    def __repr__(self) -> str:
        return f"GemmaConfig({', '.join(f'{name}={value}' for name, value in self.summary().items())})"


def _gemma3(
    layers: int, embed: int, hidden: int, heads: int, kv_heads: int, *, head_dim: int = 256, multimodal: bool = True
) -> GemmaConfig:
    # 27B scales queries by (embed / heads)^-0.5, every other size by head_dim^-0.5 (google/gemma_pytorch config.py).
    query_dim = embed // heads if head_dim == 128 else head_dim
    return GemmaConfig(
        vocab_size=262_144,
        embed_dim=embed,
        hidden_dim=hidden,
        layers=gemma3_layers(layers, window=1024, rope_scale=8.0) if multimodal else gemma3_layers(layers, window=512),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        query_scale=query_dim**-0.5,
        max_context=131_072 if multimodal else 32_768,
        vision=VisionConfig() if multimodal else None,
    )


CONFIGS: dict[str, GemmaConfig] = {
    "gemma3-270m": _gemma3(18, 640, 2048, 4, 1, multimodal=False),
    "gemma3-1b": _gemma3(26, 1152, 6912, 4, 1, multimodal=False),
    "gemma3-4b": _gemma3(34, 2560, 10_240, 8, 4),
    "gemma3-12b": _gemma3(48, 3840, 15_360, 16, 8),
    "gemma3-27b": _gemma3(62, 5376, 21_504, 32, 16, head_dim=128),
}


def as_config(value: Any) -> GemmaConfig | None:
    """A config as callers give it: one, None, or the name of a released size. ValueError for anything else."""
    if value is None or isinstance(value, GemmaConfig):
        return value
    if isinstance(value, str) and value in CONFIGS:
        return CONFIGS[value]
    raise ValueError(f"config must be a GemmaConfig or one of {', '.join(CONFIGS)}, got {brief(value)}")
