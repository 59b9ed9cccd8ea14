"""The top of the page: what model this is, on what it runs, and how far loading is."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from demo.facts import Facts, Head, head, load_button
from demo.state import Loader, Status
from demo.texts import text

LOGO = (Path(__file__).parent / "static" / "logo.svg").read_text()
_POLL_BUSY, _POLL_IDLE = 0.4, 1.5  # seconds


def header(loader: Loader, lang: str) -> str:
    """HTML of the header."""
    model, status = loader.model, loader.status
    said = head(loader.name, Facts.of(model) if model else None, status, lang)
    hints = {"dtype": model.dtype_reason if model else ""}
    items = "".join(
        f'<div class="fact"><dt>{escape(label)}</dt>'
        f'<dd data-fact="{key}" title="{escape(hints.get(key, ""))}">{escape(value)}</dd></div>'
        for key, (label, value) in said.facts.items()
    )
    state = escape(said.state)
    if said.aside:
        state += f' <span class="aside">{escape(said.aside)}</span>'
    items += (
        f'<div class="fact"><dt></dt><dd class="state" data-phase="{said.phase}" role="status">{state}</dd>'
        f'<dd class="away" role="status">{escape(text("lost", lang))}</dd></div>'
    )
    title = f"<h1>{escape(said.title)}</h1><p>{escape(said.tagline)}</p>"
    return (
        f'<header class="head"><div class="brand">{LOGO}<div>{title}</div></div>'
        f'<dl class="facts">{items}</dl>{_progress(said)}</header>'
    )


def controls(status: Status, lang: str) -> tuple[dict[str, Any], gr.Timer]:
    """The load button, and how often the page should look again."""
    label, clickable = load_button(status, lang)
    button = gr.update(value=label, interactive=clickable, variant="primary" if clickable else "secondary")
    return button, gr.Timer(_POLL_BUSY if status.busy else _POLL_IDLE, active=status.phase != "ready")


def _progress(said: Head) -> str:
    if said.error:
        return f'<p class="notice" role="alert">{escape(said.error)}</p>'
    if not said.step:
        return ""
    return (
        f'<div class="progress"><p>{escape(said.step)}</p><div role="progressbar" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{said.percent:.0f}" aria-label="{escape(said.step)}">'
        f'<i style="width: {said.percent:.1f}%"></i></div></div>'
    )
