"""Questions about a drawn scene or two, in either language; every answer is computed from the scenes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from checkpoints.demo_model.dialog import SIDES, SPELL, Speaker, Turn
from checkpoints.demo_model.phrases import Phrases, as_typed, choose, repeated, uncapital
from checkpoints.demo_model.scenes import CELLS, COLOURS, LARGER, SHAPES, Scene, Shape, allowed_colours, random_scene

_SIDE_MARGIN = 0.12  # of the canvas: shapes nearer than this are not asked to be left of or above each other
# What the words for "largest, biggest, smallest, leftmost, …" mean: the first by this, or by its negative.
_MOST = (("size", -1), ("size", -1), ("size", 1), ("x", 1), ("x", -1), ("y", 1), ("y", -1))
_KEYS = (("shape", "colour"), ("type", "color"), ("kind", "colour"))
_COUNT_KEYS = ("count", "number", "shapes", "total", "n")


class Asker(Speaker):
    """Makes turns about one scene; a method returns None if the scene is unfit for its question."""

    def __init__(self, scene: Scene, phrases: Phrases, rng: np.random.Generator, held_out: bool) -> None:
        super().__init__(phrases, rng, held_out)
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
        slots = dict(number=self.words["numbers"][min(len(parts), 5)], things=self.kind("shape", len(parts) > 1))
        background = self.colour(self.scene.background)
        return self._all("describe", background=background, parts=self.all_of(parts), **slots)

    def listed(self) -> Turn:
        lines = [f"{i}. {self.name(s.kind, s.colour)}" for i, s in enumerate(self.shapes, 1)]
        return self._all("listed", text="\n".join(lines))

    def json(self) -> Turn:
        """The scene as JSON, at times with given keys, or only the count."""
        quote, form = choose(self.rng, ('"', "")), self.rng.random()
        own = ("形状", "颜色", "数量", "不认识") if self.chinese else ("shape", "color", "count", "unknown")
        kind_key, colour_key = choose(self.rng, (own[:2], *_KEYS)) if form > 0.6 else own[:2]
        if form < 0.25:
            task, keys = "json_count", [choose(self.rng, (own[2], *_COUNT_KEYS))]
            value: Any = {keys[0]: len(self.shapes)}
        else:
            task, keys = "json" if form < 0.5 else "json_shapes", [kind_key, colour_key]
            kinds = (self.kind(s.kind) if s in self.known else own[3] for s in self.shapes)
            colours = (self.colour(s.colour) for s in self.shapes)
            value = [{kind_key: kind, colour_key: colour} for kind, colour in zip(kinds, colours, strict=True)]
        text, asked = json.dumps(value, ensure_ascii=False), self.all_of([quote + key + quote for key in keys])
        return self._all(task, text=text, check="json", key=asked, keys=asked)

    def background(self) -> Turn:
        return self.ask("background", colour=self.colour(self.scene.background))

    def colours(self) -> Turn | None:
        if len(self.seen) <= 5:
            said, seen = "colours_one" if len(self.seen) == 1 else "colours", [*map(self.colour, self.seen)]
            return self.ask("colours", said, number=self.words["numbers"][len(seen)], colours=self.all_of(seen))

    def count_kind(self) -> Turn:
        """How many of a kind, of a colour, or of both; three times in ten of what need not be there."""
        shape, by = choose(self.rng, self.shapes), self.rng.random()
        kind, colour = shape.kind, shape.colour
        if kind not in SHAPES or self.rng.random() < 0.3:
            kind, colour = choose(self.rng, SHAPES), choose(self.rng, tuple(COLOURS))
        if by < 0.45:
            return self.how_many("count", self.kinds[kind], kind)
        kind, task = ("shape" if by < 0.85 else kind), "count_colour" if 0.65 < by < 0.85 else "count"
        count = sum(s.colour == colour and kind in (s.kind, "shape") for s in self.shapes)
        return self.how_many(task, count, kind, colour, colour_name=self.colour(colour))

    def colour_of(self) -> Turn | None:
        """The colour of what its kind alone names, or of "it"; which of two colours, or whether it is one."""
        for s in self.some(self.unique):
            form, facts = self.rng.random(), self.facts(s)
            other = self.colour(choose(self.rng, [c for c in COLOURS if c != s.colour]))
            if form < 0.3:
                asked = other if form < 0.15 else facts["colour"]
                return self.ask("is_colour", "is_no" if form < 0.15 else "is_yes", asked=asked, **facts)
            if form < 0.4:
                one, two = self.some((facts["colour"], other), 2)
                return self.ask("either", "colour", **facts | dict(one=one, two=two))
            task = "follow_what_colour" if len(self.shapes) == 1 and form < 0.6 else "colour"
            return self.ask(task, "colour", **facts)

    def colour_at(self) -> Turn | None:
        """The colour of the one shape in some part of the picture."""
        cell = choose(self.rng, CELLS)
        if len(found := self._in(cell)) == 1 and found[0] in self.known:
            slots = self.facts(found[0]) | dict(place=self.place(cell))
            return self.ask("colour_at", "colour", noun=self.kind(choose(self.rng, ("shape", found[0].kind))), **slots)

    def two_colours(self) -> Turn | None:
        """The colours of two shapes, or whether they are the same."""
        if pair := self.some(self.unique, 2):
            they = "both_colours" if len(self.shapes) == 2 else "same_colour"
            task = choose(self.rng, ("two_colours", "two_colours", "same_colour", they))
            a, b = sorted(pair, key=lambda s: s.x) if task == "both_colours" else pair
            said = task if task == "two_colours" else "same_colour_yes" if a.colour == b.colour else "same_colour_no"
            colours = dict(first=self.colour(a.colour), second=self.colour(b.colour))
            return self.ask(task, said, a=self.kind(a.kind), b=self.kind(b.kind), **colours)

    def which(self) -> Turn | None:
        for s in self.some([s for s in self.known if self.seen[s.colour] == 1]):
            return self.ask("which", **self.facts(s))

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
        shown = self.listing(shapes) if shapes else ""
        return self.ask("at", "at" if shapes else "at_nothing", spot=spot, place=self.place(cell), shapes=shown)

    def extreme(self) -> Turn | None:
        """The largest, smallest, leftmost, …, if one clearly is."""
        if len(self.shapes) > 1 and not self.crowded:
            i = choose(self.rng, (*range(3), *range(7)))  # sizes more often
            axis, sign = _MOST[i]
            first, second = sorted(self.shapes, key=lambda s: sign * getattr(s, axis))[:2]
            near, far = sorted((getattr(first, axis), getattr(second, axis)))
            clear = far / near >= LARGER if axis == "size" else far - near > _SIDE_MARGIN / 2
            if clear and first in self.known:
                return self.ask("extreme", most=self.words["most"][i], **self.facts(first))

    def exists(self) -> Turn | None:
        """Whether there is such a shape; if not, it may have a colour and a kind of the scene, wrongly joined."""
        rng, form, there = self.rng, self.rng.random(), self.rng.random() < 0.5
        if not self.known:
            return None
        if form < 0.12 and not self.crowded:
            name = choose(rng, self.words["absent_held_out" if self.held_out else "absent"])
            return self.ask("exists", "exists_thing", name=name, shapes=self.listing(self.shapes))
        shape, other = choose(rng, self.known), choose(rng, self.known)
        kind, colour = shape.kind if there else choose(rng, SHAPES), shape.colour
        if not there and form > 0.45:
            colour = choose(rng, (choose(rng, tuple(COLOURS)), other.colour))
        kind, colour = "shape" if 0.45 < form < 0.55 else kind, colour if form > 0.45 else ""
        found = [s for s in self.shapes if kind in ("shape", s.kind) and colour in ("", s.colour)]
        name = self.name(kind, colour) if colour else self.kind(kind)
        task = "is_it" if len(self.shapes) == 1 and rng.random() < 0.4 else "exists"
        if not found:
            return self.ask(task, "exists_no", name=name)
        return self.ask(task, "exists_yes", **self.facts(found[0]) | dict(name=name))

    def _pair(self) -> tuple[Shape, Shape, dict[str, str]] | None:
        if not self.crowded and (pair := self.some(self.named, 2)):
            return *pair, dict(a=self.called(pair[0]), b=self.called(pair[1]))

    def relation(self) -> Turn | None:
        """Whether one shape is on a side of another, or on which."""
        if not (pair := self._pair()):
            return None
        far, names = {side: _towards(*pair[:2], side) for side in SIDES}, pair[2]
        if self.rng.random() < 0.45:
            near, most = sorted((abs(far["left"]), abs(far["above"])))
            clear = most > max(1.5 * near, _SIDE_MARGIN)
            return self.ask("relative", side=self.side(max(far, key=far.__getitem__)), **names) if clear else None
        if true := [side for side in SIDES if far[side] > _SIDE_MARGIN]:
            side, yes = choose(self.rng, true), self.rng.random() < 0.5
            asked, said = side if yes else SIDES[SIDES.index(side) ^ 1], "relation_yes" if yes else "relation_no"
            return self.ask("relation", said, asked=self.side(asked), side=self.side(side), **names)

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
        ratio, names, i = pair[0].size / pair[1].size, pair[2], int(self.rng.random() * 3)
        asked, yes = self.words["bigger"][i], (ratio > 1) == (i < 2)
        if 1 / 1.08 < ratio < 1.08:
            return self.ask("bigger", "bigger_same", asked=asked, **names)
        if 1 / LARGER < ratio < LARGER:
            return None
        if self.rng.random() < 0.5:
            name, other = names.values() if yes else reversed(names.values())
            more = asked.removesuffix(" than")
            return self.ask("bigger_which", more=more, than=asked, name=name, other=other, **names)
        than = asked if yes else self.words["bigger"][0 if ratio > 1 else 2]
        return self.ask("bigger", "bigger_yes" if yes else "bigger_no", asked=asked, than=than, **names)

    def text(self) -> Turn | None:
        """What is written, in which colour, or both."""
        if text := self.scene.text:
            task = choose(self.rng, repeated("read 75, text_colour 13, describe 6, what 6"))
            said = "describe_text" if task in ("describe", "what") else task
            colour, background = self.colour(text.colour), self.colour(self.scene.background)
            return self.ask(task, said, word=SPELL + text.content + SPELL, colour=colour, background=background)

    def two_facts(self) -> Turn | None:
        """Two questions in one sentence, and both answers."""
        tasks = self.some(_SIMPLE, 2)
        if set(tasks) == {"where", "colour_of"}:  # which has an answer of its own, in one sentence
            return self.where_colour()
        first, second = (getattr(self, task)() for task in tasks)
        if first and second:
            links = ("，", "？", "，还有，") if self.chinese else (", and ", " and ", "? And ", ". Also, ")
            question = first.question.rstrip(" ?.!？。！") + (links[0] if self.held_out else choose(self.rng, links))
            question += second.question if self.chinese else uncapital(second.question)
            return self.turn("two facts", question, first.answer + ("" if self.chinese else " ") + second.answer)

    def chain(self) -> list[Turn]:
        """A question about shapes that their kinds name, and follow-ups that lean on it: "it", "and the square?"."""
        facts = [self.facts(shape) for shape in self.some(self.unique, len(self.unique))]
        if len(facts) > 1 and self.rng.random() < 0.5:
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
_SCENE = """what 20, count 12, count_kind 22, colour_of 26, colour_at 10, two_colours 14, background 6, which 10,
    where 15, where_colour 7, at 13, extreme 25, exists 28, relation 29, beside 20, bigger 15, colours 10, describe 12,
    listed 6, json 12, two_facts 22"""
_CROWD = "count 20, what 15, describe 10, json 3, listed 3, background 4, colour_of 10, exists 10, count_kind 10"


def scene_turns(asker: Asker, count: int) -> list[Turn]:
    """`count` questions about the scene, about its text if it has one."""
    table = "text 10, background 1" if asker.scene.text else _CROWD if asker.crowded else _SCENE
    names, turns = repeated(table), list[Turn]()
    while len(turns) < count:
        if turn := getattr(asker, choose(asker.rng, names))():
            turns.append(turn)
    return turns


def twin_turns(scene: Scene, languages: Sequence[Phrases], rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A question and the wish to hear the answer in the other language: one seed picks the same fact for both."""
    while True:
        task, seed = choose(rng, _TWINS), int(rng.integers(1 << 30))
        askers = [Asker(scene, phrases, np.random.default_rng(seed), held_out) for phrases in languages]
        first, second = (getattr(asker, task)() for asker in askers)
        if first and second:
            own = rng.random() < 0.5  # the wish is in the language of the question, or in that of the answer
            wish = as_typed(rng, languages[1 - own].pick("in_other" if own else "follow_language", rng, held_out))
            if rng.random() < 0.35:
                return [askers[1].turn("language", f"{first.question.strip()} {wish}", second.answer)]
            return [first, askers[1].turn("language", wish, second.answer)]


def scene_pair(rng: np.random.Generator, held_out: bool) -> tuple[Scene, Scene]:
    """Two unrelated scenes, or one and the same with one change, or with none."""
    while True:
        first, second = (random_scene(rng, held_out, 1 + int(rng.random() * 4)) for _ in range(2))
        if rng.random() < 0.65:
            second = first if rng.random() < 0.15 else _changed(rng, first)
        if second and second.held_out == held_out:
            return (first, second) if rng.random() < 0.5 else (second, first)


def _changed(rng: np.random.Generator, scene: Scene) -> Scene | None:
    """The scene with one shape recoloured, replaced, moved to another row or taken away; None if that cannot be."""
    old, change = choose(rng, scene.shapes), choose(rng, ("gone", "colour", "kind", "moved"))
    new, rest = old, [s for s in scene.shapes if s is not old]
    if change == "colour":
        colours = set(allowed_colours(scene.background)) - {old.colour, "yellow", "pink", "gray"}
        new = dataclasses.replace(old, colour=choose(rng, sorted(colours)))
    elif change == "kind":
        new = dataclasses.replace(old, kind=choose(rng, [k for k in SHAPES if k != old.kind]))
    elif change == "moved":
        new = dataclasses.replace(old, y=(old.y + choose(rng, (1, 2)) / 3) % 1, size=min(old.size, 0.16))
        near = any(math.hypot(s.x - new.x, s.y - new.y) < s.size + new.size + 0.04 for s in rest)
        if near or not new.size < new.y < 1 - new.size:
            return None
    shapes = rest if change == "gone" else sorted((*rest, new), key=lambda s: s.x)
    named = {(s.kind, s.colour) for s in shapes}
    return dataclasses.replace(scene, shapes=tuple(shapes)) if shapes and len(named) == len(shapes) else None


def _facts(scene: Scene) -> set[tuple[str, str, tuple[str, str]]]:
    return {(s.kind, s.colour, s.cell) for s in scene.shapes}


def _difference(words: Speaker, first: Scene, second: Scene) -> str | None:
    """What was changed, if exactly one thing was."""
    gone, new = _facts(first) - _facts(second), _facts(second) - _facts(first)
    if max(len(gone), len(new)) != 1:
        return None
    (kind, colour, cell), (new_kind, new_colour, new_cell) = *(gone or new), *(new or gone)
    slots = dict(first=words.one(kind, colour), second=words.one(new_kind, new_colour))
    if not new or not gone:
        said = "differ_new" if new else "differ_gone"
    elif (kind, cell) == (new_kind, new_cell):
        said, slots = "differ_colour", dict(first=words.colour(colour), second=words.colour(new_colour))
    elif (kind, colour) == (new_kind, new_colour):
        said, slots = "differ_place", dict(first=words.place(cell), second=words.place(new_cell))
    elif cell == new_cell:
        said = "differ_kind"
    else:
        return None
    return words.phrases.answers[said].format(kind=words.kind(kind), name=words.name(kind, colour), **slots)


def compare_turns(pair: tuple[Scene, Scene], words: Speaker, count: int) -> list[Turn]:
    """`count` questions about both pictures; the images are the first two of the conversation."""
    rng, turns, ordinals, numbers = words.rng, list[Turn](), words.words["ordinals"], words.words["numbers"]
    difference, alike = _difference(words, *pair), _facts(pair[0]) == _facts(pair[1])
    counts, there = zip(*((len(s.shapes), {(t.kind, t.colour) for t in s.shapes}) for s in pair), strict=True)
    while len(turns) < count:
        kind, index = rng.random(), int(rng.random() * 2)
        if kind < 0.35 and (alike or difference):
            task = "same" if rng.random() < (0.67 if alike else 0.33) else "differ"
            said = ("same_yes" if task == "same" else "alike") if alike else "same_no" if task == "same" else "differ"
            turn = words.ask(task, said, shapes=words.listing(pair[0].shapes), difference=difference)
        elif kind < 0.5:
            said, number = "more_same" if counts[0] == counts[1] else "more", numbers[counts[0]]
            slots = dict(more=numbers[max(counts)], fewer=numbers[min(counts)], nth=ordinals[counts[1] > counts[0]])
            turn = words.ask("more", said, number=number, things=words.kind("shape", counts[0] > 1), **slots)
        elif kind < 0.7:
            shape, colour = choose(rng, sorted(there[0] | there[1]))
            key = (shape, choose(rng, tuple(COLOURS)) if rng.random() < 0.15 else colour)
            found = [key in keys for keys in there]
            said = "which_both" if all(found) else "which_has" if any(found) else "which_none"
            slots = dict(nth=ordinals[not found[0]], one=words.one(*key), name=words.name(*key))
            turn = words.ask("which_has", said, **slots)
        elif kind < 0.9:
            turn = words.ask("nth", "what", nth=ordinals[index], shapes=words.listing(pair[index].shapes))
        else:
            turn = words.how_many("nth_count", counts[index], nth=ordinals[index])
        turns.append(turn)
    return turns
