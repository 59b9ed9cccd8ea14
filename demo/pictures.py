"""The place where a picture is dropped."""

from __future__ import annotations

import asyncio
import tempfile
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder
from PIL.Image import Image

import gemma_tpu
from demo.state import explain
from demo.texts import text

_SHOWN_BY_BROWSERS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


def picture(**options: Any) -> gr.Image:
    """An image that hands over the file as it was uploaded, whatever is in it: the library decides if it is a picture.

    A subclass would say the same, but Gradio writes a file of type stubs beside the source of each.
    """
    image = gr.Image(type="filepath", buttons=[], show_label=False, **options)
    image.preprocess = _path  # type: ignore[method-assign]  # of this instance alone, on purpose: see above
    return image


def _path(payload: ImageData | None) -> str | None:
    """Where the file is. Gradio looks that it was uploaded only if the request says that this is a file."""
    if payload is None or payload.path is None:
        return None
    if not Path(payload.path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error("this picture has not been uploaded here", print_exception=False)
    return payload.path


async def check(path: str | None, lang: str) -> tuple[Any, str]:
    """What the place and the notice should hold once `path` has been uploaded."""
    if path is None:
        return gr.skip(), ""  # the place stays as it is
    try:
        return await asyncio.to_thread(_showable, path), ""
    except ValueError as error:
        # The library names the file by its path on the server, which says nothing to the visitor.
        return None, _refusal(explain(error).replace(path, Path(path).name), lang)


async def fetch(address: str, lang: str) -> tuple[Any, str]:
    """What the place and the notice should hold once the picture at an http(s) `address` has been asked for."""
    address = address.strip()
    if not address.lower().startswith(("http://", "https://")):
        return gr.skip(), _refusal(text("no_address", lang), lang)  # else it would name a file of this machine
    try:
        image = await asyncio.to_thread(gemma_tpu.load_image, address, allow_urls=True)
    except ValueError as error:
        return gr.skip(), _refusal(explain(error), lang)  # the place stays as it is
    return await asyncio.to_thread(_as_png, image), ""


def _showable(path: str) -> Any:
    """`path` if a browser can show it, else a PNG of it. ValueError if it is no picture."""
    image = gemma_tpu.load_image(path)
    # The file itself is shown where it can be: the place stays as it is.
    return gr.skip() if Path(path).suffix.lower() in _SHOWN_BY_BROWSERS else _as_png(image)


def _as_png(image: Image) -> str:
    with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
        image.save(file, "PNG")
    return file.name


def _refusal(error: str, lang: str) -> str:
    return f'<p class="notice" role="alert">{escape(text("bad_picture", lang, error=error))}</p>'
