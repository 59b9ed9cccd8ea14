"""The place where a picture is dropped."""

from __future__ import annotations

import asyncio
import tempfile
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

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
    return payload.path if payload else None


async def check(path: str | None, lang: str) -> tuple[Any, str]:
    """What the place and the notice should hold once `path` has been uploaded."""
    if path is None:
        return gr.skip(), ""  # the place stays as it is
    try:
        return await asyncio.to_thread(_showable, path), ""
    except ValueError as error:
        # The library names the file by its path on the server, which says nothing to the visitor.
        message = explain(error).replace(path, Path(path).name)
        return None, f'<p class="notice" role="alert">{escape(text("bad_picture", lang, error=message))}</p>'


def _showable(path: str) -> Any:
    """`path` if a browser can show it, else a PNG of it. ValueError if it is no picture."""
    image = gemma_tpu.load_image(path)
    if Path(path).suffix.lower() in _SHOWN_BY_BROWSERS:
        return gr.skip()  # the place stays as it is: the file itself is shown
    with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
        image.save(file, "PNG")
    return file.name
