"""Curves of `gemma_tpu.bench` and `gemma_tpu.bench_serve` as an SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_tpu.bench import Measurement

_COLORS = ("#1a73e8", "#e8710a", "#d93025")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 320, 260, 56, 16, 44, 44  # of a panel, and its margins, in pixels
_LOAD = (
    ("tokens/s", "tokens_per_second", 1),
    ("first token, ms", "first_token", 1e3),
    ("between tokens, ms", "token", 1e3),
)
_FLIGHT = "requests in flight"


def load_svg(levels: Sequence[Mapping[str, Any]], title: str) -> str:
    """Of `gemma_tpu.bench_serve`, over the requests in flight: tokens/s, and the percentiles of two times."""
    panels = []
    for label, name, factor in _LOAD:
        rows = {level["in_flight"]: level[name] for level in levels if level[name] is not None}
        curves = {
            flight: [factor * y for y in (row if isinstance(row, list) else [row])] for flight, row in rows.items()
        }
        panels.append(_panel(label, _FLIGHT, curves))
    return _svg(panels, title, ("p50", "p95", "p99"))


def speed_svg(results: Sequence[Measurement], title: str) -> str:
    """Of `gemma_tpu.bench`: tokens/s and their floor over the rows, and two times over the tokens of a prompt."""

    def curves(*names: str) -> dict[int, list[float]]:
        found = {(result.curve, result.at): result.value for result in results}
        places = sorted({at for curve, at in found if curve == names[0] and at is not None})
        return {at: [found[name, at] for name in names] for at in places}

    panels = [
        _panel("tokens/s", "rows", curves("measured", "floor")),
        _panel("first token, ms", "tokens of the prompt", curves("first")),
        _panel("each token, ms", "tokens of the prompt", curves("each")),
    ]
    return _svg(panels, title, ("measured", "floor"))


def _svg(panels: Sequence[Sequence[str]], title: str, names: Sequence[str]) -> str:
    """`names`: of the curves, by their colours."""
    parts = ['<rect width="100%" height="100%" fill="white"/>', f'<text x="8" y="16">{escape(title)}</text>']
    place = len(panels) * _WIDTH - _RIGHT
    for name, color in reversed(list(zip(names, _COLORS, strict=False))):
        parts.append(f'<text x="{place}" y="16" fill="{color}" text-anchor="end">{name}</text>')
        place -= 8 * len(name) + 12
    for i, panel in enumerate(panels):
        parts += [f'<g transform="translate({i * _WIDTH})">', *panel, "</g>"]
    size = f'width="{len(panels) * _WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *parts, "</svg>\n"])


def _panel(label: str, across: str, curves: Mapping[int, Sequence[float]]) -> list[str]:
    """`curves`: of each place on the axis `across`, which is logarithmic, a value of each curve."""
    highest = max((value for row in curves.values() for value in row), default=1)
    power = 10.0 ** math.floor(math.log10(highest or 1))
    top = next(step * power for step in (1, 2, 4, 8, 10) if step * power >= highest)
    first, last = (math.log2(end(curves, default=1)) for end in (min, max))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<text x="{_LEFT}" y="{_TOP - 10}" font-weight="bold">{label}</text>']
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{across}</text>')
    for quarter in range(5):
        y = bottom - (bottom - _TOP) * quarter / 4
        parts.append(f'<path d="M{_LEFT} {y}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{top * quarter / 4:g}</text>')
    lines: dict[str, list[str]] = {color: [] for color in _COLORS}
    for place, row in curves.items():
        x = _LEFT + (right - _LEFT) * (math.log2(place) - first) / (last - first or 1)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{place}</text>')
        for color, value in zip(lines, row, strict=False):
            lines[color].append(f"{x:.1f},{bottom - (bottom - _TOP) * value / top:.1f}")
    style = 'fill="none" stroke-width="2" stroke-linecap="round"'
    return [*parts, *(f'<polyline points="{" ".join(at)}" stroke="{c}" {style}/>' for c, at in lines.items() if at)]
