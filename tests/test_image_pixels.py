"""Images: limits, damaged files, pixels against jax.image.resize, crops against Hugging Face."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_image import PICTURE, PNG, encoded, pattern

import gemma_tpu.image as image_module
from gemma_tpu.image import MAX_PIXELS, digest, load_image, pan_and_scan, to_pixels

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "text" / "processor.json").read_text())


# --- Limits and damage ---


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_100, 10_000, 30_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_decoding(side: int) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="limit is 64,000,000"):
        load_image(png_header(side, side))
    assert time.process_time() - began < 1


@pytest.mark.parametrize("size", [(320_000, 200), (2_000_000, 32), (200, 320_000), (65_536, 1)])
def test_a_side_has_a_limit(size: tuple[int, int]) -> None:
    began = time.process_time()
    for source in (png_header(*size), np.zeros((size[1], size[0]), np.uint8), Image.new("L", size)):
        with pytest.raises(ValueError, match=f"{size[0]} × {size[1]} pixels; the limit for a side is 65,535"):
            load_image(source)
    assert time.process_time() - began < 1
    assert load_image(Image.new("L", (65_535, 1))).size == (65_535, 1)


def peak(function: Callable[[], object]) -> int:
    """Bytes that NumPy and Python held at most, beside what they held before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [(65_535, 240), (240, 65_535), (320_000, 30)])
def test_pixels_take_no_more_than_picture_and_result(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    picture, result = 3 * size[0] * size[1], 896 * 896 * 12
    assert peak(lambda: to_pixels(image)) < result + max(picture, result) + (48 << 20)
    assert peak(lambda: digest(image)) < 16 << 20


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_deep_images_take_no_array_of_their_size(mode: str) -> None:
    image, array = Image.new(mode, (4000, 2000)), np.zeros((2000, 4000), np.float32)
    assert peak(lambda: load_image(image)) < 40 << 20  # an array of float64 has 61 MiB
    assert peak(lambda: load_image(array)) < array.size + (40 << 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "LAB", "I;16", "I", "F", "1", "YCbCr", "HSV"])
def test_bands_do_not_show(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    channels = {"RGBA": 4, "CMYK": 4, "LA": 2, "LAB": 3, "YCbCr": 3, "HSV": 3}.get(mode, 1)
    if mode in ("I;16", "I", "F"):
        values = rng.integers(0, 60_000, (37, 23)) * {"I": 3, "F": 0.7}.get(mode, 1)
        image = Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        source = Image.fromarray(rng.integers(0, 256, (37, 23, 3), np.uint8))
        depth = 1 if mode == "1" else 8
        row = -(-23 * channels * depth // 8)
        image = Image.frombytes(mode, (23, 37), rng.bytes(37 * row)) if mode != "P" else source.quantize(9)
    whole, pixels = load_image(image), to_pixels(load_image(image), 56)
    monkeypatch.setattr(image_module, "_BAND_PIXELS", 60)
    assert (np.asarray(load_image(image)) == np.asarray(whole)).all()
    np.testing.assert_allclose(to_pixels(whole, 56), pixels, atol=1e-6)
    assert digest(whole) == digest(image_module.decode(whole, ""))


def test_size_limit_names_size_and_limit() -> None:
    assert MAX_PIXELS == 64_000_000
    for source in (PNG, PICTURE, np.asarray(PICTURE)):
        with pytest.raises(ValueError, match=r"12 × 7 = 84 pixels; the limit is 83"):
            load_image(source, max_pixels=83)
        assert load_image(source, max_pixels=84).size == (12, 7)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "GIF"])
def test_truncated_files_are_refused(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)), kind)
    for part in (0.1, 0.5, 0.8):
        path = tmp_path / f"cut.{kind.lower()}"
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(ValueError, match=f"cut.{kind.lower()}"):
            load_image(path)


@pytest.mark.filterwarnings("ignore")  # of Pillow's, about the damage
def test_damaged_files_give_an_image_or_a_value_error() -> None:
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "TGA"):
        original = np.frombuffer(encoded(pattern(24, 16), kind, exif=exif), np.uint8)
        for _ in range(40):
            data = original.copy()
            data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
            try:
                assert load_image(data.tobytes(), max_pixels=1_000_000).mode == "RGB"
            except ValueError as error:
                assert "image bytes" in str(error)  # noqa: PT017 - an image is fine too


# --- Pixels ---


def reference_pixels(image: Image.Image, size: int) -> np.ndarray:
    values = np.asarray(image).astype(np.float32)
    resized = np.asarray(jax.image.resize(values, (size, size, 3), method="bilinear", antialias=True))
    return np.clip((resized / 255 - 0.5) / 0.5, -1, 1)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (640, 480, 896),
        (896, 896, 896),
        (1, 1, 896),
        (37, 1201, 896),
        (850, 801, 896),
        (1999, 100, 896),
        (113, 97, 56),
        (5, 3, 7),
    ],
)
def test_pixels_are_those_of_jax(width: int, height: int, size: int) -> None:
    """On noise, the hardest case: neighbours differ by up to the full range."""
    rng = np.random.default_rng(width)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    pixels = to_pixels(image, size)
    assert pixels.dtype == np.float32
    assert pixels.shape == (size, size, 3)
    assert pixels.flags.c_contiguous
    assert np.abs(pixels).max() <= 1
    np.testing.assert_allclose(pixels, reference_pixels(image, size), atol=1e-5)


@pytest.mark.parametrize("case", GOLDEN["resized"], ids=lambda case: str(case["size"]))
def test_pixels_are_within_one_step_of_hugging_face(case: dict) -> None:
    """Its processor rounds to 8 bits after each of two passes, so that it may be off by one."""
    pixels = (to_pixels(pattern(*case["size"]))[7::97, 5::97] + 1) * 127.5
    assert np.abs(pixels - np.array(case["pixels"])).max() <= 1.01


def test_one_image_takes_milliseconds() -> None:
    image = pattern(640, 480)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        to_pixels(image)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.1  # 20 ms on an idle core; the bound leaves room for a busy machine


# --- Pan and scan ---


def test_crops_are_those_of_hugging_face() -> None:
    assert sum(len(case["boxes"]) for case in GOLDEN["crops"]) > 60
    for case in GOLDEN["crops"]:
        width, height = case["size"]
        y, x = np.mgrid[:height, :width].astype(np.int32)
        found = []
        for rows, columns in zip(pan_and_scan(Image.fromarray(y)), pan_and_scan(Image.fromarray(x)), strict=True):
            (left, right), (top, bottom) = columns.getextrema(), rows.getextrema()
            found.append([left, top, right + 1, bottom + 1])
        assert found == case["boxes"], case["size"]


def test_pan_and_scan_settings() -> None:
    image = pattern(600, 100)
    assert pan_and_scan(image) == []
    assert [crop.size for crop in pan_and_scan(image, min_crop_size=50)] == [(150, 100)] * 4
    assert len(pan_and_scan(image, min_crop_size=50, max_num_crops=6)) == 6
    assert pan_and_scan(image, min_crop_size=50, min_ratio_to_activate=6.1) == []
