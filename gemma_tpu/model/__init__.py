"""The architecture as Flax NNX modules."""

from gemma_tpu.model.params import (
    Params,
    as_draft,
    draft_params,
    init_params,
    param_shapes,
    text_model,
    vision_model,
)
from gemma_tpu.model.transformer import Transformer
from gemma_tpu.model.vision import VisionTower

__all__ = [
    "Params",
    "Transformer",
    "VisionTower",
    "as_draft",
    "draft_params",
    "init_params",
    "param_shapes",
    "text_model",
    "vision_model",
]
