"""Images: anything a user may hand over → an RGB image → pixels for the vision tower; crops of pan and scan."""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from gemma_tpu import fetch, file_kinds

MAX_PIXELS = 64_000_000  # an 8,000 × 8,000 image; 192 MB as RGB

_WHITE = (255, 255, 255, 255)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_UNSAFE = {"EPS", "WMF"}  # drawn by running another program (Ghostscript) on a file that may be a stranger's


def load_image(
    source: Any, *, max_pixels: int = MAX_PIXELS, base_dir: str | Path | None = None, allow_urls: bool = False
) -> Image.Image:
    """An RGB image (8 bits) of its own from `source`.

    `source`: a path, encoded bytes, a binary file, a data URL, a PIL image, or an array [H, W] or [H, W, 1 | 3 | 4] of
    uint8, uint16 (0..65,535) or float (0..1). EXIF rotation is applied, transparent parts become white, 16-bit values
    are scaled to 8, of an animation the first frame is taken. Integer and float images of 32 bits have no fixed range:
    values within 0..65,535 are read as 16-bit, floats within 0..1 or 0..255 as that, and anything else is stretched
    from its least to its greatest value.

    With `base_dir`, paths are relative to it and may not leave it. With `allow_urls`, images at http(s) addresses are
    fetched (see `gemma_tpu.fetch`), which means any that this machine can reach. HEIC needs pillow-heif (the extra
    `heif`).

    Raises ValueError, naming the source, for what cannot be read, is damaged, or has more than `max_pixels` pixels
    (known from its header, before anything is decoded).
    """
    if isinstance(source, Image.Image):
        return _finish(source, "PIL image", max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), f"image bytes ({len(source)} bytes)", max_pixels)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _decode(_data_url(source), f"data URL {_short(source)}", max_pixels)
    if isinstance(source, str) and fetch.is_url(source):
        if not allow_urls:
            raise ValueError(
                f"{_short(source)}: images are fetched from the web only where that is allowed (allow_urls, "
                "--allow-urls); download it first, or send its data"
            )
        return _decode(fetch.fetch(source), _short(source), max_pixels)
    if isinstance(source, (str, Path)):
        return _decode(_read(source, base_dir), _short(str(source)), max_pixels)
    if hasattr(source, "read"):
        name = f"image file {getattr(source, 'name', '')}".strip()
        data = source.read()
        if not isinstance(data, bytes):
            raise ValueError(f"{name}: opened as text; open it in binary mode ('rb')")
        return _decode(data, name, max_pixels)
    if hasattr(source, "__array__"):
        return _finish(_from_array(np.asarray(source)), "image array", max_pixels)
    raise ValueError(
        f"cannot read an image from {type(source).__name__}; "
        "expected a path, bytes, a data URL, a file, a PIL image or an array"
    )


def to_pixels(image: Image.Image, size: int = 896) -> np.ndarray:
    """float32[size, size, 3] in [-1, 1]: antialiased bilinear resize in float32, not keeping the aspect ratio.

    Equal to gemma 3.3.0's preprocessing (`jax.image.resize` with antialias, (x / 255 - 0.5) / 0.5, clipped) within
    1e-5. Rounding to 8 bits between the steps, as Pillow and others do, would be a hundred times coarser.
    """
    rgb = np.asarray(image.convert("RGB"))
    height, width, _ = rgb.shape
    pixels = _resize_rows(rgb.reshape(height, width * 3), size)
    pixels = _transpose(_resize_rows(_transpose(pixels), size)).reshape(size, size, 3)
    pixels *= np.float32(1 / 127.5)
    pixels -= 1
    return np.clip(pixels, -1, 1, out=pixels)


def _resize_rows(x: np.ndarray, size: int) -> np.ndarray:
    """[n, c] → float32[size, c]. A row of the result is a weighted sum of a few neighbouring rows: a small product."""
    n = len(x)
    if n == size:
        return x.astype(np.float32)
    # Positions as XLA has them (product in one rounding, then float32): exact ones differ by 1e-4 in a noisy image.
    step = np.float32(n / size)
    centre = ((np.arange(size) + 0.5) * float(step) - 0.5).astype(np.float32)[:, None]
    reach = max(step, np.float32(1))
    first = np.maximum(np.ceil(centre - reach), 0).astype(int)
    taps = int((np.minimum(np.floor(centre + reach).astype(int), n - 1) - first).max()) + 1
    first = np.minimum(first, n - taps)
    weights = np.maximum(1 - np.abs(centre - (first + np.arange(taps)).astype(np.float32)) / reach, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    out = np.empty((size, x.shape[1]), np.float32)
    for row, start, weight in zip(out, first[:, 0].tolist(), weights, strict=True):
        np.dot(weight, x[start : start + taps].astype(np.float32, copy=False), out=row)
    return out


def _transpose(x: np.ndarray) -> np.ndarray:
    """float32[a, b * 3] → [b, a * 3], moving whole pixels of 12 bytes: several times faster than three floats."""
    return np.ascontiguousarray(x.view("V12").T).view(np.float32)


def pan_and_scan(
    image: Image.Image,
    *,
    min_crop_size: int = 256,
    max_num_crops: int = 4,
    min_ratio_to_activate: float = 1.2,
) -> list[Image.Image]:
    """Crops that cover `image` along its longer side; none if it is nearly square or they would be too small.

    There are about as many as the aspect ratio says, 2 to `max_num_crops`, each at least `min_crop_size` pixels on its
    shorter side (transformers 5.23, image_processing_gemma3.py, with the released checkpoints' settings).
    """
    long, short = max(image.size), min(image.size)
    if long / short < min_ratio_to_activate:
        return []
    count = min(math.floor(long / short + 0.5), long // min_crop_size)
    count = min(max(count, 2), max_num_crops)
    step = math.ceil(long / count)
    if min(step, short) < min_crop_size:
        return []
    spans = [(start, min(start + step, long)) for start in range(0, long, step)]
    if image.width >= image.height:
        return [image.crop((start, 0, end, short)) for start, end in spans]
    return [image.crop((0, start, short, end)) for start, end in spans]


def _read(source: str | Path, base_dir: str | Path | None) -> bytes:
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
    except OSError as error:  # no permission, or far too long a name: base64 without its "data:" before it
        raise ValueError(f"{name}: cannot read the file ({error.strerror})") from error


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
    except binascii.Error as error:
        raise ValueError(f"data URL {_short(url)}: its base64 is damaged ({error})") from error


def _decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    if not data:
        raise ValueError(f"{name}: empty")
    try:
        image = _open(data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: image too large; the limit is {max_pixels:,} pixels ({error})") from error
    except Exception as error:  # each of Pillow's readers fails in its own way on a damaged header
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
            pass  # Pillow itself may read it some day; else the error says how to
        else:
            return pillow_heif.HeifImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data))


def _finish(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: {width} × {height} = {width * height:,} pixels; the limit is {max_pixels:,}. Scale it down first"
        )
    if not width * height:
        raise ValueError(f"{name}: {width} × {height}: an image without pixels")
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))  # which copies, so that the caller's image stays his
    except Exception as error:  # as above, for the rest of the file
        raise ValueError(f"{name}: damaged or unreadable image data ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode → RGB (an RGB image is returned as it is)."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep(image)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None is for inPlace=True
        return converted
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit integer and float images; Pillow's own conversion would clip them at 255."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    low, high = values.min(), values.max()
    top = (1 if high <= 1 else 255) if image.mode == "F" else 65535
    if low >= 0 and high <= top:
        low, high = 0, top
    grey = np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    shape = f"an image array must be [H, W] or [H, W, 1 | 3 | 4] and not empty, got shape {array.shape}"
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(shape)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also for NaN
            raise ValueError(f"a float image array holds values in 0..1, got {low:g}..{high:g}; scale it, or use uint8")
        array = np.rint(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    elif array.dtype == np.uint16:
        array = np.rint(array / 257).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8, uint16 or float (0..1), got {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


def _short(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:60]}… ({len(name)} characters)"
