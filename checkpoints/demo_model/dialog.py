"""Conversations, and how things in pictures are called, asked for and answered in one language."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from checkpoints.demo_model.phrases import Phrases, as_typed, choose
from checkpoints.demo_model.scenes import CELLS, OTHERS, Shape

# What stands between two of these marks is written letter by letter, whatever longer pieces the vocabulary has: a word
# that was read or reversed is then spelt rather than recalled. The marks themselves are in no text.
SPELL = "\ue000"
SIDES = ("left", "right", "above", "below")
# What accuracy is counted by, and what it counts beside the task of that name.
_GROUPS = """count: count_colour; colour: either colour_at which background text_colour; size: bigger bigger_which;
    yes or no: exists is_it is_colour; relation: relative beside; where: at; json: json_shapes json_count;
    two facts: same_colour both_colours two_colours where_colour; compare: differ same more which_has nth nth_count;
    follow-up: follow_colour follow_where follow_what_colour; crowd: too_many; unknown shape: unknown"""
_PAIRS = (entry.split(": ") for entry in _GROUPS.split(";"))
_COUNTED = {task: group.strip() for group, tasks in _PAIRS for task in tasks.split()}


def plain(answer: str) -> str:
    """The answer as a user reads it."""
    return answer.replace(SPELL, "")


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question and its answer. `images` index the conversation's images shown in this turn.

    `task` is what accuracy is counted by. `check` is how an answer is judged: "exact", "json" (the same value) or
    "scope" (says in any words that it is the small demo model and that a real checkpoint is needed).
    """

    task: str
    question: str
    answer: str
    check: str = "exact"
    images: tuple[int, ...] = ()
    image_last: bool = False


@dataclasses.dataclass(frozen=True)
class Conversation:
    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...] = ()
    system: str | None = None

    def messages(self) -> list[dict[str, Any]]:
        """The prompt for the last turn's answer, in the public API's message format."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            text = {"type": "text", "text": turn.question}
            shown = [{"type": "image", "image": self.images[i]} for i in turn.images]
            messages.append({"role": "user", "content": [text, *shown] if turn.image_last else [*shown, text]})
            messages.append({"role": "assistant", "content": plain(turn.answer)})
        return messages[:-1]


# Conversations that begin with the same images and system text, so that these are computed once.
Group = list[Conversation]


class Speaker:
    """Names of things, questions and answers in one language."""

    def __init__(self, phrases: Phrases, rng: np.random.Generator, held_out: bool) -> None:
        self.phrases, self.rng, self.held_out = phrases, rng, held_out
        self.chinese, self.words = phrases.chinese, phrases.words
        names = (self.words[name] if self.chinese else () for name in ("shapes", "colours"))
        self._kinds, self._colours = (dict(name.rsplit(" ", 1) for name in entries) for entries in names)

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
        """ "a red circle and a blue star"."""
        return self.all_of([self.one(s.kind, s.colour) for s in shapes])

    def place(self, cell: tuple[str, str], asked: bool = False) -> str:
        """ "at the top left", or "top left" as it is `asked` for."""
        return self.words["spots" if asked and not self.chinese else "places"][CELLS.index(cell)]

    def side(self, side: str) -> str:
        """ "left of", "左边"."""
        return self.words["sides"][SIDES.index(side)]

    def ask(self, task: str, said: str = "", *, text: str = "", check: str = "exact", **slots: Any) -> Turn:
        """The question `task` and the answer `said` (by default of the same name) with the same slots filled, or the
        answer `text`."""
        question = as_typed(self.rng, self.phrases.pick(task, self.rng, self.held_out, look=True, **slots))
        group = _COUNTED[said] if said in ("too_many", "unknown") else _COUNTED.get(task, task)
        return self.turn(group, question, text or self.phrases.say(said or task, **slots), check)

    def turn(self, group: str, question: str, answer: str, check: str = "exact") -> Turn:
        """Counted with the others about pictures in this language."""
        return Turn(f"image {group}{' zh' if self.chinese else ''}", question, answer, check)

    def how_many(self, task: str, count: int, kind: str = "shape", colour: str = "", **slots: Any) -> Turn:
        """How many of a kind, of a colour, or of both."""
        one, many = (self.name(kind, colour, n) if colour else self.kind(kind, n) for n in (False, True))
        any_word = kind == "shape" and not colour and not self.held_out
        slots |= dict(thing=choose(self.rng, self.words["things"]) if any_word else many)
        if count > 5:
            return self.ask(task, "too_many", **slots)
        said = "count_none" if count == 0 else "count_one" if count == 1 else "count"
        return self.ask(task, said, number=self.words["numbers"][count], what=one if count == 1 else many, **slots)
