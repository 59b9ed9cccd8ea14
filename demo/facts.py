"""The content of the page header: facts of the model and loading progress."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from demo.texts import TEXTS, text
from gemma_tpu import LoadStatus

if TYPE_CHECKING:
    from gemma_tpu import Model

_UNKNOWN = "–"


@dataclasses.dataclass(frozen=True)
class Facts:
    """A loaded model: its mesh is `data` × `model`, `parameters` its number of parameters."""

    devices: str
    data: int
    model: int
    dtype: str
    parameters: int
    vision: bool

    @classmethod
    def of(cls, model: Model) -> Facts:
        devices = model.mesh.devices
        kind, platform = devices.flat[0].device_kind, devices.flat[0].platform.upper()
        data = model.mesh.shape["data"]
        return cls(
            devices=f"{kind if platform.lower() in kind.lower() else f'{platform} {kind}'} × {devices.size}",
            data=data,
            model=devices.size // data,
            dtype=str(model.dtype),
            parameters=sum(math.prod(weight.shape) for weight in model.params.values()),
            vision=model.config.vision is not None,
        )


@dataclasses.dataclass(frozen=True)
class HeaderTexts:
    """The header in one language. `facts` maps keys of `texts` to (label, value).

    `step` and `percent` describe loading in progress; `error` a failure.
    """

    title: str
    tagline: str
    facts: dict[str, tuple[str, str]]
    phase: str
    state: str
    aside: str
    step: str
    percent: float
    error: str
    button: str
    clickable: bool


def header_texts(name: str, facts: Facts | None, status: LoadStatus, lang: str) -> HeaderTexts:
    """The header for the checkpoint `name`; `facts` is None until it is loaded."""
    button, clickable = load_button(status, lang)
    return HeaderTexts(
        title=Path(name.rstrip("/")).name,
        tagline=text("tagline", lang) if facts is None else _size(facts, lang),
        facts={key: (text(key, lang), value) for key, value in _values(name, facts, lang).items()},
        phase=status.phase,
        state=text(status.phase, lang),
        aside=text("loaded_in", lang, seconds=f"{status.seconds:.1f}") if status.phase == "ready" else "",
        step=_step(status, lang),
        percent=100 * status.fraction,
        error=f"{text('failed', lang)}: {status.error}" if status.phase == "failed" else "",
        button=button,
        clickable=clickable,
    )


def load_button(status: LoadStatus, lang: str) -> tuple[str, bool]:
    """The load button's text, and whether it can be pressed."""
    if status.busy:
        return text("loading", lang, percent=f"{100 * status.fraction:.0f}"), False
    label = text({"idle": "load", "failed": "retry", "ready": "loaded"}[status.phase], lang)
    return label, status.phase in ("idle", "failed")


def not_ready_text(status: LoadStatus, lang: str) -> str:
    """Why the model cannot answer before it is loaded."""
    return text({"idle": "not_loaded", "failed": "load_failed"}.get(status.phase, "still_loading"), lang)


def unsupported_text(model: Model, lang: str) -> str:
    """Why the page cannot use a relative of Gemma 3 with its own prompt format; "" if it can."""
    key = f"format_{model.format.name}"
    return text(key, lang) if key in TEXTS else ""


def _values(name: str, facts: Facts | None, lang: str) -> dict[str, str]:
    if facts is None:
        return {"checkpoint": name, **dict.fromkeys(("devices", "mesh", "dtype"), _UNKNOWN)}
    mesh = text("mesh_value", lang, data=facts.data, model=facts.model)
    return {"checkpoint": name, "devices": facts.devices, "mesh": mesh, "dtype": facts.dtype}


def _step(status: LoadStatus, lang: str) -> str:
    if not status.busy:
        return ""
    amount = _bytes if status.phase == "reading" else str
    return text(f"step_{status.phase}", lang, done=amount(status.done), total=amount(status.total), step=status.step)


def _size(facts: Facts, lang: str) -> str:
    key = "text_and_images" if facts.vision else "text_only"
    return f"Gemma 3 · {text(key, lang, parameters=_abbreviate(facts.parameters))}"


def _abbreviate(count: int) -> str:
    """7,900,000 → 7.9M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
