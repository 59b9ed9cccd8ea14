"""The page header: the model, its devices, and loading progress."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from demo.facts import Facts, HeaderTexts, header_texts, load_button
from demo.page import notice
from demo.texts import text
from gemma_tpu import Loader, LoadStatus

LOGO = (Path(__file__).parent / "static" / "logo.svg").read_text()
_POLL_BUSY, _POLL_IDLE = 0.4, 1.5  # seconds


def header(loader: Loader, lang: str) -> str:
    """HTML of the header."""
    model, status = loader.model, loader.status
    texts = header_texts(loader.name, Facts.of(model) if model else None, status, lang)
    hints = {"dtype": model.dtype_reason if model else ""}
    items = "".join(
        f'<div class="fact"><dt>{escape(label)}</dt>'
        f'<dd data-fact="{key}" title="{escape(hints.get(key, ""))}">{escape(value)}</dd></div>'
        for key, (label, value) in texts.facts.items()
    )
    state = escape(texts.state)
    if texts.aside:
        state += f' <span class="aside">{escape(texts.aside)}</span>'
    items += (
        f'<div class="fact"><dt></dt><dd class="state" data-phase="{texts.phase}" role="status">{state}</dd>'
        f'<dd class="away" role="status">{escape(text("lost", lang))}</dd></div>'
    )
    title = f"<h1>{escape(texts.title)}</h1><p>{escape(texts.tagline)}</p>"
    return (
        f'<header class="head"><div class="brand">{LOGO}<div>{title}</div></div>'
        f'<dl class="facts">{items}</dl>{_progress(texts)}</header>'
    )


def load_controls(status: LoadStatus, lang: str) -> tuple[dict[str, Any], gr.Timer]:
    """Updates of the load button and of the polling timer."""
    label, clickable = load_button(status, lang)
    button = gr.update(value=label, interactive=clickable, variant="primary" if clickable else "secondary")
    return button, gr.Timer(_POLL_BUSY if status.busy else _POLL_IDLE, active=status.phase != "ready")


def _progress(texts: HeaderTexts) -> str:
    if texts.error:
        return notice(texts.error)
    if not texts.step:
        return ""
    return (
        f'<div class="progress"><p>{escape(texts.step)}</p><div role="progressbar" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{texts.percent:.0f}" aria-label="{escape(texts.step)}">'
        f'<i style="width: {texts.percent:.1f}%"></i></div></div>'
    )
