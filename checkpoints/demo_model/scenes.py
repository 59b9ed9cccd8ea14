"""Drawn scenes: what is in them, where, and their pictures.

A scene is a background, shapes and perhaps a printed word. Its description is exact: places are cells of a 3×3 grid,
kept clear of the cells' borders, and no two shapes have nearly the same x, so that "from left to right" is one order.
Coordinates are fractions of the canvas.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from checkpoints.demo_model.phrases import choose, is_held_out

SHAPES = ("circle", "square", "triangle", "star", "hexagon", "heart", "cross", "diamond", "ring")
OTHERS = ("oval", "rectangle", "crescent", "arrow", "trapezoid", "lightning")  # the model says that it knows no such


def _palette(text: str) -> dict[str, tuple[int, int, int]]:
    """Names and RGB values, such as "light blue 190 222 250; …"."""
    entries = (entry.rsplit(maxsplit=3) for entry in text.split(";"))
    return {name.strip(): (int(red), int(green), int(blue)) for name, red, green, blue in entries}


COLOURS = _palette(
    "red 222 30 36; orange 250 138 18; yellow 246 220 36; green 36 160 62; blue 34 82 214; purple 134 50 172;"
    "pink 250 142 192; brown 122 74 36; black 16 16 18; white 252 252 252; gray 132 132 134"
)
BACKGROUNDS = _palette(
    "white 255 255 255; black 12 12 14; gray 176 176 178; light blue 190 222 250; light green 200 240 200;"
    "light yellow 252 246 204; light pink 252 222 232"
)
# Colours that stand out too little on a background to be asked about.
_CLASH = {"light yellow": ("white", "yellow"), "light pink": ("white", "pink"), "black": ("black",), "gray": ("gray",)}
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


def canvas_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in pixels, aspect ratio 0.6 to 1.7; mostly small, some as large as a screenshot."""
    longer = int(rng.integers(480, 641) if rng.random() < 0.08 else rng.integers(144, 385))
    shorter = longer if rng.random() < 0.35 else int(longer * rng.uniform(0.6, 1.0))
    return (longer, shorter) if rng.random() < 0.6 else (shorter, longer)


def random_scene(rng: np.random.Generator, held_out: bool, count: int | None = None, others: float = 0.0) -> Scene:
    """A scene of `count` shapes (1 to 5 by default); `others`: the chance that one is a shape the model knows not."""
    while True:
        background = "white" if rng.random() < 0.4 else choose(rng, tuple(BACKGROUNDS))
        n = count or 1 + int(rng.choice(5, p=(0.2, 0.26, 0.26, 0.16, 0.12)))
        size = canvas_size(rng)
        if shapes := _place(rng, background, n, size):
            if rng.random() < others:
                shapes = (dataclasses.replace(shapes[0], kind=choose(rng, OTHERS)), *shapes[1:])
            scene = Scene(background, tuple(sorted(shapes, key=lambda s: s.x)), size)
            if scene.held_out == held_out:
                return scene


def allowed_colours(background: str) -> list[str]:
    """Colours that stand out on `background`."""
    return [c for c in COLOURS if c not in _CLASH.get(background, ("white",))]


def _place(rng: np.random.Generator, background: str, count: int, size: tuple[int, int]) -> tuple[Shape, ...] | None:
    """Shapes that neither overlap nor leave the canvas, or None if the dice are bad. More than five are a crowd."""
    crowd = count > 5
    kinds = tuple(SHAPES[int(i)] for i in rng.permutation(len(SHAPES))[: int(rng.integers(1, min(count, 5) + 1))])
    biggest = 0.13 if crowd else (0.34, 0.26, 0.22, 0.19, 0.17)[count - 1]
    shapes: list[Shape] = []
    for _ in range(60 + 40 * crowd):
        radius = float(rng.uniform(0.07 if crowd else 0.085, biggest))
        x, y = ((int(rng.random() * 3) + 0.5 + rng.uniform(-1, 1) * (0.5 - 3 * _MARGIN)) / 3 for _ in range(2))
        dx, dy = radius * min(size) / size[0], radius * min(size) / size[1]
        if not (dx + 0.005 < x < 0.995 - dx and dy + 0.005 < y < 0.995 - dy):
            continue
        gap = 0.0 if crowd else _X_GAP
        apart = [math.hypot((x - s.x) * size[0], (y - s.y) * size[1]) / min(size) for s in shapes]
        if any(abs(x - s.x) < gap or far < 1.15 * (radius + s.size) for s, far in zip(shapes, apart, strict=True)):
            continue
        kind = choose(rng, kinds) if rng.random() < 0.7 else choose(rng, SHAPES)
        colour = choose(rng, allowed_colours(background))
        if not crowd and any((s.kind, s.colour) == (kind, colour) for s in shapes):
            continue  # "the red circle" must mean one shape
        spread = 14 if rng.random() < 0.75 else 32
        shapes.append(Shape(kind, colour, float(x), float(y), radius, float(rng.uniform(-spread, spread))))
        if len(shapes) == count:
            return tuple(shapes)
    return None


def text_scene(rng: np.random.Generator, content: str) -> Scene:
    """A scene that shows `content`, alone or (one in four) with one or two shapes above or below it."""
    background = "white" if rng.random() < 0.4 else choose(rng, tuple(BACKGROUNDS))
    dark = [c for c in allowed_colours(background) if c not in ("yellow", "white", "pink", "gray")]
    colour = choose(rng, ["white", "yellow", "pink", "orange"] if background == "black" else dark)
    size = canvas_size(rng)
    width = float(rng.uniform(0.45 if len(content) < 6 else 0.62, 0.92)) * min(1.0, (len(content) + 1.5) / 6)
    y = float(rng.uniform(0.25, 0.75))
    shapes: tuple[Shape, ...] = ()
    if rng.random() < 0.25 and (placed := _place(rng, background, int(rng.integers(1, 3)), size)):
        top = y > 0.5
        small = [dataclasses.replace(s, y=0.17 if top else 0.83, size=min(s.size, 0.13)) for s in placed]
        if all(s.size * min(size) / size[1] < 0.15 for s in small):
            shapes, y = tuple(sorted(small, key=lambda s: s.x)), 0.66 if top else 0.34
            width = min(width, 0.8)
    margin = max(0.0, 0.5 - width / 2 - 0.03)
    x, angle = 0.5 + float(rng.uniform(-margin, margin)), float(rng.uniform(-8, 8)) if rng.random() < 0.4 else 0.0
    return Scene(background, shapes, size, Text(content, colour, x, y, width, int(rng.integers(1 << 30)), angle))


# -- drawing ----------------------------------------------------------------------------------------------------------


def _regular(points: int, inner: float, start: float) -> np.ndarray:
    """A polygon of unit radius; every second point at `inner`."""
    angles = np.arange(points) * 2 * np.pi / points + start
    radii = np.where(np.arange(points) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 17.5


def _crescent() -> np.ndarray:
    t = np.linspace(0.6, 2 * np.pi - 0.6, 40)
    outer = np.stack([np.cos(t), np.sin(t)], axis=1)
    return np.concatenate([outer, (outer * 0.8 + (0.35, 0))[::-1]])


_A = 0.34  # half the width of a cross's arm
_CROSS = [(-_A, -1), (_A, -1), (_A, -_A), (1, -_A), (1, _A), (_A, _A)]
_ARROW = [(-1, -0.25), (0.15, -0.25), (0.15, -0.7), (1, 0), (0.15, 0.7), (0.15, 0.25), (-1, 0.25)]
_LIGHTNING = [(0.15, -1), (-0.55, 0.2), (-0.05, 0.2), (-0.25, 1), (0.55, -0.25), (0.05, -0.25), (0.45, -1)]
_POLYGONS = {
    "circle": _regular(64, 1.0, 0.0),
    "ring": _regular(64, 1.0, 0.0),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.82,
    "triangle": np.array([(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]),
    "star": _regular(10, 0.42, -np.pi / 2),
    "hexagon": _regular(6, 1.0, 0.0),
    "heart": _heart(),
    "cross": np.array([*_CROSS, *[(-x, -y) for x, y in _CROSS]]),
    "diamond": np.array([(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)]),
    "oval": _regular(64, 1.0, 0.0) * (1, 0.55),
    "rectangle": np.array([(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)]),
    "crescent": _crescent(),
    "arrow": np.array(_ARROW),
    "trapezoid": np.array([(-0.5, -0.55), (0.5, -0.55), (1, 0.55), (-1, 0.55)]),
    "lightning": np.array(_LIGHTNING),
}
RING_HOLE = 0.55


def outline(shape: Shape, size: tuple[int, int]) -> list[tuple[float, float]]:
    """The shape's border as a polygon in pixels of a canvas of `size`."""
    turn = math.radians(shape.angle)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    points = _POLYGONS[shape.kind] @ rotation * (shape.size * min(size)) + (shape.x * size[0], shape.y * size[1])
    return [(float(x), float(y)) for x, y in points]


STYLES = ("plain", "bordered", "outlined", "shaded")


def render(scene: Scene, rng: np.random.Generator, style: str | None = None) -> Image.Image:
    """The picture: colours jittered, shapes in one of STYLES, at times noisy or blurred."""
    scale = 2 if scene.shapes and max(scene.size) < 400 else 1  # drawn larger, then reduced, for smooth edges
    size = (scene.size[0] * scale, scene.size[1] * scale)
    image = Image.new("RGB", size, _jitter(rng, BACKGROUNDS[scene.background], 5))
    dice = float(rng.random())
    style = style or STYLES[int(np.searchsorted((0.5, 0.7, 0.87), dice))]
    vary = dice * 40 % 1  # what is left of the dice, for the direction of shading and the width of outlines
    for shape in scene.shapes:
        fill = _jitter(rng, COLOURS[shape.colour], 12)
        points, radius = outline(shape, size), shape.size * min(size)
        image.paste(
            _paint(size, fill, vary < 0.5) if style == "shaded" else fill,
            mask=_mask(shape, size, style, 0.06 + 0.14 * vary),
        )
        if style == "bordered":
            edge = tuple(int(c * 0.55) for c in fill)
            ImageDraw.Draw(image).line([*points, points[0]], fill=edge, width=max(1, int(0.06 * radius)))
    if scale > 1:
        image = image.reduce(scale)
    if scene.text:
        _print(image, scene.text, _jitter(rng, COLOURS[scene.text.colour], 10))
    kind = rng.random()
    if kind < 0.25:
        return _noisy(image, rng)
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)))) if kind < 0.32 else image


def _mask(shape: Shape, size: tuple[int, int], style: str, weight: float) -> Image.Image:
    """Where the shape is painted: inside its border, or on it, in a line of `weight` radii."""
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    points, radius, line = outline(shape, size), shape.size * min(size), max(2, int(weight * shape.size * min(size)))
    x, y, hole = shape.x * size[0], shape.y * size[1], RING_HOLE * radius
    box = (x - hole, y - hole, x + hole, y + hole)
    if style == "outlined":
        draw.line([*points, *points[:2]], fill=255, width=line, joint="curve")
        if shape.kind == "ring":
            draw.ellipse(box, outline=255, width=line)
    else:
        draw.polygon(points, fill=255)
        if shape.kind == "ring":
            draw.ellipse(box, fill=0)
    return mask


def _paint(size: tuple[int, int], colour: tuple[int, ...], across: bool) -> Image.Image:
    """A colour that grows lighter from left to right or from top to bottom."""
    ramp = np.linspace(0.8, 1.2, size[0])[None] if across else np.linspace(0.8, 1.2, size[1])[:, None]
    colours = np.broadcast_to(ramp, size[::-1])[..., None] * np.array(colour)
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))


def _jitter(rng: np.random.Generator, colour: tuple[int, int, int], amount: int) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255))


def _noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Grain, and a slight gradient of light."""
    grain = rng.standard_normal((image.height, image.width, 1), np.float32) * rng.uniform(1, 9)
    light = 1 + np.linspace(-1, 1, image.width, dtype=np.float32)[None, :, None] * rng.uniform(-0.1, 0.1)
    return Image.fromarray(np.clip(np.asarray(image, np.float32) * light + grain, 0, 255).astype(np.uint8))


@functools.lru_cache(maxsize=512)
def _font(index: int, size: int) -> Any:
    """Pillow's own font, or DejaVu where the system brings it."""
    names = [f"DejaVu{family}{style}.ttf" for family in ("Sans", "Serif", "SansMono") for style in ("", "-Bold")]
    try:
        return ImageFont.truetype(names[index // 3 % len(names)] if index % 3 else "", size)
    except OSError:  # DejaVu is a bonus
        return ImageFont.load_default(size)


def _print(image: Image.Image, text: Text, colour: tuple[int, ...]) -> None:
    left, top, right, bottom = _font(text.font, 64).getbbox(text.content)
    points = 64 * min(text.width * image.width / (right - left), 0.42 * image.height / (bottom - top))
    font = _font(text.font, max(8, int(points)))
    left, top, right, bottom = font.getbbox(text.content)
    centre = text.x * image.width, text.y * image.height
    mask = Image.new("L", image.size)
    corner = centre[0] - (left + right) / 2, centre[1] - (top + bottom) / 2
    ImageDraw.Draw(mask).text(corner, text.content, font=font, fill=255)
    if text.angle:
        mask = mask.rotate(text.angle, Image.Resampling.BILINEAR, center=centre)
    image.paste(colour, mask=mask)


def texture(rng: np.random.Generator) -> Image.Image:
    """A picture that is no drawn scene: clouds of colour, stripes, landscapes, scribbles, many patches."""
    size = canvas_size(rng)
    if (kind := int(rng.random() * 5)) == 0:
        grid = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
        return Image.fromarray(grid).resize(size, Image.Resampling.NEAREST)
    image = _clouds(rng, size)
    draw = ImageDraw.Draw(image)
    for i in range((0, 0, 14, 3, 50)[kind]):
        ends = [(float(x * size[0]), float(y * size[1])) for x, y in rng.random((int(rng.integers(2, 6)), 2))]
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        if kind == 2:
            draw.line(ends, fill=colour, width=int(rng.integers(1, 7)))
        elif kind == 3:  # hills, one before the other
            ridge = np.asarray(_clouds(rng, size))[0, :, 0] / 255.0 * 0.3 + 0.35 + 0.2 * i
            draw.polygon([(0, size[1]), *((x, y * size[1]) for x, y in enumerate(ridge)), size], fill=colour)
        else:
            r = rng.uniform(0.02, 0.16) * size[0]
            draw.ellipse((ends[0][0] - r, ends[0][1] - r, ends[0][0] + r, ends[0][1] + r / 2), fill=colour)
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 5))))


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Smooth noise of two scales between random colours."""
    coarse, fine = (
        Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for n in (4, 20)
    )
    return Image.blend(coarse, fine, 0.3)
