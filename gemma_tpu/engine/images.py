"""Which images a device knows: encoded in batches, remembered for follow-up questions, laid out for a chunk."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from gemma_tpu.deployment import IMAGE_BATCHES, REMEMBERED_IMAGES, Deployment
from gemma_tpu.engine.device import Device
from gemma_tpu.engine.request import ImageInput


class SoftTokens:
    """The vision tower's side of an engine. Used by the engine's thread alone, but for `in`."""

    def __init__(self, device: Device, deployment: Deployment) -> None:
        self._device, self._deployment = device, deployment
        self._known: collections.OrderedDict[bytes, None] = collections.OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def prepare(self, images: Sequence[ImageInput]) -> None:
        """Has the pixels of images at hand that `of` will need; raises what is wrong with them."""
        for image in images:
            if image.digest not in self._known:
                image.prepare()

    def of(self, images: Sequence[ImageInput]) -> list[bytes]:
        """The digests of images, after having them encoded if need be."""
        new = {image.digest: image for image in images if image.digest not in self._known}
        todo = list(new.values())
        while todo:
            size = next(size for size in IMAGE_BATCHES if size <= len(todo))
            batch, todo = todo[:size], todo[size:]
            digests = [image.digest for image in batch]
            self._device.encode(digests, np.stack([image.pixels for image in batch]))
            self._known |= dict.fromkeys(digests)
        for image in images:
            self._known.move_to_end(image.digest)
        if (excess := len(self._known) - max(REMEMBERED_IMAGES, len(images))) > 0:
            self._device.forget([self._known.popitem(last=False)[0] for _ in range(excess)])
        return [image.digest for image in images]

    def for_chunk(self, images: Sequence[ImageInput], rows: int, tokens: int) -> list[bytes | None]:
        """As many places as a chunk of rows × tokens has for images, filled with those given."""
        capacity = self._deployment.images_of_chunk(rows, tokens)
        if not capacity:
            return []
        digests = self.of(images)
        return [*digests, *[None] * (capacity - len(digests))]
