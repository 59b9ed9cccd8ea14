"""Pictures of a conversation: what they were when they were given, in few bytes."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemma_tpu.image import load_image, pan_and_scan, to_pixels
from gemma_tpu.picture import Picture

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 1400, 3), np.uint8))
DRAWING = NOISE.resize((14, 3)).resize((1400, 300), Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def held(picture: Picture) -> int:
    """Bytes of pixels and of encoded data that `picture` keeps."""
    image, data = picture._image, picture._data
    return (0 if image is None else 4 * image.width * image.height) + sys.getsizeof(data or b"")


@pytest.mark.parametrize("source", [encoded(DRAWING), encoded(DRAWING, "JPEG"), encoded(NOISE, "BMP"), NOISE, DRAWING])
def test_it_stays_the_same_image(source: bytes | Image.Image) -> None:
    expected = load_image(source)
    picture = Picture(source)
    for step in (lambda: None, picture.release, picture.compact, picture.release, picture.release):
        step()
        assert (np.asarray(picture.open()) == np.asarray(expected)).all()
        assert (picture.pixels(56) == to_pixels(expected, 56)).all()
        assert (np.asarray(load_image(picture)) == np.asarray(expected)).all()
        assert picture == Picture(expected)
        assert hash(picture) == hash(Picture(expected))
    assert picture != Picture(expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def test_it_does_not_follow_its_source(tmp_path: Path) -> None:
    path, array, image = tmp_path / "a.png", np.array(DRAWING), DRAWING.copy()
    DRAWING.save(path)
    pictures = [Picture(path), Picture(array), Picture(image)]
    for picture in pictures:
        picture.compact().release()
    NOISE.save(path)
    array[:] = 0
    image.paste((0, 0, 0), (0, 0, *image.size))
    for picture in pictures:
        assert (np.asarray(picture.open()) == np.asarray(DRAWING)).all()


def test_what_it_holds() -> None:
    decoded = 4 * NOISE.width * NOISE.height
    jpeg = encoded(DRAWING, "JPEG")
    picture = Picture(jpeg)
    picture.release()
    assert held(picture) < len(jpeg) + 100
    pages = encoded(DRAWING, "TIFF", save_all=True, append_images=[DRAWING] * 9)
    picture = Picture(pages)
    picture.release()
    assert held(picture) < decoded + 100
    for source in (DRAWING, np.asarray(DRAWING), pages):
        picture = Picture(source).compact()
        picture.release()
        assert held(picture) < 40_000


@pytest.mark.parametrize("source", [NOISE, encoded(NOISE)])
def test_crops_are_parts_of_it(source: bytes | Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Picture(source)
    boxes = [(0, 0, 350, 300), (350, 0, 700, 300), (700, 0, 1050, 300), (1050, 0, 1400, 300)]
    crops = [picture.crop(box) for box in boxes]
    expected = pan_and_scan(NOISE)
    assert [crop.size for crop in crops] == [crop.size for crop in expected]
    for crop, image in zip(crops, expected, strict=True):
        assert crop == Picture(image)
        assert (crop.pixels(56) == to_pixels(image, 56)).all()
    inner = crops[1].crop((10, 20, 60, 90))
    assert inner == Picture(NOISE.crop((360, 20, 410, 90)))
    picture.release()
    monkeypatch.setattr(Picture, "open", None)  # what has been asked once is remembered, without decoding
    assert picture.crop(boxes[2]).digest == crops[2].digest
