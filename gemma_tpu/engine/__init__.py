"""Running a model: the plain path, the device programs, and the engine that schedules them."""

from gemma_tpu.engine.forward import encode_images, forward

__all__ = ["encode_images", "forward"]
