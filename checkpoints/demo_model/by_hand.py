"""The test set written by hand: reads by_hand.txt, draws its pictures in styles of their own, and judges answers."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from checkpoints.demo_model.phrases import FOLDER, bare, sections
from checkpoints.demo_model.scenes import BACKGROUNDS, COLOURS, Shape, mask, rims

_COLOURS = {**COLOURS, "teal": (0, 140, 140)}
_CANNOT = "demo model / do not know / don't know / cannot / can't / more than five / 演示模型 / 不认识 / 超过五个"


@dataclasses.dataclass(frozen=True)
class Question:
    """`picture` describes one, or is empty. `follows`: goes on after the question before it."""

    text: str
    expected: str
    picture: str = ""
    follows: bool = False

    @property
    def task(self) -> str:
        """What accuracy is counted by: the style of the picture, and the language."""
        chinese = re.search("[\u4e00-\u9fff]", self.text)
        return f"by hand {self.picture.split(' |')[0] or 'text'}{' zh' if chinese else ''}"

    def right(self, answer: str) -> bool:
        """Whether `answer` has every part that is wanted, in one of its forms, and none that is not."""
        wanted, _, unwanted = self.expected.replace("CANNOT", _CANNOT).partition("!")
        parts = [any(_says(answer, form) for form in part.split("/")) for part in wanted.split("&")]
        return all(parts) and not any(_says(answer, form) for form in unwanted.split("/") if form.strip())


def _says(answer: str, form: str) -> bool:
    """Whether a word or phrase stands in the answer, whole where its script has spaces."""
    edge, form = "[a-z0-9]", form.strip().lower()
    start, end = f"(?<!{edge})" if re.match(edge, form) else "", f"(?!{edge})" if re.search(f"{edge}$", form) else ""
    return re.search(start + re.escape(form) + end, answer.lower()) is not None


def questions() -> list[Question]:
    """All questions, in the order of the file."""
    return [
        Question(text, expected, picture.removeprefix("no picture"), entry.startswith("+ "))
        for picture, entries in sections(FOLDER / "by_hand.txt").items()
        for entry in entries.split(" // ")
        for text, _, expected in [entry.removeprefix("+ ").partition(" :: ")]
    ]


SENTENCES = frozenset(bare(question.text) for question in questions())


def draw(picture: str) -> Image.Image:
    """The picture of a description "style | background | width x height | shapes"; the same each time."""
    style, background, size, things = (part.strip() for part in picture.split("|"))
    width, height = (int(side) for side in size.split("x"))
    rng = np.random.default_rng([ord(char) for char in picture])
    image = Image.new("RGB", (width, height), BACKGROUNDS[background])
    if style == "gradient":  # light falls from one corner
        fade = np.add.outer(np.linspace(0, 0.1, height), np.linspace(0, 0.1, width))[..., None]
        image = Image.fromarray((np.asarray(image) * (1 - fade)).astype(np.uint8))
    if things.startswith("text "):
        _, word, colour = things.split()
        font = ImageFont.load_default(int(min(0.5 * height, 1.5 * width / len(word))))
        ImageDraw.Draw(image).text((width / 2, height / 2), word, font=font, fill=_COLOURS[colour], anchor="mm")
    else:
        for thing in things.split(";"):
            colour, kind, x, y, radius, *angle = thing.split()
            place = (int(x) / 100, int(y) / 100, int(radius) / 100)
            _STYLES[style](image, Shape(kind, colour, *place, *map(float, angle)), rng)
    return _photographed(image, rng) if style == "paper" else image


def _filled(image: Image.Image, shape: Shape, rng: np.random.Generator) -> None:
    """Flat colour with hard, jagged edges."""
    image.paste(_COLOURS[shape.colour], mask=mask(shape, image.size))


def _pencilled(image: Image.Image, shape: Shape, rng: np.random.Generator) -> None:
    """A line drawn twice by an unsteady hand, not filled."""
    for points in rims(shape, image.size) * 2:
        steps = np.linspace(0, 1, 8, endpoint=False)[:, None]
        ends = zip(np.array(points), np.roll(points, -1, 0), strict=True)
        line = np.concatenate([a + (b - a) * steps for a, b in ends])
        shake = np.cumsum(rng.normal(0, 0.25, line.shape), axis=0)
        shake -= np.linspace(0, 1, len(shake))[:, None] * shake[-1]
        path = [(float(x), float(y)) for x, y in np.concatenate([line + shake, line[:1]])]
        ImageDraw.Draw(image).line(path, fill=_COLOURS[shape.colour], width=4, joint="curve")


def _shaded(image: Image.Image, shape: Shape, rng: np.random.Generator) -> None:
    """Lit from its upper left like a ball, above a soft shadow."""
    inside, (width, height) = mask(shape, image.size), image.size
    shadow = Image.new("L", image.size)
    shadow.paste(inside, (5, 6))
    image.paste((90, 90, 90), mask=shadow.filter(ImageFilter.GaussianBlur(5)).point(lambda value: value // 3))
    radius = shape.size * min(image.size)
    y, x = np.ogrid[:height, :width]
    away = np.hypot(x - shape.x * width + 0.4 * radius, y - shape.y * height + 0.4 * radius) / (1.8 * radius)
    light = np.clip(1.25 - 0.55 * away, 0.6, 1.25)[..., None]
    colours = np.clip(np.array(_COLOURS[shape.colour]) * light, 0, 255).astype(np.uint8)
    image.paste(Image.fromarray(colours), mask=inside)


def _photographed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """As a sheet of paper on a table: seen at a slant, with grain, uneven light and a little blur."""
    width, height = image.size
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)])
    slant = (corners + rng.uniform(-0.04, 0.04, (4, 2)) * min(image.size)).ravel().tolist()
    bicubic, table = Image.Resampling.BICUBIC, (118, 96, 78)
    slanted = image.transform(image.size, Image.Transform.QUAD, slant, bicubic, fillcolor=table)
    slanted = slanted.filter(ImageFilter.GaussianBlur(0.8))
    grain = rng.normal(0, 6, (height, width))
    light = np.add.outer(np.linspace(1.0, 0.85, height), np.linspace(0.0, -0.15, width))
    return Image.fromarray(np.clip(np.asarray(slanted) * light[..., None] + grain[..., None], 0, 255).astype(np.uint8))


_STYLES = {"plain": _filled, "outline": _pencilled, "gradient": _shaded, "paper": _filled}
