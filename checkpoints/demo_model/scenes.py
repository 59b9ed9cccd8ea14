"""Drawn scenes: what is in them, where, and the picture.

A scene is a background, one to five shapes and perhaps a printed text. Its description is exact: places are cells of
a 3×3 grid, kept clear of the cells' borders, and no two shapes have nearly the same x, so "from left to right" is one
order. Coordinates are fractions of the canvas.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
from PIL import ImageFont

from checkpoints.demo_model.grammar import choose, is_held_out

SHAPES = ("circle", "square", "triangle", "star", "hexagon", "heart", "cross", "diamond", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 30, 36),
    "orange": (250, 138, 18),
    "yellow": (246, 220, 36),
    "green": (36, 160, 62),
    "blue": (34, 82, 214),
    "purple": (134, 50, 172),
    "pink": (250, 142, 192),
    "brown": (122, 74, 36),
    "black": (16, 16, 18),
    "white": (252, 252, 252),
    "gray": (132, 132, 134),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (12, 12, 14),
    "gray": (176, 176, 178),
    "light blue": (190, 222, 250),
    "light green": (200, 240, 200),
    "light yellow": (252, 246, 204),
    "light pink": (252, 222, 232),
}
# Colours that stand out too little on a background to be asked about.
_CLASH = {
    "white": ("white",),
    "black": ("black",),
    "gray": ("gray",),
    "light blue": ("white",),
    "light green": ("white",),
    "light yellow": ("white", "yellow"),
    "light pink": ("white", "pink"),
}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
LABEL_GRID = 16  # one label per soft token
_X_GAP, _MARGIN = 0.065, 0.055  # between two centres; from a centre to the border of its cell
_LARGER = 1.35  # two sizes differ by this factor if they are asked about

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Shape:
    """`x`, `y`: the centre; `size`: radius as a fraction of the shorter side; `angle` in degrees."""

    kind: str
    colour: str
    x: float
    y: float
    size: float
    angle: float = 0.0

    @property
    def cell(self) -> tuple[str, str]:
        """Row and column of the 3×3 grid."""
        return ROWS[min(int(self.y * 3), 2)], COLUMNS[min(int(self.x * 3), 2)]


@dataclasses.dataclass(frozen=True)
class Text:
    """A printed word or number, centred at (x, y); `height` of the letters as a fraction of the canvas height."""

    content: str
    colour: str
    x: float
    y: float
    width: float
    font: int
    angle: float = 0.0


@dataclasses.dataclass(frozen=True)
class Scene:
    """Shapes are sorted from left to right."""

    background: str
    shapes: tuple[Shape, ...]
    size: tuple[int, int]
    text: Text | None = None

    @property
    def signature(self) -> tuple:
        """What a scene is, however it is drawn: the same signature never occurs in training and in evaluation."""
        return (tuple((s.kind, s.colour, s.cell) for s in self.shapes), self.text.content if self.text else "")

    @property
    def held_out(self) -> bool:
        return is_held_out("scene", self.signature)


def largest(shapes: tuple[Shape, ...]) -> Shape | None:
    """The shape that is clearly the largest, if one is."""
    return _extreme(sorted(shapes, key=lambda s: -s.size))


def smallest(shapes: tuple[Shape, ...]) -> Shape | None:
    """The shape that is clearly the smallest, if one is."""
    return _extreme(sorted(shapes, key=lambda s: s.size))


def _extreme(ordered: list[Shape]) -> Shape | None:
    first, second = ordered[0].size, ordered[1].size if len(ordered) > 1 else math.nan
    return ordered[0] if max(first, second) / min(first, second) >= _LARGER else None


def canvas_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in pixels, aspect ratio 0.6 to 1.7; mostly small, some as large as a screenshot."""
    longer = int(rng.integers(480, 641) if rng.random() < 0.08 else rng.integers(144, 385))
    shorter = longer if rng.random() < 0.35 else int(longer * rng.uniform(0.6, 1.0))
    return (longer, shorter) if rng.random() < 0.6 else (shorter, longer)


def random_scene(rng: np.random.Generator, held_out: bool, count: int | None = None) -> Scene:
    """A scene of `count` shapes (1 to 5 by default) whose signature is, or is not, held out."""
    while True:
        background = "white" if rng.random() < 0.4 else choose(rng, tuple(BACKGROUNDS))
        n = count or 1 + int(rng.choice(5, p=(0.2, 0.26, 0.26, 0.16, 0.12)))
        shapes = _place(rng, background, n, canvas_size(rng))
        if shapes and (scene := Scene(background, *shapes)).held_out == held_out:
            return scene


def _place(
    rng: np.random.Generator, background: str, count: int, size: tuple[int, int]
) -> tuple[tuple[Shape, ...], tuple[int, int]] | None:
    """Shapes that neither overlap nor leave the canvas, or None if the dice are bad."""
    short = min(size)
    allowed = [c for c in COLOURS if c not in _CLASH[background]]
    kinds = tuple(SHAPES[int(i)] for i in rng.permutation(len(SHAPES))[: int(rng.integers(1, count + 1))])
    biggest = (0.34, 0.26, 0.22, 0.19, 0.17)[count - 1]
    shapes: list[Shape] = []
    for _ in range(60):
        radius = float(rng.uniform(0.085, biggest))
        column, row = int(rng.random() * 3), int(rng.random() * 3)
        x, y = ((c + 0.5 + rng.uniform(-1, 1) * (0.5 - 3 * _MARGIN)) / 3 for c in (column, row))
        dx, dy = radius * short / size[0], radius * short / size[1]
        if not (dx + 0.01 < x < 0.99 - dx and dy + 0.01 < y < 0.99 - dy):
            continue
        if any(abs(x - s.x) < _X_GAP or _distance(x, y, s, size) < 1.15 * (radius + s.size) for s in shapes):
            continue
        kind = choose(rng, kinds) if rng.random() < 0.7 else choose(rng, SHAPES)
        colour = choose(rng, allowed)
        if any((s.kind, s.colour) == (kind, colour) for s in shapes):
            continue  # "the red circle" must mean one shape
        angle = float(rng.uniform(-14, 14)) if rng.random() < 0.6 else 0.0
        shapes.append(Shape(kind, colour, float(x), float(y), radius, angle))
        if len(shapes) == count:
            return tuple(sorted(shapes, key=lambda s: s.x)), size
    return None


def _distance(x: float, y: float, other: Shape, size: tuple[int, int]) -> float:
    """In units of the shorter side."""
    return math.hypot((x - other.x) * size[0], (y - other.y) * size[1]) / min(size)


def text_scene(rng: np.random.Generator, content: str) -> Scene:
    """A scene that shows `content`, alone or (one in four) with one or two shapes above or below it."""
    background = "white" if rng.random() < 0.4 else choose(rng, tuple(BACKGROUNDS))
    dark = [c for c in COLOURS if c not in _CLASH[background] and c not in ("yellow", "white", "pink", "gray")]
    light = ["white", "yellow", "pink", "orange"]
    colour = choose(rng, light if background == "black" else dark)
    size = canvas_size(rng)
    width = float(rng.uniform(0.45 if len(content) < 6 else 0.62, 0.92)) * min(1.0, (len(content) + 1.5) / 6)
    y = float(rng.uniform(0.25, 0.75))
    shapes: tuple[Shape, ...] = ()
    if rng.random() < 0.25 and (placed := _place(rng, background, int(rng.integers(1, 3)), size)):
        top = y > 0.5
        small = [dataclasses.replace(s, y=0.17 if top else 0.83, size=min(s.size, 0.13)) for s in placed[0]]
        if all(s.size * min(size) / size[1] < 0.15 for s in small):
            shapes, y, width = tuple(small), 0.66 if top else 0.34, min(width, 0.8)
    angle = float(rng.uniform(-8, 8)) if rng.random() < 0.4 else 0.0
    margin = max(0.0, 0.5 - width / 2 - 0.03)
    text = Text(content, colour, 0.5 + float(rng.uniform(-margin, margin)), y, width, int(rng.integers(1 << 30)), angle)
    return Scene(background, shapes, size, text)


@functools.lru_cache(maxsize=1)
def font_files() -> tuple[str | None, ...]:
    """The fonts to print with: Pillow's own (None), and DejaVu where Matplotlib or the system brings it."""
    names = [f"DejaVu{f}{s}.ttf" for f in ("Sans", "Serif", "SansMono") for s in ("", "-Bold")]
    folders = [Path("/usr/share/fonts/truetype/dejavu")]
    try:
        import matplotlib

        folders.insert(0, Path(matplotlib.get_data_path()) / "fonts/ttf")
    except ImportError:
        pass  # fonts are a bonus: without Matplotlib's there are Pillow's and perhaps the system's
    for folder in folders:
        if found := [str(folder / name) for name in names if (folder / name).is_file()]:
            return (None, *found)
    return (None,)


@functools.lru_cache(maxsize=512)
def font(index: int, size: int) -> ImageFont.FreeTypeFont:
    files = font_files()
    # Pillow's own font is on every machine, so it gets a third of the draws.
    file = None if index % 3 == 0 else files[index // 3 % len(files)]
    font = ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which drawing text needs")
    return font


def outline(shape: Shape, size: tuple[int, int]) -> list[tuple[float, float]]:
    """The shape's border as a polygon in pixels of a canvas of `size`."""
    unit = _UNIT_POLYGONS[shape.kind]
    turn = math.radians(shape.angle)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    points = unit @ rotation * (shape.size * min(size)) + (shape.x * size[0], shape.y * size[1])
    return [(float(x), float(y)) for x, y in points]


def _star(points: int, inner: float, start: float) -> np.ndarray:
    angles = np.arange(points) * 2 * np.pi / points + start
    radii = np.where(np.arange(points) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], axis=1) / 17.5


_ARM = 0.34
_UNIT_POLYGONS = {
    "circle": _star(64, 1.0, 0.0),
    "ring": _star(64, 1.0, 0.0),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.82,
    "triangle": np.array([(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]),
    "star": _star(10, 0.42, -np.pi / 2),
    "hexagon": _star(6, 1.0, 0.0),
    "heart": _heart(),
    "cross": np.array(
        [
            (-_ARM, -1),
            (_ARM, -1),
            (_ARM, -_ARM),
            (1, -_ARM),
            (1, _ARM),
            (_ARM, _ARM),
            (_ARM, 1),
            (-_ARM, 1),
            (-_ARM, _ARM),
            (-1, _ARM),
            (-1, -_ARM),
            (-_ARM, -_ARM),
        ]
    ),
    "diamond": np.array([(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)]),
}
RING_HOLE = 0.55
