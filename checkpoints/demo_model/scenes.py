"""Drawn scenes: what is in them, where, and their pictures.

A scene is a background and shapes, or a printed word. Its description is exact: places are cells of a 3×3 grid, kept
clear of the cells' borders, and no two shapes have nearly the same x, so that "from left to right" is one order.
Coordinates are fractions of the canvas.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from checkpoints.demo_model.phrases import choose, is_held_out

SHAPES = ("circle", "square", "triangle", "star", "hexagon", "heart", "cross", "diamond", "ring")
OTHERS = ("oval", "rectangle", "crescent", "arrow")  # the model says that it knows no such


def _palette(text: str) -> dict[str, tuple[int, ...]]:
    """Names and RGB values, such as "light blue bedefa, …"."""
    entries = (entry.rsplit(maxsplit=1) for entry in text.split(","))
    return {name.strip(): tuple(bytes.fromhex(value)) for name, value in entries}


COLOURS = _palette(
    "red de1e24, orange fa8a12, yellow f6dc24, green 24a03e, blue 2252d6, purple 8632ac, pink fa8ec0, brown 7a4a24,"
    "black 101012, white fcfcfc, gray 848486"
)
BACKGROUNDS = _palette(
    "white ffffff, black 0c0c0e, gray b0b0b2, light blue bedefa, light green c8f0c8, light yellow fcf6cc,"
    "light pink fcdee8"
)
_GROUNDS = ("white",) * 5 + tuple(BACKGROUNDS)
# Colours that stand out too little on a background to be asked about.
_CLASH = {"light yellow": "white yellow", "light pink": "white pink", "black": "black", "gray": "gray"}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
CELLS = tuple((row, column) for row in ROWS for column in COLUMNS)
_X_GAP, _MARGIN = 0.065, 0.055  # between two centres; from a centre to the border of its cell
LARGER = 1.35  # two sizes differ by this factor if they are asked about


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
    """A printed word or number, centred at (x, y), `width` wide."""

    content: str
    colour: str
    x: float
    y: float
    width: float
    font: int
    angle: float = 0.0


@dataclasses.dataclass(frozen=True)
class Scene:
    """Shapes are sorted from left to right; `size` is the canvas in pixels."""

    background: str
    shapes: tuple[Shape, ...]
    size: tuple[int, int]
    text: Text | None = None

    @property
    def held_out(self) -> bool:
        """Whether the scene, however it is drawn, is one that training never sees."""
        shapes = tuple((s.kind, s.colour, s.cell) for s in self.shapes)
        return is_held_out("scene", (shapes, self.text.content if self.text else ""))


def _canvas(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in pixels, aspect ratio 0.6 to 1.7; mostly small, some as large as a screenshot."""
    longer = int(rng.integers(480, 641) if rng.random() < 0.08 else rng.integers(144, 385))
    shorter = longer if rng.random() < 0.35 else int(longer * rng.uniform(0.6, 1.0))
    return (longer, shorter) if rng.random() < 0.6 else (shorter, longer)


def random_scene(rng: np.random.Generator, held_out: bool, count: int | None = None, others: float = 0.0) -> Scene:
    """A scene of `count` shapes (1 to 5 by default); `others`: the chance that one is a shape the model knows not."""
    while True:
        n = count or 1 + int(rng.choice(5, p=(0.2, 0.26, 0.26, 0.16, 0.12)))
        background, size = choose(rng, _GROUNDS), _canvas(rng)
        if shapes := _place(rng, background, n, size):
            if rng.random() < others:
                shapes = (dataclasses.replace(shapes[0], kind=choose(rng, OTHERS)), *shapes[1:])
            scene = Scene(background, tuple(sorted(shapes, key=lambda s: s.x)), size)
            if scene.held_out == held_out:
                return scene


def allowed_colours(background: str) -> list[str]:
    """Colours that stand out on `background`."""
    return [c for c in COLOURS if c not in _CLASH.get(background, "white").split()]


def _place(rng: np.random.Generator, background: str, count: int, size: tuple[int, int]) -> tuple[Shape, ...] | None:
    """Shapes that neither overlap nor leave the canvas, or None if the dice are bad. More than five are a crowd."""
    crowd, across = count > 5, np.array(size) / min(size)
    kinds = tuple(SHAPES[int(i)] for i in rng.permutation(len(SHAPES))[: int(rng.integers(1, min(count, 5) + 1))])
    smallest, biggest = (0.07, 0.13) if crowd else (0.085, (0.34, 0.26, 0.22, 0.19, 0.17)[count - 1])
    shapes: list[Shape] = []
    for _ in range(60 + 40 * crowd):
        radius = float(rng.uniform(smallest, biggest))
        x, y = ((int(rng.random() * 3) + 0.5 + rng.uniform(-1, 1) * (0.5 - 3 * _MARGIN)) / 3 for _ in range(2))
        dx, dy = radius / across + 0.005
        apart = [math.hypot((x - s.x) * across[0], (y - s.y) * across[1]) / (radius + s.size) for s in shapes]
        near = any(abs(x - s.x) < _X_GAP for s in shapes) and not crowd
        if not (dx < x < 1 - dx and dy < y < 1 - dy) or near or min(apart, default=2) < 1.15:
            continue
        kind, colour = choose(rng, kinds if rng.random() < 0.7 else SHAPES), choose(rng, allowed_colours(background))
        if not crowd and any((s.kind, s.colour) == (kind, colour) for s in shapes):
            continue  # "the red circle" must mean one shape
        spread = 14 if rng.random() < 0.75 else 32
        shapes.append(Shape(kind, colour, float(x), float(y), radius, float(rng.uniform(-spread, spread))))
        if len(shapes) == count:
            return tuple(shapes)
    return None


def text_scene(rng: np.random.Generator, content: str) -> Scene:
    """A scene that shows `content`."""
    background = choose(rng, _GROUNDS)
    dark = [c for c in allowed_colours(background) if c not in ("yellow", "white", "pink", "gray")]
    colour = choose(rng, ["white", "yellow", "pink", "orange"] if background == "black" else dark)
    width = float(rng.uniform(0.45 if len(content) < 6 else 0.62, 0.92)) * min(1.0, (len(content) + 1.5) / 6)
    x, y = 0.5 + float(rng.uniform(-1, 1)) * max(0.0, 0.47 - width / 2), float(rng.uniform(0.25, 0.75))
    angle = float(rng.uniform(-8, 8)) if rng.random() < 0.4 else 0.0
    return Scene(background, (), _canvas(rng), Text(content, colour, x, y, width, int(rng.integers(1 << 30)), angle))


# -- drawing ----------------------------------------------------------------------------------------------------------


def _regular(points: int, inner: float = 1.0, start: float = 0.0) -> np.ndarray:
    """A polygon of unit radius; every second point at `inner`."""
    angles = np.arange(points) * 2 * np.pi / points + start
    radii = np.where(np.arange(points) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


_H = np.linspace(0, 2 * np.pi, 60, endpoint=False)
_DEPTH = 2 * np.cos(3 * _H) + np.cos(4 * _H) + 5 * np.cos(2 * _H) - 13 * np.cos(_H)  # of a heart's border
_T = np.linspace(0.6, 2 * np.pi - 0.6, 40)
_ARC = np.stack([np.cos(_T), np.sin(_T)], axis=1)  # the outer rim of a crescent
_A = 0.34  # half the width of a cross's arm
_CROSS = [(-_A, -1), (_A, -1), (_A, -_A), (1, -_A), (1, _A), (_A, _A)]
_POLYGONS = {
    **dict.fromkeys(("circle", "ring"), _regular(64)),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.82,
    "triangle": np.array([(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]),
    "star": _regular(10, 0.42, -np.pi / 2),
    "hexagon": _regular(6),
    "heart": np.stack([16 * np.sin(_H) ** 3, _DEPTH - 2.5], axis=1) / 17.5,
    "cross": np.array([*_CROSS, *[(-x, -y) for x, y in _CROSS]]),
    "diamond": np.array([(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)]),
    "oval": _regular(64) * (1, 0.55),
    "rectangle": np.array([(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)]),
    "crescent": np.concatenate([_ARC, (_ARC * 0.8 + (0.35, 0))[::-1]]),
    "arrow": np.array([(-1, -0.25), (0.15, -0.25), (0.15, -0.7), (1, 0), (0.15, 0.7), (0.15, 0.25), (-1, 0.25)]),
}
_HOLE = 0.55  # of a ring


def rims(shape: Shape, size: tuple[int, int]) -> list[list[tuple[float, float]]]:
    """The shape's border as a polygon in pixels of a canvas of `size`; a ring has that of its hole too."""
    turn = math.radians(shape.angle)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    points, centre = _POLYGONS[shape.kind] @ rotation, (shape.x * size[0], shape.y * size[1])
    scales = [part * shape.size * min(size) for part in ((1.0, _HOLE) if shape.kind == "ring" else (1.0,))]
    return [[(float(x), float(y)) for x, y in points * scale + centre] for scale in scales]


def mask(shape: Shape, size: tuple[int, int]) -> Image.Image:
    """Where the shape is painted on a canvas of `size`."""
    image = Image.new("L", size)
    for points, fill in zip(rims(shape, size), (255, 0), strict=False):
        ImageDraw.Draw(image).polygon(points, fill=fill)
    return image


def render(scene: Scene, rng: np.random.Generator, style: str | None = None) -> Image.Image:
    """The picture: colours jittered, shapes plain, bordered, outlined or shaded, at times noisy or blurred."""
    scale = 2 if scene.shapes and max(scene.size) < 400 else 1  # drawn larger, then reduced, for smooth edges
    size = (scene.size[0] * scale, scene.size[1] * scale)
    image = Image.new("RGB", size, _jitter(rng, BACKGROUNDS[scene.background], 5))
    dice = float(rng.random())
    style = style or ("plain", "bordered", "outlined", "shaded")[int(np.searchsorted((0.5, 0.7, 0.87), dice))]
    vary = dice * 40 % 1  # what is left of the dice, for the direction of shading and the width of outlines
    for shape in scene.shapes:
        fill, draw = _jitter(rng, COLOURS[shape.colour], 12), ImageDraw.Draw(image)
        dark, light = (tuple(min(255, int(c * by)) for c in fill) for by in (0.8 if style == "shaded" else 0.55, 1.2))
        if style == "shaded":
            ramp = Image.linear_gradient("L").rotate(90 * (vary < 0.5)).resize(size)
            image.paste(ImageOps.colorize(ramp, dark, light, fill), mask=mask(shape, size))
        elif style != "outlined":
            image.paste(fill, mask=mask(shape, size))
        if style in ("bordered", "outlined"):
            edge, weight = (dark, 0.06) if style == "bordered" else (fill, 0.06 + 0.14 * vary)
            for points in rims(shape, size):
                width = max(scale, int(weight * shape.size * min(size)))
                draw.line([*points, *points[:2]], fill=edge, width=width, joint="curve")
    image = image.reduce(scale) if scale > 1 else image
    if scene.text:
        _print(image, scene.text, _jitter(rng, COLOURS[scene.text.colour], 10))
    if (kind := rng.random()) < 0.25:
        grain = rng.standard_normal((image.height, image.width, 1), np.float32) * rng.uniform(1, 9)
        return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)))) if kind < 0.32 else image


def _jitter(rng: np.random.Generator, colour: tuple[int, ...], amount: int) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255))


@functools.lru_cache(maxsize=512)
def _font(index: int, size: int) -> Any:
    """Pillow's own font, or DejaVu where the system brings it."""
    name = ("", "", "Sans", "Sans-Bold", "Serif", "SansMono")[index % 6]
    try:
        return ImageFont.truetype(f"DejaVu{name}.ttf" if name else "", size)
    except OSError:  # DejaVu is a bonus
        return ImageFont.load_default(size)


def _print(image: Image.Image, text: Text, colour: tuple[int, ...]) -> None:
    left, top, right, bottom = _font(text.font, 64).getbbox(text.content)
    points = 64 * min(text.width * image.width / (right - left), 0.42 * image.height / (bottom - top))
    centre, ink = (text.x * image.width, text.y * image.height), Image.new("L", image.size)
    font = _font(text.font, max(8, int(points)))
    ImageDraw.Draw(ink).text(centre, text.content, font=font, fill=255, anchor="mm")
    image.paste(colour, mask=ink.rotate(text.angle, Image.Resampling.BILINEAR, center=centre) if text.angle else ink)


def texture(rng: np.random.Generator) -> Image.Image:
    """A picture that is no drawn scene: clouds of colour, at times behind scribbles."""
    size, sides = _canvas(rng), (4, choose(rng, (12, 20, 60)))
    clouds = (Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize(size) for n in sides)
    image = Image.blend(*clouds, alpha=float(rng.uniform(0.2, 0.9)))
    for _ in range(choose(rng, (0, 4, 14, 40))):
        ends = [(float(x * size[0]), float(y * size[1])) for x, y in rng.random((int(rng.integers(2, 6)), 2))]
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        ImageDraw.Draw(image).line(ends, fill=colour, width=int(rng.integers(1, 25)))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 5))))
