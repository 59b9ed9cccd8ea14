"""python -m demo.webui.build: builds static/webui_demo.html, a single file, from this folder's sources and a recording.

The page has the style sheet, colours and texts of the real one; its script concatenates `_SCRIPTS` in order. The build
is deterministic.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from demo.chat import statistics
from demo.facts import Facts, header_texts
from demo.header import LOGO
from demo.tab import examples
from demo.texts import LANGUAGES, TEXTS
from demo.theme import theme
from demo.webui.chat import CHAT_RECORDING, as_json, chat_document, data_url, example_pictures
from demo.webui.settings import TABS, controls
from gemma_tpu import Completion, LoadStatus, Timings, Usage

HERE = Path(__file__).parent
STATIC = HERE.parent / "static"
PAGE = STATIC / "webui_demo.html"
RECORDING = HERE / "recording.json"
_SCRIPTS = (
    "words",
    "dom",
    "markdown",
    "recorded",
    "live",
    "pictures",
    "settings",
    "conversation",
    "turn",
    "tab",
    "chat",
    "header",
    "main",
)


def main() -> int:
    print(write_page())
    return 0


def write_page() -> Path:
    PAGE.write_text(build_page(json.loads(RECORDING.read_text()), json.loads(CHAT_RECORDING.read_text())))
    return PAGE


def build_page(recording: dict[str, Any], chat_recording: dict[str, Any]) -> str:
    """The page that replays `recording` (see demo.webui.record) and `chat_recording` (see demo.webui.record_chat)."""
    styles = (STATIC / "style.css").read_text() + (HERE / "page.css").read_text()
    script = '"use strict";\n' + "".join((HERE / f"{name}.js").read_text() for name in _SCRIPTS)
    chat, chat_scripts = chat_document(chat_recording)
    parts = {
        "style": _colours(styles) + styles,
        "script": script,
        "script_hashes": " ".join(_hash(one) for one in (script, *chat_scripts)),  # a frame has its page's policy
        "data": as_json({**_data(recording), "chat": chat}),
        "icon": data_url(STATIC / "favicon.png"),
        "logo": LOGO,
        "needs_script": " ".join(TEXTS["needs_script"]),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], (HERE / "page.html").read_text())


def _data(recording: dict[str, Any]) -> dict[str, Any]:
    """The data that the scripts read."""
    runs = {tab: [_run(run) for run in recording["runs"][tab]] for tab in TABS}
    return {
        "languages": LANGUAGES,
        "texts": TEXTS,
        "settings": {tab: _settings(tab, recording["settings"]) for tab in TABS},
        "examples": {tab: examples(tab) for tab in TABS},
        "pictures": example_pictures(),
        "recording": {
            **{key: recording[key] for key in ("checkpoint", "date", "settings")},
            "idle": _headers(recording, LoadStatus()),
            "loading": [
                [seconds, _headers(recording, LoadStatus(**status))] for seconds, status in recording["loading"]
            ],
            "runs": runs,
        },
    }


def _settings(tab: str, recorded: dict[str, Any]) -> list[dict[str, Any]]:
    """The controls of `tab` with their recorded values."""
    return [{**control, "value": recorded.get(control["name"], control["value"])} for control in controls(tab)]


def _headers(recording: dict[str, Any], status: LoadStatus) -> dict[str, Any]:
    facts = Facts(**recording["facts"]) if status.phase == "ready" else None
    return {lang: dataclasses.asdict(header_texts(recording["checkpoint"], facts, status, lang)) for lang in LANGUAGES}


def _run(run: dict[str, Any]) -> dict[str, Any]:
    """A run with its line of statistics by language."""
    completion = Completion(
        text="".join(text for *_, text in run["pieces"]),
        tokens=run["tokens"],
        finish_reason=run["finish_reason"],
        usage=Usage(**run["usage"]),
        timings=Timings(**run["timings"]),
    )
    return {
        **{key: run[key] for key in ("question", "pictures", "pieces")},
        "statistics": {lang: statistics(completion, None, 0, lang) for lang in LANGUAGES},
        "next": [_run(follow_up) for follow_up in run["next"]],
    }


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _colours(styles: str) -> str:
    """The theme's colours that `styles` use but do not define, as CSS variables, light and dark."""
    used, defined = set(re.findall(r"var\(--([\w-]+)\)", styles)), set(re.findall(r"--([\w-]+):", styles))
    colours, names = theme(), sorted(used - defined)

    def variables(suffix: str) -> str:
        lines = []
        for name in names:
            key = name.replace("-", "_")
            value = getattr(colours, key + suffix, None) or getattr(colours, key)
            while value.startswith("*"):  # a reference to another variable
                key = value[1:]
                value = getattr(colours, key + suffix, None) or getattr(colours, key)
            lines.append(f"  --{name}: {value};\n")
        return "".join(lines)

    return f":root {{\n{variables('')}}}\n.dark {{\n{variables('_dark')}}}\n"


if __name__ == "__main__":
    sys.exit(main())
