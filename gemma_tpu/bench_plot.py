"""Curves of `gemma_tpu.bench_serve` as an SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_COLORS = {"p50": "#1a73e8", "p95": "#e8710a", "p99": "#d93025"}
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 320, 260, 56, 16, 44, 44  # of a panel, and its margins, in pixels
_PANELS = (
    ("tokens/s", "tokens_per_second", 1),
    ("first token, ms", "first_token", 1e3),
    ("between tokens, ms", "token", 1e3),
)


def svg(levels: Sequence[Mapping[str, Any]], title: str) -> str:
    """Over the requests in flight: tokens/s, and the percentiles of two times."""
    parts = ['<rect width="100%" height="100%" fill="white"/>', f'<text x="8" y="16">{escape(title)}</text>']
    for i, (name, color) in enumerate(_COLORS.items()):
        parts.append(f'<text x="{3 * _WIDTH - 120 + i * 36}" y="16" fill="{color}">{name}</text>')
    for i, (label, name, factor) in enumerate(_PANELS):
        rows = {level["in_flight"]: level[name] for level in levels if level[name] is not None}
        curves = {
            flight: [factor * y for y in (row if isinstance(row, list) else [row])] for flight, row in rows.items()
        }
        parts += [f'<g transform="translate({i * _WIDTH})">', *_panel(label, curves), "</g>"]
    size = f'width="{3 * _WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *parts, "</svg>\n"])


def _panel(label: str, curves: Mapping[int, Sequence[float]]) -> list[str]:
    """`curves`: of each number of requests in flight, a value of each curve."""
    highest = max((value for row in curves.values() for value in row), default=1)
    power = 10.0 ** math.floor(math.log10(highest or 1))
    top = next(step * power for step in (1, 2, 4, 8, 10) if step * power >= highest)
    first, last = (math.log2(end(curves, default=1)) for end in (min, max))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<text x="{_LEFT}" y="{_TOP - 10}" font-weight="bold">{label}</text>']
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">requests in flight</text>')
    for quarter in range(5):
        y = bottom - (bottom - _TOP) * quarter / 4
        parts.append(f'<path d="M{_LEFT} {y}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{top * quarter / 4:g}</text>')
    lines: dict[str, list[str]] = {color: [] for color in _COLORS.values()}
    for flight, row in curves.items():
        x = _LEFT + (right - _LEFT) * (math.log2(flight) - first) / (last - first or 1)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{flight}</text>')
        for color, value in zip(lines, row, strict=False):
            lines[color].append(f"{x:.1f},{bottom - (bottom - _TOP) * value / top:.1f}")
    style = 'fill="none" stroke-width="2" stroke-linecap="round"'
    return [*parts, *(f'<polyline points="{" ".join(at)}" stroke="{c}" {style}/>' for c, at in lines.items() if at)]
