"""Questions about drawn scenes, in either language; every answer is computed from the scene."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from checkpoints.demo_model import scenes
from checkpoints.demo_model.dialog import Turn, spell
from checkpoints.demo_model.phrases import Phrases, as_typed, choose, uncapital
from checkpoints.demo_model.scenes import CELLS, COLOURS, LARGER, OTHERS, SHAPES, Scene, Shape

_SIDE_MARGIN = 0.12  # of the canvas: shapes nearer than this are not asked to be left of or above each other
_SIDES = ("left", "right", "above", "below")
_CORNERS = (CELLS[0], CELLS[2], CELLS[4], CELLS[6], CELLS[8])  # no other reading of "left" or "top" contains these
_KEYS = (("shape", "color"), ("shape", "colour"), ("color", "shape"), ("type", "color"), ("kind", "colour"))
_COUNT_KEYS = ("count", "number", "shapes", "total", "n")


class Speaker:
    """Names of things in one language."""

    def __init__(self, phrases: Phrases, rng: np.random.Generator, held_out: bool) -> None:
        self.phrases, self.rng, self.held_out = phrases, rng, held_out
        self.chinese, self.say, self.words = phrases.chinese, phrases.say, phrases.words
        named = (
            [dict(w.rsplit(" ", 1) for w in self.words[n]) for n in ("shapes", "colours")] if self.chinese else ({}, {})
        )
        self._kinds, self._colours = named

    def kind(self, kind: str, plural: bool = False) -> str:
        """ "circle", "圆形"."""
        if self.chinese:
            return self._kinds["other" if kind in OTHERS else kind]
        return (kind + ("es" if kind == "cross" else "s")) if plural else kind

    def colour(self, colour: str) -> str:
        return self._colours[colour] if self.chinese else colour

    def name(self, shape: Shape, plural: bool = False) -> str:
        """ "red circle", "红色的圆形"."""
        if shape.kind in OTHERS and not self.chinese:
            return f"{shape.colour} shape that I do not know"
        return f"{self.colour(shape.colour)}{'的' if self.chinese else ' '}{self.kind(shape.kind, plural)}"

    def one(self, shape: Shape) -> str:
        """ "a red circle", "一个红色的圆形"."""
        name = self.name(shape)
        return "一个" + name if self.chinese else ("an " if name[0] in "aeiou" else "a ") + name

    def all_of(self, parts: Sequence[str]) -> str:
        """ "a, b and c"."""
        comma, last = ("、", "和") if self.chinese else (", ", " and ")
        return comma.join(parts[:-1]) + last + parts[-1] if len(parts) > 1 else parts[0]

    def listing(self, shapes: Sequence[Shape]) -> str:
        return self.all_of([self.one(shape) for shape in shapes])

    def noun(self, plural: bool) -> str:
        return "图形" if self.chinese else "shapes" if plural else "shape"

    def place(self, cell: tuple[str, str], asked: bool = False) -> str:
        return self.words["spots" if asked else "places"][CELLS.index(cell)]

    def side(self, side: str) -> str:
        return self.words["sides"][_SIDES.index(side)]

    def number(self, count: int) -> str:
        """A small count in words, as it stands before a noun."""
        return self.words["numbers"][count]

    def turn(self, task: str, answer: str, group: str = "", check: str = "exact", **slots: object) -> Turn:
        """The question for `task` with its answer; accuracy is counted by `group`."""
        question = as_typed(self.rng, self.phrases.pick(task, self.rng, self.held_out, look=True, **slots))
        return Turn(f"image {group or task}{' zh' if self.chinese else ''}", question, answer, check)

    def counted(self, count: int, thing: Callable[[bool], str]) -> str:
        name = "count_none" if count == 0 else "count_one" if count == 1 else "count"
        return self.say(name, number=self.number(count), thing=thing(count != 1))


class Asker(Speaker):
    """Makes turns about one scene; a method returns None if the scene is unfit for its question."""

    def __init__(
        self, scene: Scene, phrases: Phrases, rng: np.random.Generator, held_out: bool, whole: bool = False
    ) -> None:
        super().__init__(phrases, rng, held_out)
        self.scene, self.whole = scene, whole  # `whole`: no answers in one word
        self.known = [s for s in scene.shapes if s.kind in SHAPES]
        self.kinds = Counter(s.kind for s in scene.shapes)
        self.colours_seen = Counter(s.colour for s in scene.shapes)
        self.unique = [s for s in self.known if self.kinds[s.kind] == 1]  # their kind alone names them
        names = Counter((s.kind, s.colour) for s in scene.shapes)
        self.named = [s for s in self.known if names[s.kind, s.colour] == 1]
        self.crowded = len(scene.shapes) > 5

    def shortened(self, turn: Turn, answer: str) -> Turn:
        """The same question with the request for one word, one time in eight."""
        if self.whole or self.rng.random() > 0.12:
            return turn
        question = turn.question + ("" if self.chinese else " ") + self.phrases.pick("short", self.rng, self.held_out)
        return dataclasses.replace(turn, question=question, answer=answer[0].upper() + answer[1:])

    def called(self, shape: Shape) -> str:
        """ "circle" if there is one, "red circle" if there are more or by chance."""
        alone = self.rng.random() < 0.6 and self.kinds[shape.kind] == 1
        return self.kind(shape.kind) if alone else self.name(shape)

    # -- the whole scene -----------------------------------------------------------------------------------------------

    def _all(
        self, task: str, answer: Callable[[], str], group: str = "", check: str = "exact", **slots: object
    ) -> Turn:
        """A question about all shapes, which the model answers for up to five."""
        if self.crowded:
            return self.turn(task, self.say("too_many"), "crowd", **slots)
        return self.turn(task, answer(), group, check, **slots)

    def what(self) -> Turn:
        if not self.known:
            return self.turn("what", self.say("unknown"), "unknown shape")
        return self._all("what", lambda: self.say("what", shapes=self.listing(self.scene.shapes)))

    def count(self) -> Turn:
        turn = self._all("count", lambda: self.counted(len(self.scene.shapes), self.noun))
        return turn if self.crowded else self.shortened(turn, str(len(self.scene.shapes)))

    def describe(self) -> Turn:
        parts = [self.say("describe_part", one=self.one(s), place=self.place(s.cell)) for s in self.scene.shapes]
        slots = dict(
            things="shapes" if len(parts) > 1 else "shape",
            background=self.colour(self.scene.background),
            parts=self.all_of([part[0].lower() + part[1:] for part in parts]),
        )
        return self._all("describe", lambda: self.say("describe", number=self.number(len(parts)), **slots))

    def listed(self) -> Turn:
        return self._all(
            "listed", lambda: "\n".join(f"{i}. {self.name(s)}" for i, s in enumerate(self.scene.shapes, 1))
        )

    def json(self) -> Turn:
        """The scene as JSON: with given keys, at times with the place, or only the count."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.25:
            key = choose(rng, ("数量", *_COUNT_KEYS) if self.chinese else _COUNT_KEYS)
            answer = json.dumps({key: len(self.scene.shapes)}, ensure_ascii=False)
            return self._all("json_count", lambda: answer, "json", "json", key=choose(rng, (key, f'"{key}"')))
        own = ("形状", "颜色") if self.chinese else _KEYS[0]
        keys = own if kind < 0.5 or (self.chinese and kind < 0.75) else choose(rng, _KEYS)
        if kind > 0.85:
            keys = (*keys, "position")
        values = {"position": lambda s: self.place(s.cell, asked=True)}
        values |= dict.fromkeys(("color", "colour", "颜色"), lambda s: self.colour(s.colour))
        default = lambda s: self.kind(s.kind) if s.kind in SHAPES else ("不认识" if self.chinese else "unknown")  # noqa: E731
        rows = [{key: values.get(key, default)(s) for key in keys} for s in self.scene.shapes]
        quote = '"' if rng.random() < 0.5 else ""
        asked = self.all_of([f"{quote}{key}{quote}" for key in keys])
        task = "json" if kind < 0.5 else "json_shapes"
        return self._all(task, lambda: json.dumps(rows, ensure_ascii=False), "json", "json", keys=asked)

    def background(self) -> Turn:
        return self.turn("background", self.say("background", colour=self.colour(self.scene.background)), "colour")

    def colours(self) -> Turn | None:
        seen = [self.colour(colour) for colour in dict.fromkeys(s.colour for s in self.scene.shapes)]
        if len(seen) > 5:
            return None
        name = "colours_one" if len(seen) == 1 else "colours"
        return self.turn("colours", self.say(name, number=self.number(len(seen)), colours=self.all_of(seen)))

    # -- kinds, colours and places -------------------------------------------------------------------------------------

    def count_kind(self) -> Turn:
        """How many of a kind, of a colour, or of both."""
        rng, by, task = self.rng, self.rng.random(), "count_kind"
        there = rng.random() < 0.7
        if by < 0.45 or not self.known:
            kind = choose(rng, self.known).kind if there and self.known else choose(rng, SHAPES)
            count, thing = self.kinds[kind], lambda plural: self.kind(kind, plural)
        elif by < 0.85:
            colour = choose(rng, tuple(self.colours_seen)) if there else choose(rng, tuple(COLOURS))
            noun = ("的图形", "的图形") if self.chinese else (" shape", " shapes")
            count, thing = self.colours_seen[colour], lambda plural: self.colour(colour) + noun[plural]
            task = "count_colour" if by > 0.65 else task
        else:
            shape = choose(rng, self.known)
            count = sum((s.kind, s.colour) == (shape.kind, shape.colour) for s in self.scene.shapes)
            thing = lambda plural: self.name(shape, plural)  # noqa: E731
        if count > 5:
            return self.turn("count", self.say("too_many"), "crowd")
        slots = {"colour": self.colour(colour)} if task == "count_colour" else {"thing": thing(True)}
        return self.shortened(self.turn(task, self.counted(count, thing), "count", **slots), str(count))

    def colour_of(self) -> Turn | None:
        if not self.unique:
            return None
        shape = choose(self.rng, self.unique)
        kind, colour = self.kind(shape.kind), self.colour(shape.colour)
        return self.shortened(self.turn("colour", self.say("colour", kind=kind, colour=colour), kind=kind), colour)

    def which(self) -> Turn | None:
        if not (options := [s for s in self.known if self.colours_seen[s.colour] == 1]):
            return None
        shape = choose(self.rng, options)
        kind, colour = self.kind(shape.kind), self.colour(shape.colour)
        return self.shortened(
            self.turn("which", self.say("which", kind=kind, colour=colour), "colour", colour=colour), kind
        )

    def where(self) -> Turn | None:
        if not self.named:
            return None
        shape = choose(self.rng, self.named)
        name = self.called(shape)
        return self.turn("where", self.say("where", name=name, place=self.place(shape.cell)), name=name)

    def where_colour(self) -> Turn | None:
        if not self.unique:
            return None
        shape = choose(self.rng, self.unique)
        slots = dict(kind=self.kind(shape.kind), colour=self.colour(shape.colour), place=self.place(shape.cell))
        return self.turn("where_colour", self.say("where_colour", **slots), "two facts", kind=slots["kind"])

    def two_colours(self) -> Turn | None:
        if len(self.unique) < 2:
            return None
        first, second = (self.unique[int(i)] for i in self.rng.permutation(len(self.unique))[:2])
        names = dict(a=self.kind(first.kind), b=self.kind(second.kind))
        colours = dict(first=self.colour(first.colour), second=self.colour(second.colour))
        return self.turn("two_colours", self.say("two_colours", **names, **colours), "two facts", **names)

    def at(self) -> Turn:
        filled = [s.cell for s in self.scene.shapes if s.cell in _CORNERS]
        cell = choose(self.rng, filled) if filled and self.rng.random() < 0.7 else choose(self.rng, _CORNERS)
        shapes, place = [s for s in self.scene.shapes if s.cell == cell], self.place(cell)
        answer = (
            self.say("at", shapes=self.listing(shapes), place=place) if shapes else self.say("at_nothing", place=place)
        )
        ending = choose(self.rng, ("", "", " corner")) if cell != CELLS[4] and not self.chinese else ""
        return self.turn("at", answer, "where", place=self.place(cell, asked=True) + ending)

    def extreme(self) -> Turn | None:
        """The largest, smallest, leftmost, …, where one clearly is."""
        shapes = self.scene.shapes
        if len(shapes) < 2:
            return None
        by_y, by_size = (sorted(shapes, key=key) for key in (lambda s: s.y, lambda s: -s.size))
        clear = [b.y - a.y > _SIDE_MARGIN / 2 for a, b in (by_y[:2], by_y[-2:])]
        big, small = (a.size / b.size >= LARGER for a, b in (by_size[:2], by_size[-2:]))
        found = [by_size[0] if big else None] * 2 + [by_size[-1] if small else None, shapes[0], shapes[-1]]
        found += [by_y[0] if clear[0] else None, by_y[-1] if clear[1] else None]
        known = [i for i, shape in enumerate(found) if shape in self.known]
        sizes = [i for i in known if i < 3]
        if not known or self.crowded:
            return None
        index = choose(self.rng, sizes if sizes and self.rng.random() < 0.5 else known)
        most = self.words["most"][index]
        answer = self.say("extreme", most=most, name=self.name(found[index]))
        return self.turn("extreme", answer, "where" if index > 2 else "size", most=most)

    # -- yes or no -----------------------------------------------------------------------------------------------------

    def exists(self) -> Turn:
        rng, shapes, form = self.rng, self.known or self.scene.shapes, self.rng.random()
        if form < 0.12 and not self.crowded:
            absent = self.words["absent"]
            name = choose(rng, absent[-4:] if self.held_out else absent[:13])
            return self.turn(
                "exists", self.say("exists_thing", shapes=self.listing(self.scene.shapes)), "yes or no", name=name
            )
        there, shape = rng.random() < 0.5, choose(rng, shapes)
        kind, colour = shape.kind if there or shape.kind in OTHERS else choose(rng, SHAPES), shape.colour
        if kind in OTHERS:
            kind = choose(rng, SHAPES)
        if form < 0.45:  # by kind alone
            name, found = self.kind(kind), [s for s in shapes if s.kind == kind]
        elif form < 0.55:  # by colour alone
            colour = colour if there else choose(rng, tuple(COLOURS))
            name = self.colour(colour) + ("的图形" if self.chinese else " shape")
            found = [s for s in shapes if s.colour == colour]
        else:  # half wrong is the harder question: a kind or a colour of the scene, wrongly joined
            colour = colour if there else choose(rng, (choose(rng, tuple(COLOURS)), choose(rng, shapes).colour))
            name = self.name(Shape(kind, colour, 0, 0, 0))
            found = [s for s in shapes if (s.kind, s.colour) == (kind, colour)]
        if found and found[0].kind in OTHERS:
            return self.background()
        if found:
            answer = self.say("exists_yes", name=self.name(found[0]), place=self.place(found[0].cell))
        else:
            answer = self.say("exists_no", name=name)
        short = ("有" if found else "没有") if self.chinese else "Yes" if found else "No"
        return self.shortened(self.turn("exists", answer, "yes or no", name=name), short)

    def is_colour(self) -> Turn | None:
        if not self.unique:
            return None
        shape = choose(self.rng, self.unique)
        said = shape.colour if self.rng.random() < 0.5 else choose(self.rng, tuple(COLOURS))
        kind = self.kind(shape.kind)
        answer = self.say("is_yes" if said == shape.colour else "is_no", kind=kind, colour=self.colour(shape.colour))
        return self.turn("is_colour", answer, "yes or no", kind=kind, colour=self.colour(said))

    # -- two shapes ----------------------------------------------------------------------------------------------------

    def _pair(self) -> tuple[Shape, Shape] | None:
        if len(self.named) < 2 or self.crowded:
            return None
        first, second = (self.named[int(i)] for i in self.rng.permutation(len(self.named))[:2])
        return first, second

    def relation(self) -> Turn | None:
        if not (pair := self._pair()):
            return None
        a, b = pair
        true = [side for side in _SIDES if _towards(a, b, side) > _SIDE_MARGIN]
        if not true:
            return None
        side = choose(self.rng, true)
        said = side if self.rng.random() < 0.5 else _SIDES[_SIDES.index(side) ^ 1]
        names = dict(a=self.called(a), b=self.called(b))
        answer = self.say("relation_yes" if said == side else "relation_no", side=self.side(side), **names)
        return self.turn("relation", answer, side=self.side(said), **names)

    def relative(self) -> Turn | None:
        if not (pair := self._pair()):
            return None
        a, b = pair
        far, near = sorted((abs(a.x - b.x), abs(a.y - b.y)), reverse=True)
        if far < 1.5 * near or far < _SIDE_MARGIN:
            return None
        side = self.side(max(_SIDES, key=lambda side: _towards(a, b, side)))
        names = dict(a=self.called(a), b=self.called(b))
        return self.turn("relative", self.say("relative", side=side, **names), "relation", **names)

    def beside(self) -> Turn | None:
        """What is left of, right of, above or below a shape."""
        if len(self.scene.shapes) < 2 or not self.named or self.crowded:
            return None
        shape, side = choose(self.rng, self.named), choose(self.rng, _SIDES)
        far = {other: _towards(other, shape, side) for other in self.scene.shapes if other is not shape}
        if any(abs(distance) <= _SIDE_MARGIN for distance in far.values()):
            return None
        found, name = [other for other, distance in far.items() if distance > 0], self.called(shape)
        if not found and self.rng.random() < 0.6:
            return None
        answer = self.say(
            "beside" if found else "beside_nothing",
            side=self.side(side),
            name=name,
            shapes=self.listing(found or [shape]),
        )
        return self.turn("beside", answer, "relation", side=self.side(side), name=name)

    def bigger(self) -> Turn | None:
        """Whether one shape is bigger than another, or which of two is."""
        if not (pair := self._pair()):
            return None
        a, b = pair
        ratio = a.size / b.size
        if 1.08 < max(ratio, 1 / ratio) < LARGER:
            return None
        index, names = int(self.rng.random() * 3), dict(a=self.called(a), b=self.called(b))
        than, same = self.words["bigger"][index], max(ratio, 1 / ratio) < LARGER
        if self.rng.random() < 0.5 and not same:
            name, other = names.values() if (ratio > 1) == (index < 2) else (names["b"], names["a"])
            answer = self.say("bigger_which", name=name, other=other, than=than)
            return self.turn("bigger_which", answer, "size", more=than.removesuffix(" than"), **names)
        yes = (ratio > 1) == (index < 2)
        right = than if yes else self.words["bigger"][0 if ratio > 1 else 2]
        answer = self.say("bigger_same" if same else "bigger_yes" if yes else "bigger_no", than=right, **names)
        return self.turn("bigger", answer, "size", than=than, **names)

    # -- printed text --------------------------------------------------------------------------------------------------

    def read(self) -> Turn | None:
        if not self.scene.text:
            return None
        word = spell(self.scene.text.content)
        return self.shortened(self.turn("read", self.say("read", text=word)), word)

    def text_colour(self) -> Turn | None:
        if not self.scene.text:
            return None
        return self.turn("text_colour", self.say("text_colour", colour=self.colour(self.scene.text.colour)), "colour")

    def describe_text(self) -> Turn | None:
        if not self.scene.text or self.scene.shapes:
            return None
        colours = dict(colour=self.colour(self.scene.text.colour), background=self.colour(self.scene.background))
        answer = self.say("describe_text", text=spell(self.scene.text.content), **colours)
        return self.turn("describe" if self.rng.random() < 0.5 else "what", answer, "describe")

    # -- more than one -------------------------------------------------------------------------------------------------

    def two_facts(self) -> Turn | None:
        """Two questions in one sentence, and both answers."""
        whole = Asker(self.scene, self.phrases, self.rng, self.held_out, whole=True)
        tasks = [_SIMPLE[int(i)] for i in self.rng.permutation(len(_SIMPLE))[:2]]
        if not (first := tasks[0](whole)) or not (second := tasks[1](whole)):
            return None
        links = ("，", "？", "，还有，") if self.chinese else (", and ", " and ", "? And ", ". Also, ")
        link = links[0] if self.held_out else choose(self.rng, links)
        question = first.question.rstrip(" ?.？。") + link
        question += second.question if self.chinese else uncapital(second.question)
        zh = " zh" if self.chinese else ""
        return Turn(f"image two facts{zh}", question, first.answer + ("" if self.chinese else " ") + second.answer)

    def chain(self) -> list[Turn]:
        """A question and follow-ups that lean on it: "it", "and the square?"."""
        options = [self.unique[int(i)] for i in self.rng.permutation(len(self.unique))]
        if not options:
            return [self.what(), self.count()]

        def colour(shape: Shape, task: str, group: str = "follow-up") -> Turn:
            kind = self.kind(shape.kind)
            return self.turn(task, self.say("colour", kind=kind, colour=self.colour(shape.colour)), group, kind=kind)

        if len(options) > 1 and self.rng.random() < 0.5:
            return [colour(options[0], "colour", "colour"), *(colour(s, "follow_colour") for s in options[1:3])]
        shape, kind = options[0], self.kind(options[0].kind)
        where = self.turn("follow_where", self.say("where", name=kind, place=self.place(shape.cell)), "follow-up")
        if len(self.scene.shapes) > 1:
            return [colour(shape, "colour", "colour"), where]
        rest = [colour(shape, "follow_what_colour"), where]
        return [self.what(), *(rest if self.rng.random() < 0.5 else rest[::-1])]


def _towards(a: Shape, b: Shape, side: str) -> float:
    """How far `a` is on the given side of `b`."""
    return {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[side]


_SIMPLE = (
    *(Asker.count, Asker.count_kind, Asker.colour_of, Asker.background, Asker.which, Asker.where, Asker.extreme),
    *(Asker.at, Asker.colours, Asker.what),
)
# How often each is asked.
_SHAPE_TASKS = {
    Asker.what: 2.0,
    Asker.count: 1.2,
    Asker.count_kind: 2.2,
    Asker.colour_of: 1.5,
    Asker.background: 0.6,
    Asker.which: 1.0,
    Asker.where: 1.5,
    Asker.where_colour: 0.7,
    Asker.two_colours: 0.7,
    Asker.at: 1.0,
    Asker.extreme: 1.5,
    Asker.exists: 2.6,
    Asker.is_colour: 0.8,
    Asker.relation: 1.5,
    Asker.relative: 1.2,
    Asker.beside: 2.0,
    Asker.bigger: 1.5,
    Asker.colours: 1.0,
    Asker.describe: 1.2,
    Asker.listed: 0.6,
    Asker.json: 1.2,
    Asker.two_facts: 2.2,
}
_CROWD_TASKS = {Asker.count: 2.0, Asker.what: 1.5, Asker.describe: 1.0, Asker.json: 0.3, Asker.listed: 0.3}
_CROWD_TASKS |= {Asker.background: 0.4, Asker.colour_of: 1.0, Asker.exists: 1.0, Asker.count_kind: 1.0}
_TEXT_TASKS = {Asker.read: 3.0, Asker.text_colour: 0.5, Asker.background: 0.3, Asker.describe_text: 0.5}
_TWIN_TASKS = (*_SIMPLE, Asker.exists, Asker.relative, Asker.beside, Asker.describe, Asker.where_colour)


def scene_turns(asker: Asker, count: int) -> list[Turn]:
    """`count` questions about the scene, about its text if it has one."""
    table = _TEXT_TASKS if asker.scene.text else _CROWD_TASKS if asker.crowded else _SHAPE_TASKS
    weights = list(itertools.accumulate(table.values()))
    turns: list[Turn] = []
    while len(turns) < count:
        task = list(table)[int(np.searchsorted(weights, asker.rng.random() * weights[-1], side="right"))]
        if turn := task(asker):
            turns.append(turn)
    return turns


def twin_turns(scene: Scene, languages: Sequence[Phrases], rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A question and the wish to hear the answer in the other language: one seed picks the same fact for both."""
    while True:
        task, seed = choose(rng, _TWIN_TASKS), int(rng.integers(1 << 30))
        first, second = (
            task(Asker(scene, phrases, np.random.default_rng(seed), held_out, whole=True)) for phrases in languages
        )
        if first and second:
            zh = " zh" if languages[1].chinese else ""
            own = rng.random() < 0.5  # the wish is in the language of the question, or in that of the answer
            wish = as_typed(rng, languages[1 - own].pick("in_other" if own else "follow_language", rng, held_out))
            asked = Turn(f"image language{zh}", wish, second.answer)
            if rng.random() < 0.35:
                return [dataclasses.replace(asked, question=f"{first.question.strip()} {wish}")]
            return [first, asked]


# -- two pictures -----------------------------------------------------------------------------------------------------


def scene_pair(rng: np.random.Generator, held_out: bool) -> tuple[Scene, Scene]:
    """Two unrelated scenes, or one and the same with one change, or with none."""
    first = scenes.random_scene(rng, held_out, 1 + int(rng.random() * 4))
    if rng.random() < 0.35:
        return first, scenes.random_scene(rng, held_out, 1 + int(rng.random() * 4))
    if rng.random() < 0.15:
        return first, dataclasses.replace(first)
    while not (second := _changed(rng, first)) or second.held_out != held_out:
        first = scenes.random_scene(rng, held_out, 1 + int(rng.random() * 4))
    return (first, second) if rng.random() < 0.5 else (second, first)


def _changed(rng: np.random.Generator, scene: Scene) -> Scene | None:
    """The scene with one shape recoloured, replaced, moved to another cell or taken away; None if that cannot be."""
    old = choose(rng, scene.shapes)
    rest = tuple(s for s in scene.shapes if s is not old)
    kind = int(rng.random() * 4)
    if kind == 0:
        return dataclasses.replace(scene, shapes=rest) if rest else None
    if kind == 1:
        colours = [
            c for c in scenes.allowed_colours(scene.background) if c not in (old.colour, "yellow", "pink", "gray")
        ]
        new = dataclasses.replace(old, colour=choose(rng, colours))
    elif kind == 2:
        new = dataclasses.replace(old, kind=choose(rng, [k for k in SHAPES if k != old.kind]))
    else:
        donor = scenes.random_scene(rng, scene.held_out, 1).shapes[0]
        new = dataclasses.replace(old, x=donor.x, y=donor.y, size=min(old.size, donor.size, 0.16))
        near = [s for s in rest if abs(s.x - new.x) < 0.08 or np.hypot(s.x - new.x, s.y - new.y) < 0.36]
        margin = new.size * min(scene.size) / np.array(scene.size) + 0.01
        inside = margin[0] < new.x < 1 - margin[0] and margin[1] < new.y < 1 - margin[1]
        if near or not inside or new.cell == old.cell:
            return None
    if any((s.kind, s.colour) == (new.kind, new.colour) for s in rest):
        return None
    return dataclasses.replace(scene, shapes=tuple(sorted((*rest, new), key=lambda s: s.x)))


def _keys(scene: Scene) -> set[tuple]:
    return {(s.kind, s.colour, s.cell) for s in scene.shapes}


def _difference(words: Speaker, first: Scene, second: Scene) -> str | None:
    """What was changed, if exactly one thing was."""
    gone = [s for s in first.shapes if (s.kind, s.colour, s.cell) not in _keys(second)]
    new = [s for s in second.shapes if (s.kind, s.colour, s.cell) not in _keys(first)]
    if len(gone) > 1 or len(new) > 1 or not (gone or new):
        return None
    answers = words.phrases.answers
    if not new or not gone:
        return answers["differ_new" if new else "differ_gone"].format(
            first=words.listing(gone or new), second=words.listing(new or gone)
        )
    a, b = gone[0], new[0]
    if a.kind == b.kind and a.cell == b.cell:
        colours = dict(first=words.colour(a.colour), second=words.colour(b.colour))
        return answers["differ_colour"].format(kind=words.kind(a.kind), **colours)
    if (a.kind, a.colour) == (b.kind, b.colour):
        places = dict(first=words.place(a.cell), second=words.place(b.cell))
        return answers["differ_place"].format(name=words.name(a), **places)
    return answers["differ_kind"].format(first=words.one(a), second=words.one(b)) if a.cell == b.cell else None


def compare_turns(pair: tuple[Scene, Scene], words: Speaker, count: int) -> list[Turn]:
    """`count` questions about both pictures; the images are the first two of the conversation."""
    rng, say, turns = words.rng, words.say, list[Turn]()
    difference, alike = _difference(words, *pair), _keys(pair[0]) == _keys(pair[1])
    counts = [len(scene.shapes) for scene in pair]
    ordinals = words.words["ordinals"]

    def add(task: str, answer: str, **slots: object) -> None:
        turns.append(words.turn(task, answer, "compare", **slots))

    while len(turns) < count:
        kind, index = rng.random(), int(rng.random() * 2)
        if kind < 0.35 and alike:
            task = choose(rng, ("same", "same", "differ"))
            add(task, say("same_yes" if task == "same" else "alike", shapes=words.listing(pair[0].shapes)))
        elif kind < 0.35 and difference:
            if rng.random() < 0.35:
                add("same", say("same_no", difference=difference))
            else:
                add("differ", difference[0].upper() + difference[1:] + ("。" if words.chinese else "."))
        elif kind < 0.5 and counts[0] == counts[1]:
            add(
                "more", say("more_same", number=words.number(counts[0]), things="shape" if counts[0] == 1 else "shapes")
            )
        elif kind < 0.5:
            more, fewer = words.number(max(counts)), words.number(min(counts))
            add("more", say("more", nth=ordinals[counts[1] > counts[0]], more=more, fewer=fewer))
        elif kind < 0.7:
            there = [{(s.kind, s.colour) for s in scene.shapes} for scene in pair]
            shape, colour = choose(rng, sorted(there[0] | there[1]))
            key = (shape, choose(rng, tuple(COLOURS)) if rng.random() < 0.15 else colour)
            found, asked = [key in keys for keys in there], Shape(*key, 0, 0, 0)
            answer = "which_both" if all(found) else "which_has" if any(found) else "which_none"
            nth = ordinals[found.index(True)] if any(found) else ""
            add("which_has", say(answer, nth=nth, one=words.one(asked), name=words.name(asked)), name=words.name(asked))
        elif kind < 0.9:
            add("nth", say("what", shapes=words.listing(pair[index].shapes)), nth=ordinals[index])
        else:
            add("nth_count", words.counted(counts[index], words.noun), nth=ordinals[index])
    return turns
