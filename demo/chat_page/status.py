"""What the Chat page knows of the model and the machine."""

from __future__ import annotations

import dataclasses
from typing import Any

from demo.facts import Facts, header_texts, unsupported_text
from demo.texts import LANGUAGES
from gemma_tpu import Loader, Model

_DEFAULTS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p")


def status(loader: Loader) -> dict[str, Any]:
    """The loader's phase with texts by language, and the facts of the model, None until it is loaded."""
    model, now = loader.model, loader.status
    facts = Facts.of(model) if model else None
    return {
        "phase": now.phase,
        "percent": 100 * now.fraction,
        "texts": {lang: dataclasses.asdict(header_texts(loader.name, facts, now, lang)) for lang in LANGUAGES},
        "checkpoint": loader.name,
        "model": model and facts and _of_model(model, facts),
    }


def _of_model(model: Model, facts: Facts) -> dict[str, Any]:
    deployment, vision, occupancy = model.deployment, model.config.vision, model.engine.occupancy()
    return {
        "context": deployment.context,
        "rows": deployment.rows,
        "defaults": {name: getattr(model.defaults, name) for name in _DEFAULTS},
        "vision": vision and {"side": vision.image_size, "soft": vision.num_soft_tokens},
        "unsupported": {lang: unsupported_text(model, lang) for lang in LANGUAGES},
        "devices": facts.devices,
        "mesh": [facts.data, facts.model],
        "dtype": facts.dtype,
        "parameters": facts.parameters,
        "memory": {name: size for name, size in dataclasses.asdict(deployment.memory).items() if size},
        "occupancy": {name: int(value) for name, value in occupancy._asdict().items()},
        "page": deployment.page,
    }
