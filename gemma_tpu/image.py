"""Reads images: any source that a caller may give → RGB image → pixels for the vision tower; pan-and-scan crops."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import re
import struct
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from gemma_tpu import fetch, file_kinds
from gemma_tpu.checks import as_path, brief, check_flag, check_integer, check_number, one_line

MAX_PIXELS = 64_000_000  # an 8,000 × 8,000 image; 192 MB as RGB
# The longest side of a JPEG or GIF. Other formats allow longer rows, of which a few bytes may decode to gigabytes.
MAX_SIDE = 65_535
_BAND, _THREADS = 128, 4  # rows of the result that are made at a time, and by how many threads
_BAND_PIXELS = 3 << 18  # processed at a time: about the 896 × 896 pixels of a result

_WHITE = (255, 255, 255, 255)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_UNSAFE = {"EPS", "WMF"}  # Pillow renders these with an external program (Ghostscript), unsafe for untrusted files


def load_image(
    source: Any, *, max_pixels: int = MAX_PIXELS, base_dir: str | Path | None = None, allow_urls: bool = False
) -> Image.Image:
    """A new 8-bit RGB image from `source`.

    `source`: a path, encoded bytes, a binary file, a data URL, a PIL image, or an array [H, W] or [H, W, 1 | 3 | 4] of
    uint8, uint16 (0..65,535) or float (0..1). Applies EXIF rotation, composites transparency on white, scales 16-bit
    values to 8 bits, and takes the first frame of an animation. 32-bit integer and float images have no fixed range:
    values within 0..65,535 are read as 16-bit, floats within 0..1 or 0..255 as that, and any other range is stretched
    from its minimum to its maximum.

    With `base_dir`, paths are relative to it and may not leave it. `allow_urls` also fetches http(s) URLs (see
    `gemma_tpu.fetch`), any that this machine can reach. HEIC needs pillow-heif (the extra `heif`).

    Raises ValueError, naming the source, if it cannot be read, is damaged, or has more than `max_pixels` pixels or
    `MAX_SIDE` per side (checked in the header, before decoding).
    """
    check_integer("max_pixels", max_pixels, 1)
    check_flag("allow_urls", allow_urls)
    base_dir = base_dir if base_dir is None else as_path("base_dir", base_dir)
    return decode(*read_source(source, base_dir=base_dir, allow_urls=allow_urls), max_pixels)


def read_source(
    source: Any, *, base_dir: str | Path | None = None, allow_urls: bool = False
) -> tuple[bytes | Image.Image | np.ndarray, str]:
    """The undecoded content of `source` (see `load_image`), and its name in errors."""
    if isinstance(source, Image.Image):
        return source, "PIL image"
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return data, f"image bytes ({len(data)} bytes)"
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _data_url(source), f"data URL {_short(source)}"
    if isinstance(source, str) and fetch.is_url(source):
        if not allow_urls:
            raise ValueError(
                f"{_short(source)}: images are fetched from the web only where that is allowed (allow_urls, "
                "--allow-urls); download it first, or send its data"
            )
        return fetch.fetch(source), _short(source)
    if isinstance(source, (str, os.PathLike)):
        return _read(source, base_dir), _short(str(source))
    if hasattr(source, "read"):
        return _read_file(source)
    if hasattr(source, "__array__"):
        try:
            return np.asarray(source), "image array"
        except Exception as error:  # a foreign array, for example a deleted JAX array
            raise ValueError(f"image array: cannot be read ({one_line(error)})") from error
    raise ValueError(
        f"cannot read an image from {type(source).__name__}; "
        "expected a path, bytes, a data URL, a file, a PIL image or an array"
    )


def decode(data: bytes | Image.Image | np.ndarray, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A new RGB image from the result of `read_source`. Raises as `load_image` does."""
    if isinstance(data, Image.Image):
        return _finish(data, name, max_pixels)
    if isinstance(data, np.ndarray):
        return _finish(_from_array(data, name, max_pixels), name, max_pixels)
    return _decode(data, name, max_pixels)


def to_pixels(image: Image.Image, size: int = 896) -> np.ndarray:
    """float32[size, size, 3] in [-1, 1]: antialiased bilinear resize in float32, ignoring the aspect ratio.

    Matches gemma 3.3.0's preprocessing (`jax.image.resize` with antialias, (x / 255 - 0.5) / 0.5, clipped) to 1e-5.
    Rounding to 8 bits between the steps, as Pillow does, would be a hundred times coarser.

    The longer side is resized first, in bands, some at a time: their temporaries take a few megabytes each.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    width, height = image.size
    (long, short), wide = (max(image.size), min(image.size)), width > height
    firsts, all_weights = _taps(long, size)
    of_short = _matrix(*_taps(short, size), short)
    pixels = np.empty((size, size, 3), np.float32)
    step = max(1, min(_BAND, _BAND_PIXELS * size // (short * max(long, size))))

    def resize(start: int) -> None:
        stop = min(start + step, size)
        first, weights = firsts[start:stop], all_weights[start:stop]
        begin, end = int(first[0]), int(first[-1]) + weights.shape[1]
        if wide:
            source = np.asarray(image.crop((begin, 0, end, height))).swapaxes(0, 1)
        else:
            source = np.asarray(image.crop((0, begin, width, end)))
        rows = source.astype(np.float32, order="C").reshape(len(source), short * 3)
        band = of_short @ _transpose(_matrix(first - begin, weights, len(source)) @ rows)
        band *= np.float32(1 / 127.5)
        band -= 1
        np.clip(band, -1, 1, out=band)
        if wide:
            pixels[:, start:stop] = band.reshape(size, -1, 3)
        else:
            pixels[start:stop] = _transpose(band).reshape(-1, size, 3)

    with ThreadPoolExecutor(_THREADS, "resize") as pool:
        list(pool.map(resize, range(0, size, step)))
    return pixels


def _taps(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Resampling weights from n rows to `size`: each output row's first input row int[size], float32[size, taps]."""
    # Positions rounded as in XLA; exact positions change a noisy image by 1e-4.
    step = np.float32(n / size)
    centre = ((np.arange(size) + 0.5) * float(step) - 0.5).astype(np.float32)[:, None]
    reach = max(step, np.float32(1))
    first = np.maximum(np.floor(centre - reach).astype(int) + 1, 0)  # a row at distance `reach` has weight 0
    taps = int((np.minimum(np.ceil(centre + reach).astype(int), n) - first).max())
    first = np.minimum(first, n - taps)
    weights = np.maximum(1 - np.abs(centre - (first + np.arange(taps)).astype(np.float32)) / reach, 0)
    return first[:, 0], weights / weights.sum(axis=1, keepdims=True)


def _matrix(first: np.ndarray, weights: np.ndarray, n: int) -> Any:
    """A sparse matrix [size, n] of the weights of `_taps`. Its products let other threads run, and start none."""
    from scipy.sparse import csr_array  # takes a quarter of a second, which text needs not wait for

    size, taps = weights.shape
    rows, columns = np.arange(size + 1) * taps, first[:, None] + np.arange(taps)
    return csr_array((weights.ravel(), columns.ravel(), rows), shape=(size, n))


def _transpose(x: np.ndarray) -> np.ndarray:
    """float32[a, b * 3] → [b, a * 3]. Moving 12-byte pixels is several times faster than moving floats."""
    return np.ascontiguousarray(x.view("V12").T).view(np.float32)


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Splits `image` into strips of less than a million pixels: (first row, strip)."""
    step = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, step):
        yield top, image.crop((0, top, image.width, min(top + step, image.height)))


def pan_and_scan(
    image: Image.Image,
    *,
    min_crop_size: int = 256,
    max_num_crops: int = 4,
    min_ratio_to_activate: float = 1.2,
) -> list[Image.Image]:
    """Crops that cover `image` along its longer side; none if it is nearly square or the crops would be too small.

    The number of crops is the rounded aspect ratio, within 2 to `max_num_crops`; each side has at least `min_crop_size`
    pixels (transformers 5.23, image_processing_gemma3.py, with the released checkpoints' settings).
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"image must be a PIL image (see load_image), got {brief(image)}")
    check_integer("min_crop_size", min_crop_size, 1)
    check_integer("max_num_crops", max_num_crops, 2)
    check_number("min_ratio_to_activate", min_ratio_to_activate, 1)
    boxes = crop_boxes(image.size, min_crop_size, max_num_crops, min_ratio_to_activate)
    return [image.crop(box) for box in boxes]


def crop_boxes(
    size: tuple[int, int], min_crop_size: int = 256, max_num_crops: int = 4, min_ratio_to_activate: float = 1.2
) -> list[tuple[int, int, int, int]]:
    """The crops of `pan_and_scan` as (left, top, right, bottom), for an image of `size` (width, height)."""
    long, short = max(size), min(size)
    if long / short < min_ratio_to_activate:
        return []
    count = min(math.floor(long / short + 0.5), long // min_crop_size)
    count = min(max(count, 2), max_num_crops)
    step = math.ceil(long / count)
    if min(step, short) < min_crop_size:
        return []
    spans = [(start, min(start + step, long)) for start in range(0, long, step)]
    if size[0] >= size[1]:
        return [(start, 0, end, short) for start, end in spans]
    return [(0, start, short, end) for start, end in spans]


def _read(source: str | os.PathLike[Any], base_dir: str | Path | None) -> bytes:
    name = _short(str(source))
    if scheme := _SCHEME.match(str(source)):
        raise ValueError(f"{name}: images are not read from {scheme[0]} addresses; give a path, or send its data")
    if not str(source):
        raise ValueError("an empty path to an image")
    try:
        path = Path(source)
        if base_dir is not None:
            base = Path(base_dir).resolve()
            path = (base / path).resolve()
            if not path.is_relative_to(base):
                raise ValueError(f"{name}: outside the folder images may be read from")
        if path.is_dir():
            raise ValueError(f"{name}: a folder, not an image")
        if not path.is_file():
            raise ValueError(f"{name}: no such file")
        return path.read_bytes()
    except OSError as error:  # no permission, or a name that is too long: base64 without "data:"
        raise ValueError(f"{name}: cannot read the file ({error.strerror})") from error
    except TypeError as error:  # a bytes path, or a base_dir that is not a path
        raise ValueError(f"{name}: no path ({error})") from error


def _read_file(file: Any) -> tuple[bytes, str]:
    name = f"image file {_short(str(getattr(file, 'name', '')))}".strip()
    try:
        data = file.read()
    except Exception as error:  # a foreign file object may raise anything
        raise ValueError(f"{name}: cannot be read ({one_line(error)})") from error
    if not isinstance(data, bytes):
        raise ValueError(f"{name}: opened as text; open it in binary mode ('rb')")
    return data, name


def _data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise ValueError(f"data URL {_short(url)}: no comma between its type and its data")
    data = urllib.parse.unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return data
    data = b"".join(data.split())
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except ValueError as error:  # binascii.Error, or non-ASCII characters
        raise ValueError(f"data URL {_short(url)}: its base64 is damaged ({error})") from error


def _decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    if not data:
        raise ValueError(f"{name}: empty")
    try:
        image = _open(data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: image too large; the limit is {max_pixels:,} pixels ({error})") from error
    except Exception as error:  # Pillow's readers raise various errors for a damaged header
        raise ValueError(f"{name}: {file_kinds.describe(data)}") from error
    with image:
        if image.format == "TIFF" and file_kinds.is_camera_raw(image):
            raise ValueError(f"{name}: {file_kinds.RAW}")
        if image.format in _UNSAFE:
            raise ValueError(f"{name}: {image.format} files are not read; convert it to PNG first")
        return _finish(image, name, max_pixels)


def _open(data: bytes) -> Image.Image:
    if file_kinds.is_heic(data):
        try:
            import pillow_heif  # pyright: ignore[reportMissingImports]
        except ImportError:
            pass  # Pillow tries, and the error names the extra
        else:
            return pillow_heif.HeifImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data))


def _finish(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(*image.size, name, max_pixels)
    try:
        image.load()
    except Exception as error:  # as in _decode, for the rest of the file
        raise ValueError(f"{name}: damaged or unreadable image data ({one_line(error)})") from error
    _check_size(*image.size, name, max_pixels)  # an icon's image may differ in size from its header
    try:
        orientation, rgb = image.getexif().get(ExifTags.Base.Orientation), _to_rgb(image)
        if orientation:
            rgb.getexif()[ExifTags.Base.Orientation] = orientation
            ImageOps.exif_transpose(rgb, in_place=True)
        return rgb
    except Exception as error:
        raise ValueError(f"{name}: damaged or unreadable image data ({one_line(error)})") from error


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise ValueError(
            f"{name}: {width} × {height} pixels; the limit for a side is {MAX_SIDE:,}. Scale it down, or cut it up"
        )
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: {width} × {height} = {width * height:,} pixels; the limit is {max_pixels:,}. Scale it down first"
        )
    if not width * height:
        raise ValueError(f"{name}: {width} × {height}: an image without pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to a new RGB image, in bands to bound memory."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image.copy()
    to_rgb = _deep_to_rgb(image) if image.mode.startswith("I;16") or image.mode in ("I", "F") else _band_to_rgb
    rgb = Image.new("RGB", image.size)
    for top, band in bands(image):
        rgb.paste(to_rgb(band), (0, top))
    return rgb


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None is for inPlace=True
        return converted
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def _deep_to_rgb(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """The band converter of a 16-bit, 32-bit or float image, which Pillow itself would clip at 255."""
    extrema = np.array([(values.min(), values.max()) for _, band in bands(image) for values in [np.asarray(band)]])
    if not np.isfinite(extrema).all():
        raise ValueError("it holds values that are not finite")
    low, high = float(extrema[:, 0].min()), float(extrema[:, 1].max())
    top = (1 if high <= 1 else 255) if image.mode == "F" else 65535
    if low >= 0 and high <= top:
        low, high = 0, top
    transparent = image.info.get("transparency")

    def to_rgb(band: Image.Image) -> Image.Image:
        values = np.asarray(band).astype(np.float64)
        grey = np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")

    return to_rgb


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> Image.Image:
    shape = f"an image array must be [H, W] or [H, W, 1 | 3 | 4] and not empty, got shape {array.shape}"
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(shape)
    _check_size(array.shape[1], array.shape[0], name, max_pixels)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    floating = np.issubdtype(array.dtype, np.floating)
    if floating:
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also for NaN
            raise ValueError(f"a float image array holds values in 0..1, got {low:g}..{high:g}; scale it, or use uint8")
    elif array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"an image array must be uint8, uint16 or float (0..1), got {array.dtype}")
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    values, step = np.empty(array.shape, np.uint8), max(1, _BAND_PIXELS // array.shape[1])
    for top in range(0, len(array), step):
        band = array[top : top + step]
        scaled = np.clip(band.astype(np.float32), 0, 1) * 255 if floating else band / 257
        values[top : top + step] = np.rint(scaled)
    return Image.fromarray(values)


def digest(image: Image.Image) -> bytes:
    """A hash of the pixels and size of an RGB image."""
    state = hashlib.sha256(struct.pack("<2I", *image.size))  # which processors have instructions for
    for _, band in bands(image):
        state.update(band.tobytes())
    return state.digest()[:16]


def _short(name: str) -> str:
    name = one_line(fetch.without_credentials(name))
    return name if len(name) <= 100 else f"{name[:60]}… ({len(name)} characters)"
