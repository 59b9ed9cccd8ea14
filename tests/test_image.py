"""Images: what is read, and modes against values worked out by hand."""

from __future__ import annotations

import base64
import io
import urllib.parse
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image, ImageCms

from gemma_tpu.image import load_image, to_pixels

GREY16 = np.array([[0, 257, 32_768, 65_535]], np.uint16)  # 0, 1, 127.5, 255 in 8 bits


def pattern(width: int, height: int) -> Image.Image:
    """As tests/reference/make_text_goldens.py draws it."""
    y, x, c = np.mgrid[:height, :width, :3]
    return Image.fromarray(((x * 7 + y * 11 + (x * y // 50) * 3 + c * 60) % 256).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(image: Image.Image) -> list[int]:
    """The values of an image that must be grey."""
    values = np.asarray(image)
    assert image.mode == "RGB"
    assert (values == values[..., :1]).all()
    return values[..., 0].ravel().tolist()


PICTURE = pattern(12, 7)
PNG = encoded(PICTURE, "PNG")


# --- Sources ---


class Broken:
    def read(self) -> bytes:
        raise OSError("this file\nbreaks")


class BytePath:
    def __fspath__(self) -> bytes:
        return b"x"


def closed() -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


def test_every_source_gives_the_same_image(tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    path.write_bytes(PNG)
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    sources = [path, str(path), PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG), Image.open(path), PICTURE, url]
    sources += [url.rstrip("="), url.replace("data:", "DATA:"), url[:40] + "\n" + url[40:]]
    sources += [f"data:,{urllib.parse.quote(PNG)}", np.asarray(PICTURE), jax.numpy.asarray(np.asarray(PICTURE))]
    with path.open("rb") as file:
        for source in [*sources, file]:
            image = load_image(source)
            assert image.mode == "RGB"
            assert (np.asarray(image) == np.asarray(PICTURE)).all(), source


def test_result_is_the_readers_own() -> None:
    source = pattern(4, 4)
    load_image(source).putpixel((0, 0), (9, 9, 9))
    assert source.getpixel((0, 0)) == pattern(4, 4).getpixel((0, 0))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (
            "https://example.org/cat.png",
            "https://example.org/cat.png: images are fetched .*only where.*download it first",
        ),
        ("gs://bucket/cat.png", "not read from gs://"),
        ("/nowhere/cat.png", "/nowhere/cat.png: no such file"),
        ("/", "/: a folder, not an image"),
        ("A" * 6000, r"A+… \(6000 characters\): "),
        ("cat\0.png", "cat"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,!!!", "base64 is damaged"),
        ("data:image/png;base64,aGVsbG8=", "data URL .*not an image"),
        (b"", "image bytes .*empty"),
        (b"%PDF-1.7 and so on", r"image bytes \(18 bytes\): a PDF document, not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "an SVG drawing"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS files are not read"),
        (io.StringIO("text"), "binary mode"),
        (Broken(), "image file: cannot be read .this file breaks"),
        (closed(), "image file: cannot be read .I/O operation on closed file"),
        (BytePath(), "no path"),
        ("data:image/png;base64,é", "base64 is damaged"),
        (np.array([[object()]]), "got object"),
        (3, "cannot read an image from int"),
        (None, "cannot read an image from NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_image(source: object, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        load_image(source)


@pytest.mark.parametrize("limit", ["x", 2.5, None, 0, True])
def test_a_limit_that_is_none(limit: Any) -> None:
    with pytest.raises(Exception, match="max_pixels"):  # of the checker of annotations, for some
        load_image(PNG, max_pixels=limit)


def test_base_dir_cannot_be_left(tmp_path: Path) -> None:
    inside = tmp_path / "images"
    inside.mkdir()
    for path in (inside / "a.png", tmp_path / "secret.png"):
        path.write_bytes(PNG)
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    assert load_image("a.png", base_dir=inside).size == PICTURE.size
    assert load_image(inside / "a.png", base_dir=inside).size == PICTURE.size
    for escape in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(ValueError, match="outside the folder"):
            load_image(escape, base_dir=inside)


# --- Modes ---


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA", "AVIF", "JPEG"])
def test_formats(kind: str) -> None:
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    values = np.asarray(load_image(encoded(image, kind))).astype(int)
    assert values.shape == (32, 32, 3)
    assert np.abs(values - [255, 0, 0]).max() <= 3


def test_exif_rotation_is_applied() -> None:
    upright = np.asarray(PICTURE)
    turns = {2: upright[:, ::-1], 3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}
    for orientation, stored in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = load_image(encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif))
        assert (np.asarray(image) == upright).all(), orientation


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparent_parts_become_white(mode: str) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)  # black: opaque, half transparent, transparent
    rgba[0, :, 3] = 255, 128, 0
    image = Image.fromarray(rgba)
    if mode == "PA":
        opaque = image.convert("RGB").convert("P")
        opaque.putalpha(image.getchannel("A"))
        image = opaque
    for step in {"La": ("LA", "La"), "LA": ("LA",), "RGBa": ("RGBa",)}.get(mode, ()):
        image = image.convert(step)
    assert image.mode == mode
    assert grey(load_image(image)) == [0, 127, 255]
    if mode in ("RGBA", "LA"):
        assert grey(load_image(encoded(image, "PNG"))) == [0, 127, 255]


def test_palettes() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    colours = [(10, 20, 30), (200, 100, 0), (0, 0, 255)]
    for kind in ("PNG", "GIF", "BMP"):
        assert [load_image(encoded(image, kind)).getpixel((x, 0)) for x in range(3)] == colours
    for kind in ("PNG", "GIF"):
        transparent = load_image(encoded(image, kind, transparency=1))
        assert [transparent.getpixel((x, 0)) for x in range(3)] == [colours[0], (255, 255, 255), colours[2]]


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_one_transparent_colour(mode: str) -> None:
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), {"1": 1, "L": 90, "RGB": (90, 90, 90)}[mode])
    data = encoded(image, "PNG", transparency={"RGB": (0, 0, 0)}.get(mode, 0))
    assert grey(load_image(data)) == [255, 255 if mode == "1" else 90]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    image = Image.fromarray(GREY16)
    assert image.mode == "I;16"
    for source in (image, encoded(image, "PNG"), encoded(image, "TIFF"), GREY16, GREY16[..., None]):
        assert grey(load_image(source)) in ([0, 1, 127, 255], [0, 1, 128, 255])
    pgm = b"P5 4 1 65535\n" + GREY16.astype(">u2").tobytes()
    assert grey(load_image(pgm)) in ([0, 1, 127, 255], [0, 1, 128, 255])
    big = Image.frombytes("I;16B", (4, 1), GREY16.astype(">u2").tobytes())
    assert grey(load_image(big))[1:2] == [1]
    rgb16 = np.repeat(GREY16[..., None], 3, axis=2)
    assert grey(load_image(rgb16))[3] == 255
    assert grey(load_image(encoded(image, "PNG", transparency=0)))[:2] == [255, 1]


def test_integer_and_float_images() -> None:
    assert grey(load_image(Image.fromarray(np.array([[0, 257, 65535]], np.int32)))) == [0, 1, 255]
    assert grey(load_image(Image.fromarray(np.array([[-10, 0, 10]], np.int32)))) == [0, 128, 255]
    assert grey(load_image(Image.fromarray(np.array([[0, 0.2, 1]], np.float32)))) == [0, 51, 255]
    assert grey(load_image(Image.fromarray(np.array([[0, 51, 200]], np.float32)))) == [0, 51, 200]
    assert grey(load_image(Image.fromarray(np.array([[-1, 0, 1]], np.float32)))) == [0, 128, 255]
    assert grey(load_image(encoded(Image.fromarray(np.array([[0, 0.2, 1]], np.float32)), "TIFF"))) == [0, 51, 255]
    assert grey(load_image(Image.new("F", (1, 1)))) == [0]
    with pytest.raises(ValueError, match="not finite"):
        load_image(Image.fromarray(np.array([[0, np.nan]], np.float32)))


def test_other_colour_spaces() -> None:
    assert load_image(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)
    assert load_image(Image.new("HSV", (1, 1), (0, 255, 255))).getpixel((0, 0)) == (255, 0, 0)
    assert grey(load_image(Image.new("1", (1, 1), 1))) == [255]
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    for mode in ("CMYK", "YCbCr"):
        values = np.asarray(load_image(encoded(red.convert(mode), "JPEG"))).astype(int)
        assert np.abs(values - [255, 0, 0]).max() <= 3
    lab = ImageCms.profileToProfile(
        red, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    for source in (lab, encoded(lab, "TIFF")):
        assert np.abs(np.asarray(load_image(source)).astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = load_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert image.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (2000, 100), (3, 60)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    image = load_image(encoded(Image.new("RGB", size, "red"), "PNG"))
    assert image.size == size
    pixels = to_pixels(image)
    assert pixels.shape == (896, 896, 3)
    assert np.abs(pixels - [1, -1, -1]).max() < 1e-5


def test_arrays() -> None:
    values = np.array([[0, 128, 255]], np.uint8)
    assert grey(load_image(values)) == grey(load_image(values[..., None])) == [0, 128, 255]
    for dtype in (np.float16, np.float32, np.float64):
        assert grey(load_image(np.array([[0, 0.2, 1]], dtype))) == [0, 51, 255]
    rgba = np.array([[[0, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
    assert grey(load_image(rgba)) == grey(load_image(rgba / 255)) == [255, 0]
    assert (np.asarray(load_image(np.asarray(PICTURE)[::-1, ::2])) == np.asarray(PICTURE)[::-1, ::2]).all()


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((4, 4), np.int64), "uint8, uint16 or float .* got int64"),
        (np.zeros((4, 4), bool), "got bool"),
        (np.full((4, 4), 3.0), r"values in 0\.\.1, got 3\.\.3"),
        (np.full((4, 4, 3), -0.5), r"got -0\.5"),
        (np.full((4, 4), np.nan), "got nan"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "not empty"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
    ],
)
def test_arrays_that_are_no_image(array: np.ndarray, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        load_image(array)
