"""Questions about two scenes in one prompt."""

from __future__ import annotations

import dataclasses

import numpy as np

from checkpoints.demo_model.dialog import Turn, lower_effort
from checkpoints.demo_model.grammar import choose
from checkpoints.demo_model.scenes import COLOURS, SHAPES, Scene, Shape, random_scene
from checkpoints.demo_model.wording import Wording

_SAME_SHARE = 0.15


def scene_pair(rng: np.random.Generator, held_out: bool) -> tuple[Scene, Scene]:
    """Two unrelated scenes, or one and the same with one change, or with none."""
    first = random_scene(rng, held_out, 1 + int(rng.random() * 4))
    if rng.random() < 0.35:
        return first, random_scene(rng, held_out, 1 + int(rng.random() * 4))
    if rng.random() < _SAME_SHARE:
        return first, dataclasses.replace(first)
    while True:
        if (second := _changed(rng, first)).held_out == held_out:
            return (first, second) if rng.random() < 0.5 else (second, first)
        first = random_scene(rng, held_out, 1 + int(rng.random() * 4))


def _changed(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with one shape recoloured, replaced, moved to another cell or taken away."""
    index = int(rng.random() * len(scene.shapes))
    old = scene.shapes[index]
    rest = scene.shapes[:index] + scene.shapes[index + 1 :]
    while True:
        kind = int(rng.random() * 4)
        if kind == 0 and rest:
            return dataclasses.replace(scene, shapes=rest)
        if kind == 1:
            background = scene.background.split()[-1]
            colour = choose(
                rng, [c for c in COLOURS if c not in (old.colour, background, "white", "gray", "yellow", "pink")]
            )
            new = dataclasses.replace(old, colour=colour)
        elif kind == 2:
            new = dataclasses.replace(old, kind=choose(rng, [k for k in SHAPES if k != old.kind]))
        else:
            donor = random_scene(rng, scene.held_out, 1).shapes[0]
            new = dataclasses.replace(old, x=donor.x, y=donor.y, size=min(old.size, donor.size))
            near = [s for s in rest if abs(s.x - new.x) < 0.08 or np.hypot(s.x - new.x, s.y - new.y) < 0.36]
            margin = new.size * min(scene.size) / np.array(scene.size) + 0.01
            inside = margin[0] < new.x < 1 - margin[0] and margin[1] < new.y < 1 - margin[1]
            if near or not inside or new.cell == old.cell:
                if rng.random() < 0.1:
                    old = dataclasses.replace(old, size=old.size * 0.9)
                continue
        if any((s.kind, s.colour) == (new.kind, new.colour) for s in rest):
            continue
        return dataclasses.replace(scene, shapes=tuple(sorted((*rest, new), key=lambda s: s.x)))


def _keys(scene: Scene) -> set[tuple]:
    return {(s.kind, s.colour, s.cell) for s in scene.shapes}


def _difference(words: Wording, first: Scene, second: Scene) -> str | None:
    """What was changed, if exactly one thing was."""
    gone = [s for s in first.shapes if (s.kind, s.colour, s.cell) not in _keys(second)]
    new = [s for s in second.shapes if (s.kind, s.colour, s.cell) not in _keys(first)]
    if len(gone) > 1 or len(new) > 1 or not (gone or new):
        return None
    if not new:
        return words.answers["differ_gone"].format(first=words.one(gone[0]))
    if not gone:
        return words.answers["differ_new"].format(second=words.one(new[0]))
    a, b = gone[0], new[0]
    if a.kind == b.kind and a.cell == b.cell:
        return words.answers["differ_colour"].format(
            kind=words.kind(a.kind), first=words.colour(a.colour), second=words.colour(b.colour)
        )
    if (a.kind, a.colour) == (b.kind, b.colour):
        return words.answers["differ_place"].format(
            name=words.name(a), first=words.place(a.cell), second=words.place(b.cell)
        )
    if a.cell == b.cell:
        return words.answers["differ_kind"].format(first=words.one(a), second=words.one(b))
    return None


def compare_turns(
    pair: tuple[Scene, Scene], words: Wording, rng: np.random.Generator, held_out: bool, count: int
) -> list[Turn]:
    """`count` questions about both pictures; the images are the first two of the conversation."""
    turns: list[Turn] = []
    difference = _difference(words, *pair)
    alike = _keys(pair[0]) == _keys(pair[1])
    suffix = " zh" if words.chinese else ""

    def add(task: str, answer: str, **slots: object) -> None:
        question = lower_effort(rng, words.phrasings[task].pick(rng, held_out, **slots))
        turns.append(Turn(f"image compare{suffix}", question, answer))

    while len(turns) < count:
        kind = rng.random()
        if kind < 0.35 and (difference or alike):
            if alike:
                same = words.say("same_yes", shapes=words.listing(pair[0].shapes))
                add(choose(rng, ("same", "differ")) if rng.random() < 0.5 else "same", _as_asked(same, words))
            elif rng.random() < 0.35:
                add("same", words.say("same_no", difference=difference))
            else:
                add("differ", difference[0].upper() + difference[1:] + ("。" if words.chinese else "."))
        elif kind < 0.5:
            counts = [len(scene.shapes) for scene in pair]
            if counts[0] == counts[1]:
                things = "shape" if counts[0] == 1 else "shapes"
                add("more", words.say("more_same", number=words.number(counts[0]), things=things))
            else:
                nth, more, fewer = words.ordinal(counts[1] > counts[0]), max(counts), min(counts)
                add("more", words.say("more", nth=nth, more=words.number(more), fewer=words.number(fewer)))
        elif kind < 0.7:
            _which_has(pair, words, rng, add)
        elif kind < 0.9:
            index = int(rng.random() * 2)
            answer = words.say("what", shapes=words.listing(pair[index].shapes))
            add("nth", answer, nth=words.ordinal(index))
        else:
            index = int(rng.random() * 2)
            total = len(pair[index].shapes)
            thing = "图形" if words.chinese else "shape" if total == 1 else "shapes"
            answer = words.say("count_one" if total == 1 else "count", number=words.number(total), thing=thing)
            add("nth_count", answer, nth=words.ordinal(index))
    return turns


def _as_asked(same: str, words: Wording) -> str:
    """The answer that nothing differs is the same whether one asks "the same?" or "what differs?"."""
    return same.removeprefix("Yes, ")[0].upper() + same.removeprefix("Yes, ")[1:] if not words.chinese else same


def _which_has(pair: tuple[Scene, Scene], words: Wording, rng: np.random.Generator, add) -> None:
    there = [{(s.kind, s.colour) for s in scene.shapes} for scene in pair]
    kind, colour = choose(rng, sorted(there[0] | there[1]))
    if rng.random() < 0.15:
        colour = choose(rng, tuple(COLOURS))
    shape = Shape(kind, colour, 0, 0, 0)
    found = [(kind, colour) in keys for keys in there]
    if all(found):
        answer = words.say("which_both", one=words.one(shape))
    elif not any(found):
        answer = words.say("which_none", one=words.one(shape), name=words.name(shape))
    else:
        answer = words.say("which_has", nth=words.ordinal(found.index(True)), one=words.one(shape))
    add("which_has", answer, name=words.name(shape))
