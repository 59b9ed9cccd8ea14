"""Questions about two pictures: what differs, which has more, which has what."""

from __future__ import annotations

import dataclasses

import numpy as np

from checkpoints.demo_model import scenes
from checkpoints.demo_model.dialog import Turn
from checkpoints.demo_model.phrases import choose
from checkpoints.demo_model.scenes import COLOURS, SHAPES, Scene, Shape
from checkpoints.demo_model.speaker import Speaker


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
    rng, turns = words.rng, list[Turn]()
    difference, alike = _difference(words, *pair), _facts(pair[0]).keys() == _facts(pair[1]).keys()
    counts, ordinals = [len(scene.shapes) for scene in pair], words.words["ordinals"]
    there = [{(s.kind, s.colour) for s in scene.shapes} for scene in pair]
    while len(turns) < count:
        kind, index = rng.random(), int(rng.random() * 2)
        if kind < 0.35 and (alike or difference):
            task = choose(rng, ("same", "same", "differ")) if alike else "same" if kind < 0.12 else "differ"
            said = ("same_yes" if task == "same" else "alike") if alike else "same_no" if task == "same" else "differ"
            slots = dict(shapes=words.listing(pair[0].shapes), difference=difference)
        elif kind < 0.5:
            task, said = "more", "more_same" if counts[0] == counts[1] else "more"
            slots = dict(nth=ordinals[counts[1] > counts[0]], number=words.number(counts[0]))
            slots |= dict(more=words.number(max(counts)), fewer=words.number(min(counts)))
            slots["things"] = words.kind("shape", counts[0] > 1)
        elif kind < 0.7:
            shape, colour = choose(rng, sorted(there[0] | there[1]))
            key = (shape, choose(rng, tuple(COLOURS)) if rng.random() < 0.15 else colour)
            found = [key in keys for keys in there]
            task, said = "which_has", "which_both" if all(found) else "which_has" if any(found) else "which_none"
            slots = dict(nth=ordinals[not found[0]], one=words.one(*key), name=words.name(*key))
        elif kind < 0.9:
            task, said, slots = "nth", "what", dict(nth=ordinals[index], shapes=words.listing(pair[index].shapes))
        else:
            turns.append(words.how_many("nth_count", counts[index], "shape", nth=ordinals[index]))
            continue
        turns.append(words.ask(task, said, "compare", **slots))
    return turns
