"""The settings of the real page as data, read from its settings panel."""

from __future__ import annotations

import inspect
from typing import Any

import gradio as gr

from demo.page import Page
from demo.settings import sampling_params, settings_panel

TABS = ("image", "text")
_KINDS: dict[type, str] = {gr.Slider: "slider", gr.Checkbox: "checkbox", gr.Number: "number"}


def controls(tab: str) -> list[dict[str, Any]]:
    """The controls of a tab: `name` (an argument of `demo.settings.sampling_params`), texts, default and range."""
    page = Page("en")
    with gr.Blocks():
        panel = settings_panel(page, tab)
    texts = {id(block): keys for block, keys in page.translated}
    return [
        {
            "name": name,
            "id": block.elem_id,
            "kind": _KINDS[type(block)],
            "texts": texts[id(block)],
            "value": block.value,
            "visible": block.visible,
            **{key: getattr(block, key, None) for key in ("minimum", "maximum", "step")},
        }
        for name, block in zip(inspect.signature(sampling_params).parameters, panel, strict=True)
    ]


def defaults() -> dict[str, Any]:
    """The default values of the controls by name, the same for both tabs."""
    return {control["name"]: control["value"] for control in controls(TABS[0])}
