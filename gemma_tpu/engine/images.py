"""Which images' soft tokens the device holds: encoded in batches, and remembered for follow-up questions."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from gemma_tpu.engine.request import ImageInput
from gemma_tpu.engine.step import Encode


class ImageIndex:
    """Digests of the images whose soft tokens are at hand once all planned steps have run. `in` is for any thread.

    `dtype`: of the pixels. `batches`: images of a call of the vision tower, descending to 1. `remembered`: images whose
    soft tokens stay on the device.
    """

    def __init__(self, dtype: np.dtype, batches: Sequence[int], remembered: int) -> None:
        self._dtype, self._batches, self._remembered = dtype, batches, remembered
        self._known: collections.OrderedDict[bytes, None] = collections.OrderedDict()
        self._forgotten: tuple[bytes, ...] = ()  # by the last step, which may not have come to it

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def prepare(self, images: Sequence[ImageInput]) -> None:
        """Has the pixels of images at hand that `use` will need; raises what is wrong with them."""
        for image in images:
            if image.digest not in self._known:
                image.prepare()

    def use(self, images: Sequence[ImageInput]) -> tuple[tuple[Encode, ...], tuple[bytes, ...]]:
        """What a step has to encode and may forget so that these images are at hand in it."""
        if not images:
            return (), ()
        todo = list({image.digest: image for image in images if image.digest not in self._known}.values())
        encode = []
        while todo:
            size = next(size for size in self._batches if size <= len(todo))
            batch, todo = todo[:size], todo[size:]
            pixels = np.stack([image.pixels for image in batch]).astype(self._dtype)
            encode.append(Encode(tuple(image.digest for image in batch), pixels))
        digests = {image.digest: None for image in images}
        self._known |= digests
        for digest in digests:
            self._known.move_to_end(digest)
        excess = len(self._known) - max(self._remembered, len(digests))
        self._forgotten = tuple(self._known.popitem(last=False)[0] for _ in range(excess))
        return tuple(encode), self._forgotten

    def clear(self) -> tuple[bytes, ...]:
        """Knows no image any more; returns all that the device may hold."""
        held = (*self._forgotten, *self._known)
        self._known.clear()
        self._forgotten = ()
        return held
