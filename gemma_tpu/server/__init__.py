"""An OpenAI-compatible HTTP server on one model: `gemma-tpu serve`, or `build_app` for an app of one's own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_tpu.server.app import build_app as build_app
    from gemma_tpu.server.run import Server as Server
    from gemma_tpu.server.run import closing as closing
    from gemma_tpu.server.run import listen as listen
    from gemma_tpu.server.settings import Settings as Settings
    from gemma_tpu.server.settings import model_name as model_name

# Imported when first used, as in gemma_tpu: settings and a port are checked before anything that takes seconds.
_HOME = {
    "build_app": "app",
    "closing": "run",
    "listen": "run",
    "model_name": "settings",
    "Server": "run",
    "Settings": "settings",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
