"""Soft tokens of images: encoded in batches, remembered for follow-up questions, laid out for a prefill chunk."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from gemma_tpu.config import GemmaConfig
from gemma_tpu.model import Params
from gemma_tpu.runtime import programs
from gemma_tpu.runtime.request import ImageInput
from gemma_tpu.runtime.shapes import IMAGE_BATCHES, REMEMBERED_IMAGES, images_of_chunk


class SoftTokens:
    """The vision tower's side of an engine. Used by the engine's thread alone, but for `in`."""

    def __init__(self, config: GemmaConfig, params: Params, dtype: jax.typing.DTypeLike, mesh: Mesh) -> None:
        self._config, self._params, self._mesh = config, params, mesh
        self.per_image = config.vision.num_soft_tokens if config.vision else 0
        self._known: collections.OrderedDict[bytes, jax.Array] = collections.OrderedDict()
        self._blank = programs.blank_image(config, dtype, mesh) if config.vision else None

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def of(self, images: Sequence[ImageInput]) -> list[jax.Array]:
        """[soft, D] of each image."""
        new = {image.digest: image for image in images if image.digest not in self._known}
        todo = list(new.values())
        while todo:
            size = next(size for size in IMAGE_BATCHES if size <= len(todo))
            batch, todo = todo[:size], todo[size:]
            encoded = self.encode(np.stack([image.pixels for image in batch]))
            self._known |= zip((image.digest for image in batch), encoded, strict=True)
        soft = [self._known[image.digest] for image in images]
        for image in images:
            self._known.move_to_end(image.digest)
        while len(self._known) > max(REMEMBERED_IMAGES, len(images)):
            self._known.popitem(last=False)
        return soft

    def for_chunk(self, images: Sequence[ImageInput], rows: int, tokens: int) -> jax.Array | None:
        """[I, soft, D], with I as many images as a chunk of rows × tokens can hold; None where it can hold none."""
        capacity = images_of_chunk(rows, tokens, self.per_image)
        if not capacity:
            return None
        soft = self.of(images)
        return programs.stack((*soft, *[self._blank] * (capacity - len(soft))), mesh=self._mesh)

    def encode(self, pixels: np.ndarray) -> tuple[jax.Array, ...]:
        return programs.encode(self._params, pixels, config=self._config, mesh=self._mesh)
