"""How things in pictures are called, asked for and answered in one language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from checkpoints.demo_model.dialog import Turn
from checkpoints.demo_model.phrases import Phrases, as_typed
from checkpoints.demo_model.scenes import CELLS, OTHERS, Shape

SIDES = ("left", "right", "above", "below")


class Speaker:
    """Names of things, questions and answers in one language."""

    def __init__(self, phrases: Phrases, rng: np.random.Generator, held_out: bool, whole: bool = False) -> None:
        self.phrases, self.rng, self.held_out, self.whole = phrases, rng, held_out, whole  # `whole`: never in one word
        self.chinese, self.words = phrases.chinese, phrases.words
        self._kinds, self._colours = (
            dict(word.rsplit(" ", 1) for word in self.words[name]) if self.chinese else {}
            for name in ("shapes", "colours")
        )

    def kind(self, kind: str, plural: bool = False) -> str:
        """ "circle", "圆形"; "shape" for any, or one that the model does not know."""
        if self.chinese:
            return self._kinds["other" if kind in OTHERS else kind] if kind != "shape" else "图形"
        return (kind + ("es" if kind == "cross" else "s")) if plural else kind

    def colour(self, colour: str) -> str:
        return self._colours[colour] if self.chinese else colour

    def name(self, kind: str, colour: str, plural: bool = False) -> str:
        """ "red circle", "红色的圆形"."""
        if kind in OTHERS and not self.chinese:
            return f"{colour} shape that I do not know"
        return f"{self.colour(colour)}{'的' if self.chinese else ' '}{self.kind(kind, plural)}"

    def one(self, kind: str, colour: str) -> str:
        """ "a red circle", "一个红色的圆形"."""
        name = self.name(kind, colour)
        return "一个" + name if self.chinese else ("an " if name[0] in "aeiou" else "a ") + name

    def facts(self, shape: Shape) -> dict[str, str]:
        """What there is to say about a shape, as slots of questions and answers."""
        kind, colour = shape.kind, shape.colour
        name, slots = self.name(kind, colour), dict(kind=self.kind(kind), colour=self.colour(colour))
        return slots | dict(name=name, full=name, one=self.one(kind, colour), place=self.place(shape.cell))

    def all_of(self, parts: Sequence[str]) -> str:
        """ "a, b and c"."""
        comma, last = ("、", "和") if self.chinese else (", ", " and ")
        return comma.join(parts[:-1]) + last + parts[-1] if len(parts) > 1 else parts[0]

    def listing(self, shapes: Sequence[Shape]) -> str:
        return self.all_of([self.one(s.kind, s.colour) for s in shapes])

    def place(self, cell: tuple[str, str], asked: bool = False) -> str:
        return self.words["spots" if asked else "places"][CELLS.index(cell)]

    def number(self, count: int) -> str:
        """A small count in words, as it stands before a noun."""
        return self.words["numbers"][count]

    def side(self, side: str) -> str:
        return self.words["sides"][SIDES.index(side)]

    def ask(
        self,
        task: str,
        said: str = "",
        group: str = "",
        *,
        text: str = "",
        short: str = "",
        check: str = "exact",
        **slots: Any,
    ) -> Turn:
        """The question `task` and the answer `said` (by default of the same name) with the same slots filled, or the
        answer `text`. Accuracy is counted by `group`; at times the answer is wanted in one word, `short`."""
        question = as_typed(self.rng, self.phrases.pick(task, self.rng, self.held_out, look=True, **slots))
        answer = text or self.phrases.say(said or task, **slots)
        if short and not self.whole and self.rng.random() < 0.12:
            question += ("" if self.chinese else " ") + self.phrases.pick("short", self.rng, self.held_out)
            answer = short[0].upper() + short[1:]
        return Turn(f"image {group or task}{' zh' if self.chinese else ''}", question, answer, check)

    def how_many(self, task: str, count: int, kind: str, colour: str = "", **slots: Any) -> Turn:
        """How many of a kind, of a colour, or of both."""
        if count > 5:
            return self.ask(task, "too_many", "crowd", **slots)
        what = self.name(kind, colour, count != 1) if colour else self.kind(kind, count != 1)
        said = "count_none" if count == 0 else "count_one" if count == 1 else "count"
        return self.ask(task, said, "count", short=str(count), number=self.number(count), what=what, **slots)
