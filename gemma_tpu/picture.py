"""What a conversation keeps of an image that `image` has read: an immutable snapshot in few bytes."""

from __future__ import annotations

import dataclasses
import io
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from gemma_tpu.image import MAX_PIXELS, decode, digest, read_source, to_pixels

_SMALL = 1 << 20  # bytes; smaller images are not compressed
_Box = tuple[int, int, int, int]


class Picture:
    """A snapshot of an image; `source` as for `load_image`.

    An encoded source (a file, bytes, a URL) is kept encoded. It is decoded at once, which validates it, and again only
    if its pixels are needed after `release`. `size` is (width, height).
    """

    def __init__(self, source: Any, *, allow_urls: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        data, self._name = read_source(source, allow_urls=allow_urls)
        image = decode(data, self._name, max_pixels)
        self._data: bytes | None = data if isinstance(data, bytes) else None
        self._image: Image.Image | None = image
        self.size = image.size
        self._digests: dict[_Box, bytes] = {}  # cached, because every turn asks for them

    @classmethod
    def of(cls, source: Any, *, allow_urls: bool = False) -> Picture:
        """`source` itself if it already is a Picture."""
        return source if isinstance(source, Picture) else cls(source, allow_urls=allow_urls)

    @property
    def digest(self) -> bytes:
        """A hash of pixels and size."""
        return self.digest_of((0, 0, *self.size))

    def digest_of(self, box: _Box) -> bytes:
        """The digest of the crop (left, top, right, bottom)."""
        if box not in self._digests:
            image = self.open()
            self._digests[box] = digest(image if box == (0, 0, *self.size) else image.crop(box))
        return self._digests[box]

    def open(self) -> Image.Image:
        """The RGB image, which the caller must not modify."""
        image, data = self._image, self._data  # another thread may call `release`
        return image if image is not None else decode(data or b"", self._name)

    def pixels(self, side: int) -> np.ndarray:
        """float32[side, side, 3] in [-1, 1], see `to_pixels`."""
        return to_pixels(self.open(), side)

    def crop(self, box: _Box) -> Picture:
        """A view of (left, top, right, bottom)."""
        return _Crop(self, box)

    def release(self) -> None:
        """Keeps the smaller of the decoded image and its encoded source."""
        if self._data is not None and len(self._data) > self._decoded_bytes:
            self._image, self._data = self.open(), None
        elif self._data is not None:
            self._image = None

    def compact(self) -> Picture:
        """Compresses the picture without loss if that saves memory; returns itself."""
        nbytes = self._decoded_bytes if self._data is None else len(self._data)
        if nbytes > max(_SMALL, self._decoded_bytes // 2):
            file = io.BytesIO()
            # Type 3 is run-length encoding: faster, hardly larger.
            self.open().save(file, "PNG", compress_level=1, compress_type=3)
            self._data = file.getvalue()
        return self

    @property
    def _decoded_bytes(self) -> int:
        return 4 * self.size[0] * self.size[1]  # Pillow stores an RGB pixel in four bytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """uint8[H, W, 3], for `load_image` and NumPy."""
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
    """A view of part of a picture, cropped when its pixels are needed."""

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
