"""Scenes to pixels, the label of every soft token, and pictures that are no scenes at all."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from checkpoints.demo_model import scenes
from checkpoints.demo_model.grammar import choose
from checkpoints.demo_model.scenes import BACKGROUNDS, COLOURS, LABEL_GRID, SHAPES, Scene, Text

# Labels of a soft token: 0 is background, then the shapes; colours; characters of a printed text.
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
LABEL_SIZES = (1 + len(SHAPES) + 1, 1 + len(COLOURS), 1 + len(CHARACTERS))  # the last shape label: a letter
_FINE = 48  # labels are found on a grid three times as fine, so that small shapes are not missed
_SUPERSAMPLE = 2


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The picture: colours jittered, edges smooth, at times outlined, noisy, blurred or unevenly lit."""
    width, height = scene.size
    scale = _SUPERSAMPLE if scene.shapes and max(scene.size) < 400 else 1
    image = Image.new("RGB", (width * scale, height * scale), _jitter(rng, BACKGROUNDS[scene.background], 5))
    draw = ImageDraw.Draw(image)
    ground = image.getpixel((0, 0))
    border = rng.random() < 0.25
    for shape in scene.shapes:
        points = scenes.outline(shape, image.size)
        fill = _jitter(rng, COLOURS[shape.colour], 12)
        edge = tuple(int(c * 0.55) for c in fill) if border else fill
        draw.polygon(points, fill=fill, outline=edge, width=max(1, int(0.06 * shape.size * min(image.size))))
        if shape.kind == "ring":
            x, y, r = shape.x * image.width, shape.y * image.height, scenes.RING_HOLE * shape.size * min(image.size)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=ground)
    if scale > 1:
        image = image.reduce(scale)
    if scene.text:
        _print(image, scene.text, _jitter(rng, COLOURS[scene.text.colour], 10))
    kind = rng.random()
    if kind < 0.25:
        image = _noisy(image, rng)
    elif kind < 0.32:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0))))
    return image


def _jitter(rng: np.random.Generator, colour: tuple[int, int, int], amount: int) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255))


@functools.lru_cache(maxsize=1)
def _noise_tile() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (900, 900, 1)).astype(np.float32)


def _noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Grain, and a slight gradient of light."""
    top, left = rng.integers(0, 200, 2)
    grain = _noise_tile()[top : top + image.height, left : left + image.width] * rng.uniform(1, 7)
    light = 1 + np.linspace(-1, 1, image.width, dtype=np.float32)[None, :, None] * rng.uniform(-0.06, 0.06)
    return Image.fromarray(np.clip(np.asarray(image, np.float32) * light + grain, 0, 255).astype(np.uint8))


def _text_layout(text: Text, size: tuple[int, int]) -> tuple[object, tuple[float, float, float, float]]:
    """The font at the size that fits, and the unrotated box of the text in pixels."""
    probe = scenes.font(text.font, 64)
    left, top, right, bottom = probe.getbbox(text.content)
    points = 64 * min(text.width * size[0] / (right - left), 0.42 * size[1] / (bottom - top))
    font = scenes.font(text.font, max(8, int(points)))
    left, top, right, bottom = font.getbbox(text.content)
    x, y = text.x * size[0] - (left + right) / 2, text.y * size[1] - (top + bottom) / 2
    return font, (x + left, y + top, x + right, y + bottom)


def _print(image: Image.Image, text: Text, colour: tuple[int, ...]) -> None:
    font, box = _text_layout(text, image.size)
    left, top, *_ = font.getbbox(text.content)
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).text((box[0] - left, box[1] - top), text.content, font=font, fill=255)
    if text.angle:
        mask = mask.rotate(text.angle, Image.Resampling.BILINEAR, center=(text.x * image.width, text.y * image.height))
    image.paste(colour, mask=mask)


def labels(scene: Scene) -> np.ndarray:
    """What each soft token shows: uint8[3, 256] of shape, colour and character (see LABEL_SIZES).

    They only help to train the vision tower: the heads that predict them are thrown away.
    """
    size = (_FINE, _FINE)
    planes = [Image.new("L", size) for _ in range(3)]
    draws = [ImageDraw.Draw(plane) for plane in planes]
    stretch = np.array(size) / np.array(scene.size)
    for shape in scene.shapes:
        points = [(x * stretch[0], y * stretch[1]) for x, y in scenes.outline(shape, scene.size)]
        draws[0].polygon(points, fill=1 + SHAPES.index(shape.kind))
        draws[1].polygon(points, fill=1 + list(COLOURS).index(shape.colour))
    if scene.text:
        font, box = _text_layout(scene.text, scene.size)
        total = font.getlength(scene.text.content)
        for i, char in enumerate(scene.text.content):
            start, end = (
                box[0] + (box[2] - box[0]) * font.getlength(scene.text.content[:n]) / total for n in (i, i + 1)
            )
            corners = [start * stretch[0], box[1] * stretch[1], end * stretch[0] - 0.01, box[3] * stretch[1]]
            colour = list(COLOURS).index(scene.text.colour)
            for draw, value in zip(draws, (LABEL_SIZES[0] - 1, 1 + colour, 1 + CHARACTERS.index(char)), strict=True):
                draw.rectangle(corners, fill=value)
    fine = np.stack([np.asarray(plane) for plane in planes])
    cells = fine.reshape(3, LABEL_GRID, 3, LABEL_GRID, 3).transpose(0, 1, 3, 2, 4).reshape(3, LABEL_GRID**2, 9)
    return cells[:, :, 4]  # the middle of the cell decides


def texture(rng: np.random.Generator) -> Image.Image:
    """A picture that is no drawn scene: noise, gradients, stripes, clouds, landscapes, crowds of lines."""
    width, height = scenes.canvas_size(rng)
    kind = choose(rng, (_static, _gradient, _stripes, _clouds, _landscape, _scribble, _mosaic))
    return kind(rng, width, height)


def _static(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    step = int(rng.integers(1, 8))
    grid = rng.integers(0, 256, (height // step + 1, width // step + 1, 1 if rng.random() < 0.3 else 3), np.uint8)
    image = Image.fromarray(np.broadcast_to(grid, (*grid.shape[:2], 3)).copy())
    return image.resize((width, height), Image.Resampling.NEAREST)


def _blend(rng: np.random.Generator, amount: np.ndarray) -> Image.Image:
    """Colours along two random ends; `amount` in [0, 1]."""
    ends = rng.integers(0, 256, (2, 3)).astype(np.float32)
    grain = _noise_tile()[: amount.shape[0], : amount.shape[1]] * 3
    mixed = ends[0] + (ends[1] - ends[0]) * amount[..., None].astype(np.float32) + grain
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _gradient(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    y, x = np.ogrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = x * np.cos(angle) + y * np.sin(angle) if rng.random() < 0.6 else np.hypot(x - rng.random(), y - rng.random())
    return _blend(rng, (ramp - ramp.min()) / np.ptp(ramp))


def _stripes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    y, x = np.ogrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    angle, count = rng.uniform(0, np.pi), rng.uniform(4, 25)
    wave = np.sin(2 * np.pi * count * (x * np.cos(angle) + y * np.sin(angle)))
    if rng.random() < 0.4:
        wave = wave * np.sin(2 * np.pi * count * (y * np.cos(angle) - x * np.sin(angle)))
    return _blend(rng, (np.sign(wave) if rng.random() < 0.5 else wave) / 2 + 0.5)


def _cloud(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Smooth noise in [0, 1] of several scales."""
    total = np.zeros((height, width), np.float32)
    for octave in (3, 6, 13, 28):
        small = Image.fromarray(rng.random((octave, octave), np.float32))
        total += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) / octave**0.8
    return (total - total.min()) / np.ptp(total)


def _clouds(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return _blend(rng, _cloud(rng, width, height))


def _landscape(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Sky, hills and textured ground, the way a photograph is built."""
    image = np.asarray(_clouds(rng, width, height)).copy()
    for _ in range(int(rng.integers(1, 4))):
        ridge = _cloud(rng, width, 4)[0] * height * rng.uniform(0.1, 0.5) + height * rng.uniform(0.3, 0.7)
        ground = np.asarray(_clouds(rng, width, height))
        below = np.arange(height)[:, None] > ridge[None]
        image[below] = ground[below]
    return Image.fromarray(image)


def _scribble(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    image = _clouds(rng, width, height) if rng.random() < 0.6 else Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(15, 60))):
        points = [(float(x * width), float(y * height)) for x, y in rng.random((int(rng.integers(2, 6)), 2))]
        draw.line(points, fill=tuple(int(c) for c in rng.integers(0, 256, 3)), width=int(rng.integers(1, 6)))
    return image


def _mosaic(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Many overlapping blurred patches, like an out-of-focus photograph."""
    image = _clouds(rng, width, height)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(25, 80))):
        x, y, r = rng.random() * width, rng.random() * height, rng.uniform(0.02, 0.16) * width
        box = (x - r, y - r * rng.uniform(0.3, 1), x + r, y + r)
        fill = tuple(int(c) for c in rng.integers(0, 256, 3))
        (draw.ellipse if rng.random() < 0.7 else draw.rectangle)(box, fill=fill)
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 6))))
