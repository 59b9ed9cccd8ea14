"""The place where a picture is dropped."""

from __future__ import annotations

import asyncio
from abc import ABCMeta
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder, is_static_file
from PIL import ExifTags, Image, UnidentifiedImageError

import gemma_tpu
from demo.state import explain
from demo.texts import text

_SHOWN_BY_BROWSERS = ("PNG", "WEBP", "GIF", "BMP")  # beside JPEG
_SHOWN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # deeper ones and CMYK are converted in other ways


def _path(self: gr.Image, payload: ImageData | None) -> str | None:
    """`preprocess`: where the file is. Gradio checks that it was uploaded only if the request marks it as a file."""
    if payload is None or payload.path is None:
        return None
    uploaded = Path(payload.path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    if not uploaded and not is_static_file(payload.path):
        raise gr.Error("this picture has not been uploaded here", print_exception=False)
    return payload.path


# gr.Image whose value is the uploaded file, unread: the library decides if it is a picture, and converts it. A class,
# because Gradio makes components anew from their class and arguments; made by ABCMeta, because Gradio's own metaclass
# writes a file of type stubs beside the source of each class. `is_template`: the browser shows it as its base.
Picture: type[gr.Image] = ABCMeta.__new__(
    type(gr.Image), "Picture", (gr.Image,), {"__module__": __name__, "preprocess": _path, "is_template": True}
)


def picture(**options: Any) -> gr.Image:
    return Picture(type="filepath", format="png", buttons=[], show_label=False, **options)


async def check(path: str | None, lang: str) -> tuple[Any, str]:
    """What the place and the notice should hold once `path` has been uploaded."""
    if path is None:
        return gr.skip(), ""  # the place stays as it is
    try:
        return await asyncio.to_thread(_as_seen, path), ""
    except ValueError as error:
        return None, _refusal(explain(error).removeprefix("image file "), lang)


async def fetch(address: str, lang: str) -> tuple[Any, str]:
    """What the place and the notice should hold once the picture at an http(s) `address` has been asked for."""
    address = address.strip()
    if not address.lower().startswith(("http://", "https://")):
        return gr.skip(), _refusal(text("no_address", lang), lang)  # else it would name a file of this machine
    try:
        return await asyncio.to_thread(gemma_tpu.load_image, address, allow_urls=True), ""
    except ValueError as error:
        return gr.skip(), _refusal(explain(error), lang)  # the place stays as it is


class _Upload:
    """A file that errors call by its name alone: where the server keeps it says nothing to the visitor."""

    def __init__(self, path: str) -> None:
        self._path, self.name = path, Path(path).name

    def read(self) -> bytes:
        try:
            return Path(self._path).read_bytes()
        except OSError as error:
            raise OSError(error.strerror) from error  # without the path


def _as_seen(path: str) -> Any:
    """What the place shows of the file at `path`: the picture that the model sees. ValueError if it is none."""
    seen = gemma_tpu.load_image(_Upload(path))
    # The file itself is shown where it can be: the place stays as it is.
    return gr.skip() if _shown_alike(path) else seen


def _shown_alike(path: str) -> bool:
    """Whether every browser shows the file as `gemma_tpu.load_image` reads it."""
    try:
        with Image.open(path) as image:
            jpeg = image.format in ("JPEG", "MPO")  # MPO: a JPEG, and others after it that no browser shows
            upright = jpeg or image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            still = jpeg or not getattr(image, "is_animated", False)
            shown = image.mode in _SHOWN_MODES and (jpeg or image.format in _SHOWN_BY_BROWSERS)
            return shown and upright and still and _is_opaque(image)
    except UnidentifiedImageError:
        return False  # HEIC, which Pillow does not read by itself


def _is_opaque(image: Image.Image) -> bool:
    """Pictures of screens often have an alpha channel that says nothing."""
    return not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema() == (255, 255)


def _refusal(error: str, lang: str) -> str:
    return f'<p class="notice" role="alert">{escape(text("bad_picture", lang, error=error))}</p>'
