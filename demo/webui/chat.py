"""The Chat page as one document: its own scripts and style sheet, with a recording of what they ask.

The modules keep their text: an import map has each under a name, and imports of a neighbour (`./dom.js`) become imports
of that name. What no recorded answer needs stays out: pdf.js and Temml.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from demo.chat_page.app import page_data
from demo.tab import EXAMPLES, examples
from demo.texts import LANGUAGES, TEXTS

HERE = Path(__file__).parent
CHAT_RECORDING = HERE / "chat_recording.json"
_STATIC = HERE.parent / "chat_page" / "static"
_LIBRARIES = ("vendor/marked.esm.js", "vendor/purify.es.mjs")
_IMPORT = re.compile(r"""(\bfrom\s*|^import\s*)"\./([^"]+)";""", re.MULTILINE)
_AS_IT_IS = " !\"$&'()*+,-./:;<=>?@[\\]^`{|}~"  # in a data URL; a line break is not
_START = 'import "chat-page/main.js";'
_DEMO = "http://127.0.0.1:7860/chat/"  # what *Reproduce* and links lead to


def chat_document(recorded: dict[str, Any]) -> tuple[str, list[str]]:
    """The document for an <iframe srcdoc>, and the scripts in it, which the page around has to allow."""
    modules = sorted([path.name for path in _STATIC.glob("*.js")] + list(_LIBRARIES))
    imports = {f"chat-page/{name}": _module((_STATIC / name).read_text()) for name in modules}
    replay = (HERE / "chat_key.js").read_text() + (HERE / "chat_replay.js").read_text()
    scripts = [json.dumps({"imports": imports}), replay]
    missing = {code: TEXTS["unrecorded_chat"][i] for i, code in enumerate(LANGUAGES)}
    data = {
        "data": {**page_data(), "pictures": example_pictures(), "address": _DEMO},
        "recorded": {**recorded, "status": _marked(recorded["status"]), "missing": missing},
    }
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1, interactive-widget=resizes-content">',
        f"<style>\n{(_STATIC / 'chat.css').read_text()}</style>",
        *(f'<script id="{name}" type="application/json">{as_json(value)}</script>' for name, value in data.items()),
        f'<script type="importmap">{scripts[0]}</script>',
        f"<script>{replay}</script>",
        f'<script type="module">{_START}</script>',
        "</head>\n<body></body>\n</html>",
    ]
    return "\n".join(parts), [*scripts, _START]


def example_pictures() -> dict[str, str]:
    """The examples' pictures by name, as data URLs."""
    names = sorted({file for example in examples("image") for file in example["pictures"]})
    return {name: data_url(EXAMPLES / name) for name in names}


def data_url(png: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}"


def _module(text: str) -> str:
    text = _IMPORT.sub(lambda found: f'{found[1]}"chat-page/{found[2]}";', text)
    return f"data:text/javascript;charset=utf-8,{quote(text, safe=_AS_IT_IS)}"


def as_json(value: Any) -> str:
    """For a <script>, which no text in it can end."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _marked(status: dict[str, Any]) -> dict[str, Any]:
    """With "Recording" as the state of the model."""
    texts = {
        code: {**status["texts"][code], "state": TEXTS["recording"][i], "aside": ""} for i, code in enumerate(LANGUAGES)
    }
    return {**status, "texts": texts}
