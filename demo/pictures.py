"""The picture input."""

from __future__ import annotations

import asyncio
from abc import ABCMeta
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder, is_static_file
from PIL import ExifTags, Image, UnidentifiedImageError

import gemma_tpu
from demo.page import notice
from demo.texts import explain, text

_SHOWN_BY_BROWSERS = ("PNG", "WEBP", "GIF", "BMP")  # beside JPEG
_SHOWN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # browsers convert deeper modes and CMYK differently


def _path(self: gr.Image, payload: ImageData | None) -> str | None:
    """`preprocess`: the file's path. Gradio itself checks only requests that mark it as an uploaded file."""
    if payload is None or payload.path is None:
        return None
    uploaded = Path(payload.path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    if not uploaded and not is_static_file(payload.path):
        raise gr.Error("this picture has not been uploaded here", print_exception=False)
    return payload.path


# gr.Image whose value is the uploaded file, undecoded, so that the library reads it. A class, because Gradio recreates
# components from class and arguments; made by ABCMeta, because Gradio's metaclass writes a type stub file next to the
# source of each class. `is_template`: the browser renders it as gr.Image.
Picture: type[gr.Image] = ABCMeta.__new__(
    type(gr.Image), "Picture", (gr.Image,), {"__module__": __name__, "preprocess": _path, "is_template": True}
)


def picture_input(**options: Any) -> gr.Image:
    return Picture(type="filepath", format="png", buttons=[], show_label=False, **options)


async def check_upload(path: str | None, lang: str) -> tuple[Any, str]:
    """Updates of the picture input and the notice after `path` was uploaded."""
    if path is None:
        return gr.skip(), ""
    try:
        return await asyncio.to_thread(_preview, path), ""
    except ValueError as error:
        return None, notice(text("bad_picture", lang, error=explain(error).removeprefix("image file ")))


async def fetch_picture(address: str, lang: str) -> tuple[Any, str]:
    """Updates of the picture input and the notice for the picture at an http(s) `address`."""
    address = address.strip()
    if not address.lower().startswith(("http://", "https://")):
        # It could name a file on this machine.
        return gr.skip(), notice(text("bad_picture", lang, error=text("no_address", lang)))
    try:
        return await asyncio.to_thread(gemma_tpu.load_image, address, allow_urls=True), ""
    except ValueError as error:
        return gr.skip(), notice(text("bad_picture", lang, error=explain(error)))


class _Upload:
    """An uploaded file whose errors do not reveal the server's path."""

    def __init__(self, path: str) -> None:
        self._path, self.name = path, Path(path).name

    def read(self) -> bytes:
        try:
            return Path(self._path).read_bytes()
        except OSError as error:
            raise OSError(error.strerror) from error  # without the path


def _preview(path: str) -> Any:
    """The picture as the model sees it, or no update if the browser shows the file alike. ValueError if unreadable."""
    image = gemma_tpu.load_image(_Upload(path))
    return gr.skip() if _renders_alike(path) else image


def _renders_alike(path: str) -> bool:
    """Whether every browser shows the file as `gemma_tpu.load_image` reads it."""
    try:
        with Image.open(path) as image:
            jpeg = image.format in ("JPEG", "MPO")  # MPO: several JPEGs, of which browsers show the first
            upright = jpeg or image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            still = jpeg or not getattr(image, "is_animated", False)
            supported = image.mode in _SHOWN_MODES and (jpeg or image.format in _SHOWN_BY_BROWSERS)
            return supported and upright and still and _is_opaque(image)
    except UnidentifiedImageError:
        return False  # HEIC, which needs pillow-heif


def _is_opaque(image: Image.Image) -> bool:
    """Screenshots often have an alpha channel that is fully opaque."""
    return not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
