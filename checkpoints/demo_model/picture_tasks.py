"""Questions about drawn scenes, in either language; every answer is computed from the scene."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from checkpoints.demo_model.dialog import SIDES, Speaker, Turn, spell
from checkpoints.demo_model.phrases import Phrases, as_typed, choose, uncapital, weighted
from checkpoints.demo_model.scenes import CELLS, COLOURS, LARGER, SHAPES, Scene, Shape

_SIDE_MARGIN = 0.12  # of the canvas: shapes nearer than this are not asked to be left of or above each other
_KEYS = (("shape", "color"), ("shape", "colour"), ("color", "shape"), ("type", "color"), ("kind", "colour"))
_COUNT_KEYS = ("count", "number", "shapes", "total", "n")


class Asker(Speaker):
    """Makes turns about one scene; a method returns None if the scene is unfit for its question."""

    def __init__(
        self, scene: Scene, phrases: Phrases, rng: np.random.Generator, held_out: bool, whole: bool = False
    ) -> None:
        super().__init__(phrases, rng, held_out, whole)
        self.scene, self.shapes, self.crowded = scene, scene.shapes, len(scene.shapes) > 5
        self.known = [s for s in scene.shapes if s.kind in SHAPES]
        self.kinds, self.seen = Counter(s.kind for s in scene.shapes), Counter(s.colour for s in scene.shapes)
        both = Counter((s.kind, s.colour) for s in scene.shapes)
        self.unique = [s for s in self.known if self.kinds[s.kind] == 1]  # their kind alone names them
        self.named = [s for s in self.known if both[s.kind, s.colour] == 1]

    def called(self, shape: Shape) -> str:
        """ "circle" if there is one, "red circle" if there are more or by chance."""
        alone = self.rng.random() < 0.6 and self.kinds[shape.kind] == 1
        return self.kind(shape.kind) if alone else self.name(shape.kind, shape.colour)

    def some(self, things: Sequence[Any], count: int = 1) -> list[Any]:
        """So many of them in any order, or none if there are not enough."""
        enough = len(things) >= max(1, count)
        return [things[int(i)] for i in self.rng.permutation(len(things))[:count]] if enough else []

    # -- the whole scene: answered for up to five shapes ---------------------------------------------------------------

    def _all(self, task: str, said: str = "", **rest: Any) -> Turn:
        if self.crowded:
            return self.ask(task, "too_many", **rest | {"text": "", "check": "exact"})
        return self.ask(task, said, **rest)

    def what(self) -> Turn:
        return self._all("what", shapes=self.listing(self.shapes)) if self.known else self.ask("what", "unknown")

    def count(self) -> Turn:
        return self.how_many("count", len(self.shapes))

    def describe(self) -> Turn:
        parts = [uncapital(self.phrases.say("describe_part", **self.facts(s))) for s in self.shapes]
        number, things = self.words["numbers"][min(len(parts), 5)], self.kind("shape", len(parts) > 1)
        background = self.colour(self.scene.background)
        return self._all("describe", number=number, things=things, background=background, parts=self.all_of(parts))

    def listed(self) -> Turn:
        lines = [f"{i}. {self.name(s.kind, s.colour)}" for i, s in enumerate(self.shapes, 1)]
        return self._all("listed", text="\n".join(lines))

    def json(self) -> Turn:
        """The scene as JSON: with given keys, at times with the place, or only the count."""
        rng, kind = self.rng, self.rng.random()
        quote = choose(rng, ('"', ""))
        if kind < 0.25:
            key = choose(rng, ("数量", *_COUNT_KEYS) if self.chinese else _COUNT_KEYS)
            text = json.dumps({key: len(self.shapes)}, ensure_ascii=False)
            return self._all("json_count", text=text, check="json", key=quote + key + quote)
        own = ("形状", "颜色") if self.chinese else _KEYS[0]
        keys = own if kind < 0.5 or (self.chinese and kind < 0.75) else choose(rng, _KEYS)
        keys = (*keys, "position") if kind > 0.85 else keys

        def value(key: str, shape: Shape) -> str:
            if key == "position":
                return self.place(shape.cell, asked=True)
            if key in ("color", "colour", "颜色"):
                return self.colour(shape.colour)
            return self.kind(shape.kind) if shape.kind in SHAPES else "不认识" if self.chinese else "unknown"

        text = json.dumps([{key: value(key, s) for key in keys} for s in self.shapes], ensure_ascii=False)
        asked = self.all_of([quote + key + quote for key in keys])
        return self._all("json" if kind < 0.5 else "json_shapes", text=text, check="json", keys=asked)

    def background(self) -> Turn:
        return self.ask("background", colour=self.colour(self.scene.background))

    def colours(self) -> Turn | None:
        if len(self.seen) <= 5:
            said, seen = "colours_one" if len(self.seen) == 1 else "colours", [*map(self.colour, self.seen)]
            return self.ask("colours", said, number=self.words["numbers"][len(seen)], colours=self.all_of(seen))

    # -- kinds, colours and places -------------------------------------------------------------------------------------

    def count_kind(self) -> Turn:
        by, there = self.rng.random(), self.rng.random() < 0.7
        shape = choose(self.rng, self.known or [Shape("circle", choose(self.rng, tuple(self.seen)), 0, 0, 0)])
        kind = shape.kind if there else choose(self.rng, SHAPES)
        colour = shape.colour if there else choose(self.rng, tuple(COLOURS))
        if by < 0.45:
            return self.how_many("count", self.kinds[kind], kind)
        kind, task = ("shape" if by < 0.85 else kind), "count_colour" if 0.65 < by < 0.85 else "count"
        count = sum(s.colour == colour and kind in (s.kind, "shape") for s in self.shapes)
        return self.how_many(task, count, kind, colour, colour_name=self.colour(colour))

    def colour_of(self) -> Turn | None:
        """The colour of what is named, of "it" if it is alone, or which of two colours."""
        for s in self.some(self.unique):
            facts, form = self.facts(s), self.rng.random()
            if form < 0.15:
                other = choose(self.rng, [c for c in COLOURS if c != s.colour])
                one, two = self.some((facts["colour"], self.colour(other)), 2)
                return self.ask("either", "colour", **facts | dict(one=one, two=two))
            task = "follow_what_colour" if len(self.shapes) == 1 and form < 0.5 else "colour"
            return self.ask(task, "colour", short=facts["colour"], **facts)

    def colour_at(self) -> Turn | None:
        """The colour of the one shape in some part of the picture."""
        cell = choose(self.rng, CELLS)
        if len(found := self._in(cell)) == 1 and found[0] in self.known:
            slots = self.facts(found[0]) | dict(place=self.place(cell))
            return self.ask("colour_at", "colour", noun=self.kind(choose(self.rng, ("shape", found[0].kind))), **slots)

    def two_colours(self) -> Turn | None:
        """The colours of two shapes, or whether they are the same."""
        if not (pair := self.some(self.unique, 2)):
            return None
        form = self.rng.random()
        task = (
            "two_colours" if form < 0.5 else "both_colours" if len(self.shapes) == 2 and form < 0.75 else "same_colour"
        )
        a, b = sorted(pair, key=lambda s: s.x) if task == "both_colours" else pair
        said = task if form < 0.5 else "same_colour_yes" if a.colour == b.colour else "same_colour_no"
        colours = dict(first=self.colour(a.colour), second=self.colour(b.colour))
        return self.ask(task, said, a=self.kind(a.kind), b=self.kind(b.kind), **colours)

    def which(self) -> Turn | None:
        for s in self.some([s for s in self.known if self.seen[s.colour] == 1]):
            return self.ask("which", short=self.kind(s.kind), **self.facts(s))

    def where(self) -> Turn | None:
        for s in self.some(self.named):
            task = "follow_where" if len(self.shapes) == 1 and self.rng.random() < 0.25 else "where"
            name = full = self.called(s)
            if self.seen[s.colour] == 1 and self.rng.random() < 0.15:
                name, full = self.name("shape", s.colour), self.name(s.kind, s.colour)
            return self.ask(task, "where", name=name, full=full, place=self.place(s.cell))

    def where_colour(self) -> Turn | None:
        for s in self.some(self.unique):
            return self.ask("where_colour", **self.facts(s))

    def _in(self, cell: tuple[str, str]) -> list[Shape]:
        """Shapes in a cell; "top" and "left" are a whole row or column."""
        part = cell[cell[0] == "middle"] if (cell[0] == "middle") != (cell[1] == "middle") else ""
        return [s for s in self.shapes if s.cell == cell or part in s.cell]

    def at(self) -> Turn:
        cell = choose(self.rng, CELLS)
        if self.rng.random() < 0.5 and not self._in(cell):
            cell = choose(self.rng, self.shapes).cell
        spot, shapes = self.place(cell, asked=True), self._in(cell)
        spot += choose(self.rng, ("", "", " corner")) if "middle" not in cell and not self.chinese else ""
        said, shown = ("at", self.listing(shapes)) if shapes else ("at_nothing", "")
        return self.ask("at", said, spot=spot, place=self.place(cell), shapes=shown)

    def extreme(self) -> Turn | None:
        """The largest, smallest, leftmost, …, where one clearly is."""
        if len(self.shapes) < 2 or self.crowded:
            return None
        by_y, by_size = (sorted(self.shapes, key=key) for key in (lambda s: s.y, lambda s: -s.size))
        clear = [b.y - a.y > _SIDE_MARGIN / 2 for a, b in (by_y[:2], by_y[-2:])]
        big, small = (a.size / b.size >= LARGER for a, b in (by_size[:2], by_size[-2:]))
        found = [by_size[0] if big else None] * 2 + [by_size[-1] if small else None, self.shapes[0], self.shapes[-1]]
        found += [by_y[0] if clear[0] else None, by_y[-1] if clear[1] else None]
        if known := [i for i, shape in enumerate(found) if shape in self.known]:
            sizes = [i for i in known if i < 3]
            i = choose(self.rng, sizes if sizes and self.rng.random() < 0.5 else known)
            return self.ask("extreme", most=self.words["most"][i], **self.facts(found[i]))

    # -- yes or no -----------------------------------------------------------------------------------------------------

    def exists(self) -> Turn | None:
        """Whether there is such a shape; half of what is not there has a colour and a kind of the scene, wrongly
        joined."""
        rng, form, there = self.rng, self.rng.random(), self.rng.random() < 0.5
        if not self.known:
            return None
        if form < 0.12 and not self.crowded:
            name = choose(rng, self.words["absent_held_out" if self.held_out else "absent"])
            return self.ask("exists", "exists_thing", name=name, shapes=self.listing(self.shapes))
        shape = choose(rng, self.known)
        kind, colour = shape.kind if there else choose(rng, SHAPES), shape.colour
        if not there and form > 0.45:
            colour = choose(rng, (choose(rng, tuple(COLOURS)), choose(rng, self.known).colour))
        if form < 0.45:
            name, found = self.kind(kind), [s for s in self.known if s.kind == kind]
        elif form < 0.55:
            name, found = self.name("shape", colour), [s for s in self.shapes if s.colour == colour]
        else:
            name, found = self.name(kind, colour), [s for s in self.known if (s.kind, s.colour) == (kind, colour)]
        task = "is_it" if len(self.shapes) == 1 and rng.random() < 0.4 else "exists"
        if not found:
            return self.ask(task, "exists_no", short="没有" if self.chinese else "No", name=name)
        slots = self.facts(found[0]) | dict(name=name)
        return self.ask(task, "exists_yes", short="有" if self.chinese else "Yes", **slots)

    def is_colour(self) -> Turn | None:
        for s in self.some(self.unique):
            asked = s.colour if self.rng.random() < 0.5 else choose(self.rng, tuple(COLOURS))
            said = "is_yes" if asked == s.colour else "is_no"
            return self.ask("is_colour", said, asked=self.colour(asked), **self.facts(s))

    # -- two shapes ----------------------------------------------------------------------------------------------------

    def _pair(self) -> tuple[Shape, Shape, dict[str, str]] | None:
        if not self.crowded and (pair := self.some(self.named, 2)):
            return *pair, dict(a=self.called(pair[0]), b=self.called(pair[1]))

    def relation(self) -> Turn | None:
        """Whether one shape is on a side of another, or on which."""
        if not (pair := self._pair()):
            return None
        a, b, names = pair
        far = {side: _towards(a, b, side) for side in SIDES}
        if self.rng.random() < 0.45:
            near, most = sorted(abs(far[side]) for side in ("left", "above"))
            clear = most > max(1.5 * near, _SIDE_MARGIN)
            return self.ask("relative", side=self.side(max(far, key=far.__getitem__)), **names) if clear else None
        if true := [side for side in SIDES if far[side] > _SIDE_MARGIN]:
            side, yes = choose(self.rng, true), self.rng.random() < 0.5
            asked = self.side(side if yes else SIDES[SIDES.index(side) ^ 1])
            return self.ask(
                "relation", f"relation_{'yes' if yes else 'no'}", asked=asked, side=self.side(side), **names
            )

    def beside(self) -> Turn | None:
        """What is left of, right of, above or below a shape, where that is clear for all others."""
        if len(self.shapes) < 2 or self.crowded or not (named := self.some(self.named)):
            return None
        side, name = choose(self.rng, SIDES), self.called(named[0])
        far = {other: _towards(other, named[0], side) for other in self.shapes if other is not named[0]}
        found = [other for other, distance in far.items() if distance > 0]
        if min(map(abs, far.values())) > _SIDE_MARGIN and (found or self.rng.random() < 0.4):
            said, shapes = ("beside", self.listing(found)) if found else ("beside_nothing", "")
            return self.ask("beside", said, side=self.side(side), name=name, shapes=shapes)

    def bigger(self) -> Turn | None:
        """Whether one shape is bigger than another, or which of two is."""
        if not (pair := self._pair()):
            return None
        a, b, names = pair
        ratio, index = max(a.size / b.size, b.size / a.size), int(self.rng.random() * 3)
        asked, yes = self.words["bigger"][index], (a.size > b.size) == (index < 2)
        if ratio < 1.08:
            return self.ask("bigger", "bigger_same", asked=asked, **names)
        if ratio < LARGER:
            return None
        if self.rng.random() < 0.5:
            name, other = names.values() if yes else reversed(names.values())
            more = asked.removesuffix(" than")
            return self.ask("bigger_which", more=more, than=asked, name=name, other=other, **names)
        than = asked if yes else self.words["bigger"][0 if a.size > b.size else 2]
        return self.ask("bigger", "bigger_yes" if yes else "bigger_no", asked=asked, than=than, **names)

    # -- printed text --------------------------------------------------------------------------------------------------

    def text(self) -> Turn:
        """What is written, in which colour, or both."""
        text, form = self.scene.text, self.rng.random()
        if not text:
            raise ValueError("the scene has no text")
        word, colour = spell(text.content), self.colour(text.colour)
        if form < 0.75:
            return self.ask("read", short=word, word=word)
        if form < 0.87:
            return self.ask("text_colour", colour=colour)
        background = self.colour(self.scene.background)
        task = choose(self.rng, ("describe", "what"))
        return self.ask(task, "describe_text", word=word, colour=colour, background=background)

    # -- more than one -------------------------------------------------------------------------------------------------

    def two_facts(self) -> Turn | None:
        """Two questions in one sentence, and both answers."""
        whole = Asker(self.scene, self.phrases, self.rng, self.held_out, whole=True)
        tasks = self.some(_SIMPLE, 2)
        if set(tasks) == {"where", "colour_of"}:  # which has an answer of its own, in one sentence
            return whole.where_colour()
        first, second = (getattr(whole, task)() for task in tasks)
        if not first or not second:
            return None
        links = ("，", "？", "，还有，") if self.chinese else (", and ", " and ", "? And ", ". Also, ")
        question = first.question.rstrip(" ?.!？。！") + (links[0] if self.held_out else choose(self.rng, links))
        question += second.question if self.chinese else uncapital(second.question)
        answer = first.answer + ("" if self.chinese else " ") + second.answer
        return Turn(f"image two facts{' zh' if self.chinese else ''}", question, answer)

    def chain(self) -> list[Turn]:
        """A question and follow-ups that lean on it: "it", "and the square?"."""
        if not (options := self.some(self.unique, len(self.unique))):
            return [self.what(), self.count()]
        facts = [self.facts(shape) for shape in options]
        if len(options) > 1 and self.rng.random() < 0.5:
            tasks = ("colour", "follow_colour", "follow_colour")
            return [self.ask(task, "colour", **slots) for task, slots in zip(tasks, facts, strict=False)]
        where = self.ask("follow_where", "where", **facts[0] | dict(full=facts[0]["kind"]))
        if len(self.shapes) > 1:
            return [self.ask("colour", **facts[0]), where]
        return [self.what(), *self.some([self.ask("follow_what_colour", "colour", **facts[0]), where], 2)]


def _towards(a: Shape, b: Shape, side: str) -> float:
    """How far `a` is on the given side of `b`."""
    return {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[side]


_SIMPLE = ("count", "count_kind", "colour_of", "background", "which", "where", "extreme", "at", "colours", "what")
_TWINS = (*_SIMPLE, "exists", "relation", "beside", "describe", "where_colour")
# How often each question is asked of a scene, and of one with more than five shapes.
_SCENE = """what 2, count 1.2, count_kind 2.2, colour_of 1.8, colour_at 1, two_colours 1.4, background 0.6, which 1,
    where 1.5, where_colour 0.7, at 1.3, extreme 1.5, exists 2.8, is_colour 0.8, relation 2.9, beside 2, bigger 1.5,
    colours 1, describe 1.2, listed 0.6, json 1.2, two_facts 2.2"""
_CROWD = "count 2, what 1.5, describe 1, json 0.3, listed 0.3, background 0.4, colour_of 1, exists 1, count_kind 1"


def scene_turns(asker: Asker, count: int) -> list[Turn]:
    """`count` questions about the scene, about its text if it has one."""
    table, turns = "text 1, background 0.1" if asker.scene.text else _CROWD if asker.crowded else _SCENE, list[Turn]()
    while len(turns) < count:
        if turn := getattr(asker, weighted(asker.rng, table))():
            turns.append(turn)
    return turns


def twin_turns(scene: Scene, languages: Sequence[Phrases], rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A question and the wish to hear the answer in the other language: one seed picks the same fact for both."""
    while True:
        task, seed = choose(rng, _TWINS), int(rng.integers(1 << 30))
        first, second = (
            getattr(Asker(scene, phrases, np.random.default_rng(seed), held_out, whole=True), task)()
            for phrases in languages
        )
        if first and second:
            own = rng.random() < 0.5  # the wish is in the language of the question, or in that of the answer
            wish = as_typed(rng, languages[1 - own].pick("in_other" if own else "follow_language", rng, held_out))
            asked = Turn(f"image language{' zh' if languages[1].chinese else ''}", wish, second.answer)
            if rng.random() < 0.35:
                return [dataclasses.replace(asked, question=f"{first.question.strip()} {wish}")]
            return [first, asked]
