"""Identifies, by its magic bytes, a file that was given as an image and that Pillow cannot read."""

from __future__ import annotations

from PIL import Image

_CONVERT = "convert it to PNG or JPEG first"
RAW = f"a camera raw file, which Pillow cannot develop; {_CONVERT}"
_VIDEO = "a video, not an image; save a frame of it as PNG or JPEG"
_AUDIO = "a sound file, not an image"
_ARCHIVE = "an archive, not an image; unpack it first"
_HTML = "a web page, not an image; download the image itself"

# Brands in the ftyp box of ISO media files (ISO 14496-12; registry at mp4ra.org).
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
_BRANDS = {
    **dict.fromkeys(_HEIC, f"a HEIC image; {_CONVERT} (or pip install 'gemma_tpu[heif]' to read it directly)"),
    **dict.fromkeys(_AVIF, f"an AVIF image, which this Pillow cannot read; {_CONVERT}"),
    b"crx ": RAW,
    b"jxl ": f"a JPEG XL image; {_CONVERT}",
    **dict.fromkeys((b"M4A ", b"M4B "), _AUDIO),
}

# (offset, magic bytes, description)
_MAGIC = (
    (0, b"%PDF-", "a PDF document, not an image; save the page as PNG"),
    (0, b"\xff\x0a", f"a JPEG XL image; {_CONVERT}"),
    (0, b"\x00\x00\x00\x0cJXL ", f"a JPEG XL image; {_CONVERT}"),
    (0, b"FUJIFILMCCD-RAW", RAW),
    (0, b"IIU\x00", RAW),  # Panasonic
    (0, b"IIRO", RAW),  # Olympus
    (0, b"IIRS", RAW),
    (0, b"MMOR", RAW),
    (0, b"FOVb", RAW),  # Sigma
    (0, b"\x1aE\xdf\xa3", _VIDEO),  # Matroska, WebM
    (8, b"AVI ", _VIDEO),
    (0, b"\x00\x00\x01\xba", _VIDEO),  # MPEG
    (0, b"FLV\x01", _VIDEO),
    (0, b"0&\xb2u\x8ef\xcf\x11", _VIDEO),  # Windows Media
    (0, b"OggS", "a video or sound file, not an image"),
    (8, b"WAVE", _AUDIO),
    (0, b"ID3", _AUDIO),
    (0, b"fLaC", _AUDIO),
    (0, b"PK\x03\x04", "a ZIP archive or an office document, not an image; take the image out of it"),
    (0, b"\x1f\x8b", _ARCHIVE),
    (0, b"7z\xbc\xaf", _ARCHIVE),
    (0, b"Rar!", _ARCHIVE),
    (0, b"\x93NUMPY", "a NumPy array; load it with numpy.load and give the array"),
    (128, b"DICM", f"a DICOM file; {_CONVERT}"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the image itself; fetch it with git lfs pull"),
)

_IFD_SUBFILE, _SUB_IFDS, _DNG_VERSION = 254, 330, 50706  # tags of TIFF and TIFF/EP


def describe(data: bytes) -> str:
    """What `data` is and how to proceed: "a PDF document, not an image; save the page as PNG"."""
    if brands := _brands(data):
        brands.sort(key=lambda brand: brand not in _AVIF)  # avif is more specific than mif1
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), _VIDEO)
    for offset, magic, kind in _MAGIC:
        if data[offset:].startswith(magic):
            return kind
    if (text := _text(data[:2000])) is None:
        return "not an image, or of a kind that Pillow cannot read, or damaged at its beginning"
    text = text.lstrip("\ufeff \t\r\n").lower()
    if "<svg" in text and text.startswith("<"):
        return "an SVG drawing, which is not made of pixels; export it as PNG first"
    if text.startswith(("<!doctype html", "<html", "<head", "<body")):
        return _HTML
    return "a text file, not an image"


def is_heic(data: bytes) -> bool:
    brands = _brands(data)
    return any(brand in _HEIC for brand in brands) and not any(brand in _AVIF for brand in brands)


def is_camera_raw(image: Image.Image) -> bool:
    """Whether an opened TIFF is a camera raw file, of which Pillow would read only the thumbnail."""
    tags = getattr(image, "tag_v2", {})
    thumbnail_first = bool(tags.get(_IFD_SUBFILE, 0) & 1) and _SUB_IFDS in tags
    return _DNG_VERSION in tags or thumbnail_first


def _brands(data: bytes) -> list[bytes]:
    """The major and compatible brands of an ISO media file."""
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4], "big"), 256)
    return [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]


def _text(data: bytes) -> str | None:
    """`data` as text, or None. UTF-8, or UTF-16 with a byte order mark."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data[: len(data) & ~1].decode("utf-16", "replace")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.start < len(data) - 3:
            return None
        text = data[: error.start].decode()
    return text if all(char.isprintable() or char in "\ufeff\t\r\n\f" for char in text) else None
