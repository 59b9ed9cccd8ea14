"""The settings of the real page as data: read off its own panel, so that this page always has the same."""

from __future__ import annotations

import inspect
from typing import Any

import gradio as gr

from demo.page import Page
from demo.settings import options, settings_panel

TABS = ("image", "text")
_KINDS: dict[type, str] = {gr.Slider: "slider", gr.Checkbox: "checkbox", gr.Number: "number"}


def controls(tab: str) -> list[dict[str, Any]]:
    """Of tab "image" or "text", each with its `name` (an argument of `demo.settings.options`), texts and default."""
    page = Page("en")
    with gr.Blocks():
        panel = settings_panel(page, tab)
    says = {id(block): keys for block, keys in page.translated}
    return [
        {
            "name": name,
            "id": block.elem_id,
            "kind": _KINDS[type(block)],
            "says": says[id(block)],
            "value": block.value,
            "visible": block.visible,
            **{key: getattr(block, key, None) for key in ("minimum", "maximum", "step")},
        }
        for name, block in zip(inspect.signature(options).parameters, panel, strict=True)
    ]


def defaults() -> dict[str, Any]:
    """The values of the controls, by name; those of both tabs are the same."""
    return {control["name"]: control["value"] for control in controls(TABS[0])}
