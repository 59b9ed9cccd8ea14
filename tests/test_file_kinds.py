"""Files given as images that are none: each is named, and none is read as something else."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.features
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from gemma_tpu import load_image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((120, 80))


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def ftyp(*brands: bytes) -> bytes:
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", 4 + len(body)) + body + bytes(100)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    return file.getvalue()


def numpy_file() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((2, 2, 3), np.uint8))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"%PDF-1.7\n1 0 obj", "a PDF document, not an image; save the page as PNG"),
        (
            b'<?xml version="1.0"?>\n<!-- x --><svg xmlns="http://www.w3.org/2000/svg"/>',
            "an SVG.* as PNG first",
        ),
        (b'\xef\xbb\xbf<svg width="3"/>', "an SVG drawing"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "a web page, not an image; download the image itself"),
        ("<html><body>登录</body></html>".encode("utf-16"), "a web page"),
        (b"Hello, this is a picture.", "a text file, not an image"),
        ("你好，世界".encode() * 400, "a text file"),  # cut within a character
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "a Git LFS pointer.*git lfs pull"),
        (ftyp(b"isom", b"isom", b"mp42"), "a video, not an image; save a frame"),
        (ftyp(b"qt  "), "a video"),
        (ftyp(b"crx ", b"crx "), "a camera raw file"),
        (ftyp(b"M4A "), "a sound file"),
        (ftyp(b"avif", b"mif1", b"miaf"), "an AVIF image"),
        (ftyp(b"mif1", b"avif"), "an AVIF image"),
        (b"\x1aE\xdf\xa3\x01\x00\x00\x00", "a video"),
        (b"RIFF\x00\x00\x01\x00AVI LIST", "a video"),
        (b"RIFF\x00\x00\x01\x00WAVEfmt ", "a sound file"),
        (b"FUJIFILMCCD-RAW 0201FF", "a camera raw file, .*convert it to PNG or JPEG first"),
        (b"IIRO\x08\x00\x00\x00", "a camera raw file"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (zipped(), "a ZIP archive or an office document"),
        (numpy_file(), "a NumPy array; load it with numpy.load"),
        (bytes(128) + b"DICM" + bytes(50), "a DICOM file"),
        (bytes(range(256)), "not an image, or of a kind that Pillow cannot read"),
    ],
)
def test_each_is_named_with_the_way_out(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"  # whatever its name says
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"photo.jpg: {said}"):
        load_image(path)


def test_a_heic_image_is_read_where_pillow_heif_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, which the format says itself too: to be done once
    heif.from_pillow(NOISE).save(file, quality=-1, exif=exif.tobytes())
    image = load_image(file.getvalue())
    expected = NOISE.transpose(Image.Transpose.ROTATE_270)
    assert image.size == expected.size
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).mean() < 10
    with pytest.raises(ValueError, match="the limit is 9,000"):
        load_image(file.getvalue(), max_pixels=9000)
    with pytest.raises(ValueError, match=r"HEIC|damaged"):
        load_image(file.getvalue()[:600])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it is an ImportError
    with pytest.raises(ValueError, match=r"a HEIC image; convert it to PNG or JPEG first \(.*gemma_tpu\[heif\]"):
        load_image(file.getvalue())


@pytest.mark.skipif(not PIL.features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_by_pillow() -> None:
    assert load_image(saved(NOISE, "AVIF", quality=90)).size == NOISE.size


def test_icons_are_read() -> None:
    assert load_image(saved(NOISE.resize((64, 64)), "ICO", sizes=[(16, 16), (64, 64)])).size == (64, 64)


@pytest.mark.parametrize("tags", [{50706: b"\x01\x04\x00\x00"}, {254: 1, 330: 8}], ids=["DNG", "NEF"])
def test_a_raw_file_is_not_read_as_its_thumbnail(tags: dict) -> None:
    """Cameras' files begin with a small picture, as a TIFF that Pillow reads."""
    info = ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    with pytest.raises(ValueError, match="a camera raw file"):
        load_image(saved(NOISE, "TIFF", tiffinfo=info))
    assert load_image(saved(NOISE, "TIFF")).size == NOISE.size
