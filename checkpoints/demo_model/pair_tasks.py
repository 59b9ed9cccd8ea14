"""Questions about two pictures: what differs, which has more, which has what."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from checkpoints.demo_model.dialog import Speaker, Turn
from checkpoints.demo_model.phrases import choose
from checkpoints.demo_model.scenes import COLOURS, SHAPES, Scene, Shape, allowed_colours, random_scene


def scene_pair(rng: np.random.Generator, held_out: bool) -> tuple[Scene, Scene]:
    """Two unrelated scenes, or one and the same with one change, or with none."""
    while True:
        first, second = (random_scene(rng, held_out, 1 + int(rng.random() * 4)) for _ in range(2))
        if rng.random() < 0.35:
            return first, second
        if rng.random() < 0.15:
            return first, first
        if (changed := _changed(rng, first)) and changed.held_out == held_out:
            return (first, changed) if rng.random() < 0.5 else (changed, first)


def _changed(rng: np.random.Generator, scene: Scene) -> Scene | None:
    """The scene with one shape recoloured, replaced, moved to another row or taken away; None if that cannot be."""
    old, change = choose(rng, scene.shapes), choose(rng, ("gone", "colour", "kind", "moved"))
    rest = tuple(s for s in scene.shapes if s is not old)
    if change == "gone":
        return dataclasses.replace(scene, shapes=rest) if rest else None
    if change == "colour":
        alike = (old.colour, "yellow", "pink", "gray")
        new = dataclasses.replace(
            old, colour=choose(rng, [c for c in allowed_colours(scene.background) if c not in alike])
        )
    elif change == "kind":
        new = dataclasses.replace(old, kind=choose(rng, [k for k in SHAPES if k != old.kind]))
    else:
        new = dataclasses.replace(old, y=(old.y + choose(rng, (1, 2)) / 3) % 1, size=min(old.size, 0.16))
        near = any(math.hypot(s.x - new.x, s.y - new.y) < s.size + new.size + 0.04 for s in rest)
        if near or not new.size < new.y < 1 - new.size:
            return None
    if any((s.kind, s.colour) == (new.kind, new.colour) for s in rest):
        return None
    return dataclasses.replace(scene, shapes=tuple(sorted((*rest, new), key=lambda s: s.x)))


def _facts(scene: Scene) -> dict[tuple, Shape]:
    return {(s.kind, s.colour, s.cell): s for s in scene.shapes}


def _difference(words: Speaker, first: Scene, second: Scene) -> str | None:
    """What was changed, if exactly one thing was."""
    gone, new = (
        [s for key, s in _facts(here).items() if key not in _facts(there)]
        for here, there in ((first, second), (second, first))
    )
    if len(gone) > 1 or len(new) > 1 or not (gone or new):
        return None
    (a, *_), (b, *_) = gone or new, new or gone
    slots = dict(first=words.one(a.kind, a.colour), second=words.one(b.kind, b.colour))
    if not new or not gone:
        said = "differ_new" if new else "differ_gone"
    elif a.kind == b.kind and a.cell == b.cell:
        said, slots = "differ_colour", dict(first=words.colour(a.colour), second=words.colour(b.colour))
    elif (a.kind, a.colour) == (b.kind, b.colour):
        said, slots = "differ_place", dict(first=words.place(a.cell), second=words.place(b.cell))
    elif a.cell == b.cell:
        said = "differ_kind"
    else:
        return None
    return words.phrases.answers[said].format(kind=words.kind(a.kind), name=words.name(a.kind, a.colour), **slots)


def compare_turns(pair: tuple[Scene, Scene], words: Speaker, count: int) -> list[Turn]:
    """`count` questions about both pictures; the images are the first two of the conversation."""
    rng, turns, ordinals, numbers = words.rng, list[Turn](), words.words["ordinals"], words.words["numbers"]
    difference, alike = _difference(words, *pair), _facts(pair[0]).keys() == _facts(pair[1]).keys()
    counts = [len(scene.shapes) for scene in pair]
    there = [{(s.kind, s.colour) for s in scene.shapes} for scene in pair]
    while len(turns) < count:
        kind, index = rng.random(), int(rng.random() * 2)
        if kind < 0.35 and (alike or difference):
            task = "same" if rng.random() < (0.67 if alike else 0.33) else "differ"
            said = ("same_yes" if task == "same" else "alike") if alike else "same_no" if task == "same" else "differ"
            turn = words.ask(task, said, shapes=words.listing(pair[0].shapes), difference=difference)
        elif kind < 0.5:
            more = dict(nth=ordinals[counts[1] > counts[0]], more=numbers[max(counts)], fewer=numbers[min(counts)])
            more |= dict(number=numbers[counts[0]], things=words.kind("shape", counts[0] > 1))
            turn = words.ask("more", "more_same" if counts[0] == counts[1] else "more", **more)
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
