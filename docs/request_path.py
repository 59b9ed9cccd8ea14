"""Draws the way of a request through the package: python -m docs.request_path, in the repository's root.

A question about a picture is asked of the demo checkpoint, and every module of the package that is entered on the way
is written down, in order, with its own first sentence. The device programs are compiled meanwhile, so what they are
made of is entered too. The result is docs/images/request_path.svg.
"""

from __future__ import annotations

import html
import importlib
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "request_path.svg"

LANES = ("caller's thread", "engine's thread", "inside the device programs, when they are traced")
_PACKAGE = f"{ROOT / 'gemma_tpu'}/"
_PROGRAMS = "gemma_tpu.engine.programs"
_WIDTH, _GAP, _LINE, _MARGIN, _CHARACTERS = 372, 28, 15, 10, 56  # pixels, and characters to a line of text


def record() -> list[list[tuple[str, str]]]:
    """(module, function first called) in the order of first entry, for each of LANES."""
    found: list[dict[str, str]] = [{} for _ in LANES]
    caller = threading.get_ident()
    recording = threading.Event()

    def called(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not recording.is_set() or not file.startswith(_PACKAGE):
            return
        name = frame.f_code.co_qualname
        if "<" in name.replace("<locals>", "") or "__" in name:
            return
        lane = 0 if threading.get_ident() == caller else 1 + _is_traced(frame.f_back)
        found[lane].setdefault(_module(file), name.replace(".<locals>", ""))

    import gemma_tpu

    threading.setprofile(called)  # for the engine's thread, which `load` starts
    with gemma_tpu.load(ROOT / "checkpoints" / "gemma3-demo", progress=False) as model:
        recording.set()
        sys.setprofile(called)
        try:
            model.generate("What is in the picture?", images=ROOT / "demo" / "examples" / "shapes.png")
        finally:
            recording.clear()
            sys.setprofile(None)
            threading.setprofile(None)
    return [list(lane.items()) for lane in found]


def _module(file: str) -> str:
    return ".".join(Path(file).relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _is_traced(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == _PROGRAMS and frame.f_back and _is_jax(frame.f_back):
            return True
        frame = frame.f_back
    return False


def _is_jax(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("jax.")


def draw(lanes: list[list[tuple[str, str]]]) -> str:
    """An SVG with a column for each lane, in the order of the calls from top to bottom."""
    boxes, bottom = [], 0
    for column, (title, lane) in enumerate(zip(LANES, lanes, strict=True)):
        x, y = column * (_WIDTH + _GAP) + 1, 24
        boxes.append(f'<text x="{x}" y="14" class="title">{html.escape(title)}</text>')
        for module, function in lane:
            lines = textwrap.wrap(_sentence(module), _CHARACTERS)
            height = (len(lines) + 1) * _LINE + _MARGIN
            boxes.append(f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{height}" rx="4"/>')
            path = f"{module.replace('.', '/')} · {function}"
            boxes.append(f'<text x="{x + _MARGIN}" y="{y + _LINE + 2}" class="module">{html.escape(path)}</text>')
            for i, line in enumerate(lines):
                at = f'x="{x + _MARGIN}" y="{y + (i + 2) * _LINE + 2}"'
                boxes.append(f"<text {at}>{html.escape(line)}</text>")
            y += height + _MARGIN
        bottom = max(bottom, y)
    width = len(LANES) * (_WIDTH + _GAP) - _GAP + 2
    style = (
        "svg { background: #fff } text { font: 12px system-ui, sans-serif; fill: #444 } "
        ".title { font-weight: bold; fill: #000 } .module { font-family: ui-monospace, monospace; fill: #0b57d0 } "
        "rect { fill: #f6f8fc; stroke: #c4cde0 }"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom}" width="{width}" height="{bottom}">'
    return "\n".join([head, f"<style>{style}</style>", *boxes, "</svg>", ""])


def _sentence(module: str) -> str:
    """The first sentence of a module's docstring."""
    text = " ".join((importlib.import_module(module).__doc__ or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".")


def modules(svg: str) -> Iterator[str]:
    """The modules that a picture shows, in its order."""
    for line in svg.splitlines():
        if 'class="module"' in line:
            yield line.split(">")[1].split(" · ")[0].replace("/", ".")


if __name__ == "__main__":
    PICTURE.write_text(draw(record()), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
