"""The top of the page: what model this is, on what it runs, and how far loading is."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demo.state import Loader, Status
from demo.texts import text

if TYPE_CHECKING:
    from gemma_tpu import Model

_LOGO = (Path(__file__).parent / "static" / "logo.svg").read_text()
_UNKNOWN = "–"
_POLL_BUSY, _POLL_IDLE = 0.4, 1.5  # seconds


def header(loader: Loader, lang: str) -> str:
    """HTML of the header."""
    model, status = loader.model, loader.status
    name = Path(loader.name.rstrip("/")).name
    facts = {"checkpoint": loader.name, **_facts(model, lang)}
    tagline = text("tagline", lang) if model is None else _size(model, lang)
    hints = {"dtype": model.dtype_reason if model else ""}
    items = "".join(
        f'<div class="fact"><dt>{escape(text(key, lang))}</dt>'
        f'<dd data-fact="{key}" title="{escape(hints.get(key, ""))}">{escape(value)}</dd></div>'
        for key, value in facts.items()
    )
    state = escape(text(status.phase, lang))
    if status.phase == "ready":
        state += f' <span class="aside">{escape(text("loaded_in", lang, seconds=f"{status.seconds:.1f}"))}</span>'
    items += (
        f'<div class="fact"><dt></dt><dd class="state" data-phase="{status.phase}" role="status">{state}</dd></div>'
    )
    title = f"<h1>{escape(name)}</h1><p>{escape(tagline)}</p>"
    return (
        f'<header class="head"><div class="brand">{_LOGO}<div>{title}</div></div>'
        f'<dl class="facts">{items}</dl>{_progress(status, lang)}</header>'
    )


def controls(status: Status, lang: str) -> tuple[dict[str, Any], gr.Timer]:
    """The load button, and how often the page should look again."""
    if status.busy:
        label = text("loading", lang, percent=f"{100 * status.fraction:.0f}")
    else:
        label = text({"idle": "load", "failed": "retry", "ready": "loaded"}[status.phase], lang)
    clickable = status.phase in ("idle", "failed")
    button = gr.update(value=label, interactive=clickable, variant="primary" if clickable else "secondary")
    return button, gr.Timer(_POLL_BUSY if status.busy else _POLL_IDLE, active=status.phase != "ready")


def _progress(status: Status, lang: str) -> str:
    if status.phase == "failed":
        return f'<p class="notice" role="alert">{escape(text("failed", lang))}: {escape(status.error)}</p>'
    if not status.busy:
        return ""
    amount = _bytes if status.phase == "reading" else str
    what = text(f"step_{status.phase}", lang, done=amount(status.done), total=amount(status.total), step=status.step)
    percent = 100 * status.fraction
    return (
        f'<div class="progress"><p>{escape(what)}</p><div role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent:.0f}" aria-label="{escape(what)}"><i style="width: {percent:.1f}%"></i></div></div>'
    )


def _facts(model: Model | None, lang: str) -> dict[str, str]:
    if model is None:
        return dict.fromkeys(("devices", "mesh", "dtype"), _UNKNOWN)
    devices = model.mesh.devices
    kind = devices.flat[0].device_kind
    platform = devices.flat[0].platform.upper()
    data = model.mesh.shape["data"]
    return {
        "devices": f"{kind if platform.lower() in kind.lower() else f'{platform} {kind}'} × {devices.size}",
        "mesh": text("mesh_value", lang, data=data, model=devices.size // data),
        "dtype": str(model.dtype),
    }


def _size(model: Model, lang: str) -> str:
    count = sum(array.size for array in model.params.values())
    key = "text_only" if model.config.vision is None else "text_and_images"
    return f"Gemma 3 · {text(key, lang, parameters=_short(count))}"


def _short(count: int) -> str:
    """7,900,000 → 7.9 M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
