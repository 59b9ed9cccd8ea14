"""The settings panel, and its values as arguments of `Model.stream`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from demo.page import Page

if TYPE_CHECKING:
    from gemma_tpu import SamplingParams

MAX_TOKENS = 8192
# The defaults of gemma_tpu.SamplingParams, which is not imported because it would import jax.
DEFAULTS = {"max_new_tokens": 1024, "temperature": 0.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0}


def settings_panel(page: Page, name: str) -> list[Any]:
    """The controls, in the order of the arguments of `sampling_params`. `name` is the prefix of their ids."""

    def slider(key: str, texts: dict[str, str], low: float, high: float, step: float) -> gr.Slider:
        return page.add(
            gr.Slider, texts=texts, minimum=low, maximum=high, step=step, value=DEFAULTS[key], elem_id=f"{name}-{key}"
        )

    with page.add(gr.Accordion, texts={"label": "settings"}, open=False, elem_classes="settings"):
        with gr.Row():
            max_tokens = slider("max_new_tokens", {"label": "max_tokens"}, 1, MAX_TOKENS, 1)
            temperature = slider("temperature", {"label": "temperature", "info": "temperature_info"}, 0, 2, 0.05)
        with gr.Row():
            top_k = slider("top_k", {"label": "top_k", "info": "top_k_info"}, 0, 256, 1)
            top_p = slider("top_p", {"label": "top_p"}, 0.01, 1, 0.01)
            min_p = slider("min_p", {"label": "min_p", "info": "min_p_info"}, 0, 1, 0.01)
        with gr.Row(elem_classes="seed"):
            draw = page.add(gr.Checkbox, texts={"label": "random_seed"}, value=True, elem_id=f"{name}-random-seed")
            seed = page.add(
                gr.Number, texts={"label": "seed"}, value=0, precision=0, interactive=False, elem_id=f"{name}-seed"
            )
        with gr.Row(elem_classes="seed"):
            drop = page.add(gr.Checkbox, texts={"label": "drop_oldest"}, value=False, elem_id=f"{name}-drop-oldest")
            pan_and_scan = page.add(
                gr.Checkbox,
                texts={"label": "pan_and_scan"},
                value=False,
                visible=name == "image",
                elem_id=f"{name}-pan-and-scan",
            )
    draw.change(lambda on: gr.update(interactive=not on), draw, seed, queue=False, api_visibility="private")
    return [max_tokens, temperature, top_k, top_p, min_p, draw, seed, drop, pan_and_scan]


def checkpoint_defaults(sliders: Sequence[gr.Slider], values: Sequence[float], defaults: SamplingParams) -> list[Any]:
    """Updates that set sliders (of `DEFAULTS`, in order) to the checkpoint's defaults, except where changed."""
    updates = []
    for key, slider, value in zip(DEFAULTS, sliders, values, strict=True):
        default = min(max(getattr(defaults, key), slider.minimum), slider.maximum)
        updates.append(default if value == DEFAULTS[key] != default else gr.skip())
    return updates


def params_of_controls(*values: Any) -> dict[str, Any]:
    """`sampling_params` of the controls' values, with the default for an empty number."""
    numbers = [default if value is None else value for value, default in zip(values, DEFAULTS.values(), strict=False)]
    return sampling_params(*numbers, *values[len(DEFAULTS) :])


def sampling_params(
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
    """Arguments of `Model.stream`. A random seed is drawn here, so that the page can show it."""
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
