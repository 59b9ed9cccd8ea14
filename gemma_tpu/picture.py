"""A picture in a conversation: as it was when it was given, in few bytes."""

from __future__ import annotations

import dataclasses
import io
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from gemma_tpu.image import decode, digest, read_source, to_pixels

_SMALL = 1 << 20  # bytes that are not worth making fewer
_Box = tuple[int, int, int, int]


class Picture:
    """An image as `load_image` reads it, from a `source` as there, of which later changes do not matter.

    What was given encoded (a file, bytes, an address) is kept encoded. It is decoded once when it is given, which
    shows that it can be, and again only if its pixels are asked for after `release`. `size` is (width, height).
    """

    def __init__(self, source: Any, *, allow_urls: bool = False) -> None:
        data, self._name = read_source(source, allow_urls=allow_urls)
        image = decode(data, self._name)
        self._data: bytes | None = data if isinstance(data, bytes) else None
        self._image: Image.Image | None = image
        self.size = image.size
        self._digests: dict[_Box, bytes] = {}  # of the parts that were asked for: what they are is asked at each turn

    @classmethod
    def of(cls, source: Any, *, allow_urls: bool = False) -> Picture:
        """`source` itself if it is a picture already."""
        return source if isinstance(source, Picture) else cls(source, allow_urls=allow_urls)

    @property
    def digest(self) -> bytes:
        """Equal for equal images."""
        return self.digest_of((0, 0, *self.size))

    def digest_of(self, box: _Box) -> bytes:
        """The digest of the part in (left, top, right, bottom)."""
        if box not in self._digests:
            image = self.open()
            self._digests[box] = digest(image if box == (0, 0, *self.size) else image.crop(box))
        return self._digests[box]

    def open(self) -> Image.Image:
        """The RGB image. Not to be written to."""
        image, data = self._image, self._data  # another thread may be in `release`
        return image if image is not None else decode(data or b"", self._name)

    def pixels(self, side: int) -> np.ndarray:
        """float32[side, side, 3] in [-1, 1], see `to_pixels`."""
        return to_pixels(self.open(), side)

    def crop(self, box: _Box) -> Picture:
        """A view of the part in (left, top, right, bottom)."""
        return _Crop(self, box)

    def release(self) -> None:
        """Keeps one of the decoded image and what it was decoded from: the smaller."""
        if self._data is not None and len(self._data) > self._decoded_bytes:
            self._image, self._data = self.open(), None
        elif self._data is not None:
            self._image = None

    def compact(self) -> Picture:
        """This picture in fewer bytes, without loss: to be kept for long."""
        held = self._decoded_bytes if self._data is None else len(self._data)
        if held > max(_SMALL, self._decoded_bytes // 2):
            file = io.BytesIO()
            self.open().save(file, "PNG", compress_level=1, compress_type=3)  # run lengths: faster, and hardly larger
            self._data = file.getvalue()
        return self

    @property
    def _decoded_bytes(self) -> int:
        return 4 * self.size[0] * self.size[1]  # Pillow keeps an RGB pixel in four

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """uint8[H, W, 3]: for `load_image`, and all else that takes arrays."""
        return np.array(self.open(), dtype=dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<gemma_tpu.Picture {self.size[0]} × {self.size[1]}>"


ImageT = TypeVar("ImageT", covariant=True)


@dataclasses.dataclass(frozen=True)
class PlacedImage(Generic[ImageT]):
    """An image in a prompt, whose soft tokens begin at position `start`."""

    start: int
    image: ImageT


class _Crop(Picture):
    """A part of a picture, cut out of it when its pixels are asked for."""

    def __init__(self, whole: Picture, box: _Box) -> None:
        left, top, right, bottom = box
        self._whole, self._box, self.size = whole, box, (right - left, bottom - top)

    def digest_of(self, box: _Box) -> bytes:
        left, top = self._box[:2]
        return self._whole.digest_of((left + box[0], top + box[1], left + box[2], top + box[3]))

    def open(self) -> Image.Image:
        return self._whole.open().crop(self._box)

    def release(self) -> None:
        self._whole.release()

    def compact(self) -> Picture:
        self._whole.compact()
        return self
