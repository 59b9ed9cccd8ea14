"""Questions about one drawn scene, with their answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import numpy as np

from checkpoints.demo_model import scenes
from checkpoints.demo_model.dialog import Turn, lower_effort, spell
from checkpoints.demo_model.grammar import choose
from checkpoints.demo_model.scenes import COLOURS, SHAPES, Scene, Shape
from checkpoints.demo_model.wording import ASKED, Wording

_SIDE_MARGIN = 0.12  # of the canvas: shapes nearer than this are not asked to be left of or above each other
_KEYS = (("shape", "color"), ("shape", "colour"), ("color", "shape"), ("type", "color"), ("kind", "colour"))
_COUNT_KEYS = ("count", "number", "shapes", "total", "n")
_THINGS = ("cat", "dog", "car", "house", "tree", "person", "flower", "bird", "boat", "table", "horse", "chair", "face")
_THINGS_HELD_OUT = ("bicycle", "cow", "plane", "child")
_THINGS_ZH = ("猫", "狗", "车", "房子", "树", "人", "花", "鸟")


class Asker:
    """Makes turns about one scene in one language; a method returns None if the scene is unfit for its question."""

    def __init__(self, scene: Scene, words: Wording, rng: np.random.Generator, held_out: bool) -> None:
        self.scene, self.words, self.rng, self.held_out = scene, words, rng, held_out
        self.kinds = Counter(s.kind for s in scene.shapes)
        self.colours = Counter(s.colour for s in scene.shapes)

    # -- helpers -----------------------------------------------------------------------------------------------

    def question(self, task: str, **slots: object) -> str:
        return lower_effort(self.rng, self.words.phrasings[task].pick(self.rng, self.held_out, **slots))

    def turn(self, task: str, answer: str, check: str = "exact", group: str = "", **slots: object) -> Turn:
        label = group or task
        return Turn(f"image {label}{' zh' if self.words.chinese else ''}", self.question(task, **slots), answer, check)

    def shortened(self, turn: Turn, answer: str) -> Turn:
        """The same question with the request for one word, one time in eight."""
        if self.rng.random() > 0.12:
            return turn
        gap = "" if self.words.chinese else " "
        question = turn.question + gap + self.words.phrasings["short"].pick(self.rng, self.held_out)
        return Turn(turn.task, question, answer[0].upper() + answer[1:], turn.check)

    def unique(self) -> list[Shape]:
        """Shapes that their kind alone names."""
        return [s for s in self.scene.shapes if self.kinds[s.kind] == 1]

    def called(self, shape: Shape) -> str:
        """ "circle" if there is one, "red circle" if there are more or by chance."""
        alone = self.kinds[shape.kind] == 1 and self.rng.random() < 0.6
        return self.words.kind(shape.kind) if alone else self.words.name(shape)

    # -- tasks -------------------------------------------------------------------------------------------------

    def what(self) -> Turn:
        return self.turn("what", self.words.say("what", shapes=self.words.listing(self.scene.shapes)))

    def count_answer(self, count: int, thing: Callable[[bool], str]) -> str:
        name = "count_none" if count == 0 else "count_one" if count == 1 else "count"
        return self.words.say(name, number=self.words.number(count), thing=thing(count != 1))

    def count(self) -> Turn:
        count = len(self.scene.shapes)
        answer = self.count_answer(
            count, lambda plural: "图形" if self.words.chinese else "shapes" if plural else "shape"
        )
        return self.shortened(self.turn("count", answer), str(count))

    def count_kind(self) -> Turn:
        words, rng = self.words, self.rng
        by = rng.random()
        if by < 0.5:  # by kind, mostly one that is there
            kind = choose(rng, tuple(self.kinds)) if rng.random() < 0.7 else choose(rng, SHAPES)
            count, thing = self.kinds[kind], lambda plural: words.kind(kind, plural)
        elif by < 0.85:
            colour = choose(rng, tuple(self.colours)) if rng.random() < 0.7 else choose(rng, tuple(COLOURS))
            noun = ("的图形", "的图形") if words.chinese else (" shape", " shapes")
            count, thing = self.colours[colour], lambda plural: words.colour(colour) + noun[plural]
        else:
            shape = choose(rng, self.scene.shapes)
            count, thing = 1, lambda plural: words.name(shape, plural)
        turn = self.turn("count_kind", self.count_answer(count, thing), group="count", thing=thing(True))
        return self.shortened(turn, str(count))

    def colour(self) -> Turn | None:
        if not (options := self.unique()):
            return None
        shape = choose(self.rng, options)
        kind, colour = self.words.kind(shape.kind), self.words.colour(shape.colour)
        return self.shortened(
            self.turn("colour", self.words.say("colour", kind=kind, colour=colour), kind=kind), colour
        )

    def background(self) -> Turn:
        colour = self.words.colour(self.scene.background)
        return self.turn("background", self.words.say("background", colour=colour), group="colour")

    def which(self) -> Turn | None:
        if not (options := [s for s in self.scene.shapes if self.colours[s.colour] == 1]):
            return None
        shape = choose(self.rng, options)
        kind, colour = self.words.kind(shape.kind), self.words.colour(shape.colour)
        turn = self.turn("which", self.words.say("which", kind=kind, colour=colour), group="colour", colour=colour)
        return self.shortened(turn, kind)

    def where(self) -> Turn:
        shape = choose(self.rng, self.scene.shapes)
        name = self.called(shape)
        return self.turn("where", self.words.say("where", name=name, place=self.words.place(shape.cell)), name=name)

    def at(self) -> Turn:
        filled = [s.cell for s in self.scene.shapes if s.cell in ASKED]
        cell = choose(self.rng, filled) if filled and self.rng.random() < 0.7 else choose(self.rng, tuple(ASKED))
        shapes = [s for s in self.scene.shapes if s.cell == cell]
        place = self.words.place(cell)
        if shapes:
            answer = self.words.say("at", shapes=self.words.listing(shapes), place=place)
        else:
            answer = self.words.say("at_nothing", place=place)
        return self.turn("at", answer, group="where", place=choose(self.rng, self.words.asked_places(cell)))

    def extreme(self) -> Turn | None:
        shapes = self.scene.shapes
        if len(shapes) < 2:
            return None
        by_y = sorted(shapes, key=lambda s: s.y)
        clear = [b.y - a.y > _SIDE_MARGIN / 2 for a, b in (by_y[:2], by_y[-2:])]
        biggest = scenes.largest(shapes)
        found = [biggest, biggest, scenes.smallest(shapes), shapes[0], shapes[-1]]
        found += [by_y[0] if clear[0] else None, by_y[-1] if clear[1] else None]
        known = [i for i, shape in enumerate(found) if shape]
        sizes = [i for i in known if i < 3]
        index = choose(self.rng, sizes if sizes and self.rng.random() < 0.5 else known)
        most = self.words.most(index)
        answer = self.words.say("extreme", most=most, name=self.words.name(found[index]))
        return self.turn("extreme", answer, group="where" if index > 2 else "size", most=most)

    def exists(self) -> Turn:
        words, rng = self.words, self.rng
        if rng.random() < 0.15:
            options = _THINGS_ZH if words.chinese else _THINGS_HELD_OUT if self.held_out else _THINGS
            answer = words.say("exists_thing", shapes=words.listing(self.scene.shapes))
            return self.turn("exists", answer, group="yes or no", name=choose(rng, options))
        form = rng.random()
        if form < 0.4:  # by kind alone
            kind = choose(rng, self.scene.shapes).kind if rng.random() < 0.5 else choose(rng, SHAPES)
            name, found = words.kind(kind), [s for s in self.scene.shapes if s.kind == kind]
        elif form < 0.5:  # by colour alone
            colour = choose(rng, self.scene.shapes).colour if rng.random() < 0.5 else choose(rng, tuple(COLOURS))
            name, found = words.of_colour(colour), [s for s in self.scene.shapes if s.colour == colour]
        else:
            shape = choose(rng, self.scene.shapes)
            kind, colour = shape.kind, shape.colour
            if rng.random() < 0.5:
                # Half wrong: a kind or a colour of the scene, wrongly joined, is the harder question.
                kind = choose(rng, SHAPES) if rng.random() < 0.5 else kind
                colour = choose(rng, tuple(COLOURS)) if rng.random() < 0.5 else choose(rng, self.scene.shapes).colour
            name = words.name(Shape(kind, colour, 0, 0, 0))
            found = [s for s in self.scene.shapes if (s.kind, s.colour) == (kind, colour)]
        if found:
            answer = words.say("exists_yes", name=words.name(found[0]), place=words.place(found[0].cell))
        else:
            answer = words.say("exists_no", name=name)
        short = ("有" if found else "没有") if words.chinese else "Yes" if found else "No"
        return self.shortened(self.turn("exists", answer, group="yes or no", name=name), short)

    def is_colour(self) -> Turn | None:
        if not (options := self.unique()):
            return None
        shape = choose(self.rng, options)
        said = shape.colour if self.rng.random() < 0.5 else choose(self.rng, tuple(COLOURS))
        kind = self.words.kind(shape.kind)
        name = "is_yes" if said == shape.colour else "is_no"
        answer = self.words.say(name, kind=kind, colour=self.words.colour(shape.colour))
        return self.turn("is_colour", answer, group="yes or no", kind=kind, colour=self.words.colour(said))

    def _pair(self) -> tuple[Shape, Shape] | None:
        if len(self.scene.shapes) < 2:
            return None
        first, second = self.rng.permutation(len(self.scene.shapes))[:2]
        return self.scene.shapes[first], self.scene.shapes[second]

    def relation(self) -> Turn | None:
        if not (pair := self._pair()):
            return None
        a, b = pair
        dx, dy = b.x - a.x, b.y - a.y
        true = ["left" if dx > 0 else "right"] if abs(dx) > _SIDE_MARGIN else []
        true += ["above" if dy > 0 else "below"] if abs(dy) > _SIDE_MARGIN else []
        if not true:
            return None
        side = choose(self.rng, true)
        opposite = dict(left="right", right="left", above="below", below="above")[side]
        said = side if self.rng.random() < 0.5 else opposite
        name = "relation_yes" if said == side else "relation_no"
        names = dict(a=self.called(a), b=self.called(b))
        answer = self.words.say(name, side=self.words.side(side), **names)
        return self.turn("relation", answer, side=self.words.side(said), **names)

    def relative(self) -> Turn | None:
        if not (pair := self._pair()):
            return None
        a, b = pair
        dx, dy = b.x - a.x, b.y - a.y
        if max(abs(dx), abs(dy)) < 1.5 * min(abs(dx), abs(dy)) or max(abs(dx), abs(dy)) < _SIDE_MARGIN:
            return None
        side = ("left" if dx > 0 else "right") if abs(dx) > abs(dy) else "above" if dy > 0 else "below"
        names = dict(a=self.called(a), b=self.called(b))
        return self.turn(
            "relative", self.words.say("relative", side=self.words.side(side), **names), "exact", "relation", **names
        )

    def describe(self) -> Turn:
        words, scene = self.words, self.scene
        parts = [words.say("describe_part", one=words.one(s), place=words.place(s.cell)) for s in scene.shapes]
        answer = words.say(
            "describe",
            number=words.number(len(parts)),
            things="shapes" if len(parts) > 1 else "shape",
            background=words.colour(scene.background),
            parts=words.all_of([part[0].lower() + part[1:] for part in parts]),
        )
        return self.turn("describe", answer)

    def json(self) -> Turn | None:
        if self.words.chinese:
            return None
        if self.rng.random() < 0.3:
            key = choose(self.rng, _COUNT_KEYS)
            asked = f'"{key}"' if self.rng.random() < 0.5 else key
            return self.turn("json_count", json.dumps({key: len(self.scene.shapes)}), "json", "json", a=asked)
        keys = choose(self.rng, _KEYS)
        quote = '"' if self.rng.random() < 0.5 else ""
        rows = [{key: (s.colour if key in ("color", "colour") else s.kind) for key in keys} for s in self.scene.shapes]
        asked = {name: f"{quote}{key}{quote}" for name, key in zip("ab", keys, strict=True)}
        return self.turn("json_shapes", json.dumps(rows), "json", "json", **asked)

    # -- printed text ------------------------------------------------------------------------------------------

    def read(self) -> Turn | None:
        if not self.scene.text:
            return None
        word = spell(self.scene.text.content)
        turn = self.turn("read", self.words.say("read", text=word))
        return self.shortened(turn, word)

    def text_colour(self) -> Turn | None:
        if not self.scene.text:
            return None
        colour = self.words.colour(self.scene.text.colour)
        return self.turn("text_colour", self.words.say("text_colour", colour=colour), group="colour")

    def describe_text(self) -> Turn | None:
        if not self.scene.text or self.scene.shapes:
            return None
        colours = dict(
            colour=self.words.colour(self.scene.text.colour), background=self.words.colour(self.scene.background)
        )
        answer = self.words.say("describe_text", text=spell(self.scene.text.content), **colours)
        return self.turn("describe" if self.rng.random() < 0.5 else "what", answer, group="describe")

    # -- several turns -----------------------------------------------------------------------------------------

    def chain(self) -> list[Turn]:
        """A question and follow-ups that lean on it: "it", "and the square?"."""
        words, shapes = self.words, self.scene.shapes
        kind = self.rng.random()
        if kind < 0.4 and len(options := self.unique()) > 1:
            order = [options[int(i)] for i in self.rng.permutation(len(options))]
            turns = []
            for i, shape in enumerate(order[:3]):
                name = words.kind(shape.kind)
                answer = words.say("colour", kind=name, colour=words.colour(shape.colour))
                turns.append(
                    self.turn("follow_colour" if i else "colour", answer, group="follow-up" if i else "", kind=name)
                )
            return turns
        if len(shapes) == 1:
            shape, name = shapes[0], words.kind(shapes[0].kind)
            first = self.what()
        elif options := self.unique():
            shape = choose(self.rng, options)
            name = words.kind(shape.kind)
            answer = words.say("which", kind=name, colour=words.colour(shape.colour))
            first = self.turn("colour", answer, kind=name)
            where = self.turn(
                "follow_where", words.say("where", name=name, place=words.place(shape.cell)), group="follow-up"
            )
            return [first, where]
        else:
            return [self.what(), self.count()]
        colour = self.turn(
            "follow_what_colour", words.say("colour", kind=name, colour=words.colour(shape.colour)), group="follow-up"
        )
        where = self.turn(
            "follow_where", words.say("where", name=name, place=words.place(shape.cell)), group="follow-up"
        )
        return [first, *((colour, where) if self.rng.random() < 0.5 else (where, colour))]


_SHAPE_TASKS = (
    (Asker.what, 2.0),
    (Asker.count, 1.2),
    (Asker.count_kind, 2.0),
    (Asker.colour, 1.5),
    (Asker.background, 0.6),
    (Asker.which, 1.0),
    (Asker.where, 1.6),
    (Asker.at, 1.2),
    (Asker.extreme, 1.5),
    (Asker.exists, 3.0),
    (Asker.is_colour, 0.8),
    (Asker.relation, 1.6),
    (Asker.relative, 1.2),
    (Asker.describe, 1.2),
    (Asker.json, 0.8),
)
_TEXT_TASKS = ((Asker.read, 3.0), (Asker.text_colour, 0.5), (Asker.background, 0.3), (Asker.describe_text, 0.5))


def scene_turns(asker: Asker, count: int) -> list[Turn]:
    """`count` questions about the scene, about its text if it has one."""
    table = _TEXT_TASKS if asker.scene.text else _SHAPE_TASKS
    weights = np.cumsum([weight for _, weight in table])
    turns: list[Turn] = []
    while len(turns) < count:
        task = table[int(np.searchsorted(weights, asker.rng.random() * weights[-1], side="right"))][0]
        if turn := task(asker):
            turns.append(turn)
    return turns
