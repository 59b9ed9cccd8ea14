"""The settings of an answer, and what they are called in `gemma_tpu.SamplingParams`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from demo.page import Page

if TYPE_CHECKING:
    from gemma_tpu import SamplingParams

MAX_TOKENS = 8192
# As in gemma_tpu.SamplingParams, which is not imported here because that would make the page wait for jax.
DEFAULTS = {"max_new_tokens": 1024, "temperature": 0.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0}


def settings_panel(page: Page, name: str) -> list[Any]:
    """The controls, in the order in which `options` takes their values. `name` begins their ids."""

    def slider(key: str, says: dict[str, str], low: float, high: float, step: float) -> gr.Slider:
        return page.add(
            gr.Slider, says=says, minimum=low, maximum=high, step=step, value=DEFAULTS[key], elem_id=f"{name}-{key}"
        )

    with page.add(gr.Accordion, says={"label": "settings"}, open=False, elem_classes="settings"):
        with gr.Row():
            max_tokens = slider("max_new_tokens", {"label": "max_tokens"}, 1, MAX_TOKENS, 1)
            temperature = slider("temperature", {"label": "temperature", "info": "temperature_info"}, 0, 2, 0.05)
        with gr.Row():
            top_k = slider("top_k", {"label": "top_k", "info": "top_k_info"}, 0, 256, 1)
            top_p = slider("top_p", {"label": "top_p"}, 0.01, 1, 0.01)
            min_p = slider("min_p", {"label": "min_p", "info": "min_p_info"}, 0, 1, 0.01)
        with gr.Row(elem_classes="seed"):
            draw = page.add(gr.Checkbox, says={"label": "random_seed"}, value=True, elem_id=f"{name}-random-seed")
            seed = page.add(
                gr.Number, says={"label": "seed"}, value=0, precision=0, interactive=False, elem_id=f"{name}-seed"
            )
        with gr.Row(elem_classes="seed"):
            drop = page.add(gr.Checkbox, says={"label": "drop_oldest"}, value=False, elem_id=f"{name}-drop-oldest")
            pan_and_scan = page.add(
                gr.Checkbox,
                says={"label": "pan_and_scan"},
                value=False,
                visible=name == "image",
                elem_id=f"{name}-pan-and-scan",
            )
    draw.change(lambda on: gr.update(interactive=not on), draw, seed, queue=False, api_visibility="private")
    return [max_tokens, temperature, top_k, top_p, min_p, draw, seed, drop, pan_and_scan]


def own_defaults(sliders: Sequence[gr.Slider], shown: Sequence[float], own: SamplingParams) -> list[Any]:
    """What the sliders (of `DEFAULTS`, in order) show next: a checkpoint's defaults where a visitor has set nothing."""
    updates = []
    for key, slider, value in zip(DEFAULTS, sliders, shown, strict=True):
        default = min(max(getattr(own, key), slider.minimum), slider.maximum)
        # gr.skip(): what a visitor has set, or is right already, stays as it is.
        updates.append(default if value == DEFAULTS[key] != default else gr.skip())
    return updates


def chosen(*values: Any) -> dict[str, Any]:
    """`options` of what the controls hold, where a number that has been taken away is the default."""
    numbers = [default if value is None else value for value, default in zip(values, DEFAULTS.values(), strict=False)]
    return options(*numbers, *values[len(DEFAULTS) :])


def options(
    max_tokens: float,
    temperature: float,
    top_k: float,
    top_p: float,
    min_p: float,
    draw: bool,
    seed: float | None,
    drop_oldest: bool,
    pan_and_scan: bool,
) -> dict[str, Any]:
    """SamplingParams for `Model.stream`; a drawn seed is drawn here, so that it can be shown and used again."""
    return {
        "max_new_tokens": int(max_tokens),
        "temperature": temperature,
        "top_k": int(top_k),
        "top_p": top_p,
        "min_p": min_p,
        "seed": secrets.randbits(32) if draw or seed is None else int(seed),
        "drop_oldest": drop_oldest,
        "pan_and_scan": pan_and_scan,
    }
