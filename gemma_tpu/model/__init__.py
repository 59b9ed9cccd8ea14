"""The architecture as Flax NNX modules."""

from gemma_tpu.model.params import Params, init_params, param_shapes, text_model, vision_model
from gemma_tpu.model.transformer import Transformer
from gemma_tpu.model.vision import VisionTower

__all__ = ["Params", "Transformer", "VisionTower", "init_params", "param_shapes", "text_model", "vision_model"]
