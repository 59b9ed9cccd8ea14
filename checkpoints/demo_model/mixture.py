"""The mixture the model is trained and judged on: groups of conversations about the same images."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from checkpoints.demo_model import facts, render, scenes, scope, tasks_text
from checkpoints.demo_model.dialog import Conversation, Turn, lower_effort
from checkpoints.demo_model.grammar import choose, is_held_out
from checkpoints.demo_model.tasks_compare import compare_turns, scene_pair
from checkpoints.demo_model.tasks_image import Asker, scene_turns
from checkpoints.demo_model.wording import CHINESE, ENGLISH, Wording
from checkpoints.demo_model.words import any_word

_CHINESE_SHARE = 0.25
_NO_PICTURE = ("what", "count", "describe", "read", "differ")


@dataclasses.dataclass(frozen=True)
class Group:
    """Conversations that begin with the same images and system text, so that these are computed once.

    `labels` are what each image's soft tokens show (see render.labels), uint8[images, 3, 256].
    """

    conversations: tuple[Conversation, ...]
    images: tuple[Image.Image, ...] = ()
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3, 256), np.uint8))


def _language(rng: np.random.Generator) -> Wording:
    return CHINESE if rng.random() < _CHINESE_SHARE else ENGLISH


def _system(rng: np.random.Generator, words: Wording) -> str | None:
    return choose(rng, words.systems) if rng.random() < 0.12 else None


def _shown(turn: Turn, images: tuple[int, ...], last: bool = False) -> Turn:
    return dataclasses.replace(turn, images=images, image_last=last)


def _together(
    rng: np.random.Generator,
    held_out: bool,
    turns: list[list[Turn]],
    images: tuple[Image.Image, ...],
    labels: np.ndarray,
    words: Wording,
) -> Group:
    """Each list of turns as its own conversation about the images; one time in four all in one, or images last."""
    shown = tuple(range(len(images)))
    system = _system(rng, words)
    layout = rng.random()
    if layout < 0.12:  # one long conversation, at times interrupted by a question that needs no image
        flat = [turn for part in turns for turn in part]
        if rng.random() < 0.4:
            flat.insert(int(rng.integers(1, len(flat) + 1)), text_turns(rng, held_out)[0])
        turns = [flat]
    last = 0.12 <= layout < 0.27
    if last:  # the text comes first, so nothing can be shared: one conversation
        turns = [[turn for part in turns[:4] for turn in part]]
    conversations = [Conversation((_shown(part[0], shown, last), *part[1:]), images, system) for part in turns]
    return Group(tuple(conversations), images, labels)


def scene_group(rng: np.random.Generator, held_out: bool, questions: int = 8) -> Group:
    """One drawn scene: separate questions, a chain of follow-ups, and now and then one that is out of scope."""
    words = _language(rng)
    asker = Asker(scenes.random_scene(rng, held_out), words, rng, held_out)
    turns = [[turn] for turn in scene_turns(asker, questions)]
    if rng.random() < 0.4:
        turns.append(asker.chain())
    if rng.random() < 0.2:
        turns.append([scope.photo_turn(rng, held_out, words.chinese)])
    picture, labels = render.render(asker.scene, rng), render.labels(asker.scene)
    return _together(rng, held_out, turns, (picture,), labels[None], words)


def read_group(rng: np.random.Generator, held_out: bool, questions: int = 4) -> Group:
    """A printed word or number."""
    words = _language(rng)
    while True:
        if rng.random() < 0.35:
            content = str(int(rng.integers(0, 10 ** int(rng.integers(1, 6)))))
        else:
            content = any_word(rng, 8)
        if not held_out if len(content) < 2 else is_held_out("word", content.lower()) == held_out:
            break
    style = rng.random()
    if style < 0.6 or set(content) <= set("cosvwxz"):  # whose capitals look the same
        content = content.upper()
    elif style < 0.75:
        content = content.capitalize()
    asker = Asker(scenes.text_scene(rng, content), words, rng, held_out)
    turns = [[asker.read()], *([turn] for turn in scene_turns(asker, questions - 1))]
    picture, labels = render.render(asker.scene, rng), render.labels(asker.scene)
    return _together(rng, held_out, turns, (picture,), labels[None], words)


def pair_group(rng: np.random.Generator, held_out: bool, questions: int = 8) -> Group:
    """Two scenes in one prompt; one time in five the second comes in a later turn."""
    words = _language(rng)
    pair = scene_pair(rng, held_out)
    images = tuple(render.render(scene, rng) for scene in pair)
    labels = np.stack([render.labels(scene) for scene in pair])
    turns = compare_turns(pair, words, rng, held_out, questions)
    if rng.random() < 0.2:
        first, second = (scene_turns(Asker(scene, words, rng, held_out), 1)[0] for scene in pair)
        chain = (_shown(first, (0,)), _shown(second, (1,)), *turns[:4])
        return Group((Conversation(chain, images, _system(rng, words)),), images, labels)
    return _together(rng, held_out, [[turn] for turn in turns], images, labels, words)


def texture_group(rng: np.random.Generator, held_out: bool) -> Group:
    """A picture that is no drawn scene, with questions of every kind: all out of scope."""
    words = _language(rng)
    asker = Asker(scenes.random_scene(rng, held_out), words, rng, held_out)
    turns = []
    for turn in scene_turns(asker, 3):
        turns.append([scope.photo_turn(rng, held_out, words.chinese, turn.question)])
    turns.append([scope.photo_turn(rng, held_out, words.chinese)])
    return _together(rng, held_out, turns, (render.texture(rng),), np.zeros((1, 3, 256), np.uint8), words)


def no_picture_turn(rng: np.random.Generator, held_out: bool) -> Turn:
    """A question about a picture where there is none."""
    words = _language(rng)
    task = choose(rng, _NO_PICTURE)
    question = lower_effort(rng, words.phrasings[task].pick(rng, held_out))
    return Turn("text no picture", question, words.say("no_picture"))


def text_turns(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """One text task, of one or several turns."""
    kind = rng.random()
    if kind < 0.22:
        return [tasks_text.arithmetic(rng, held_out)]
    if kind < 0.38:
        return tasks_text.sorting(rng, held_out)
    if kind < 0.42:
        return [tasks_text.extreme(rng, held_out)]
    if kind < 0.56:
        return [tasks_text.reversing(rng, held_out)]
    if kind < 0.64:
        return [tasks_text.json_task(rng, held_out)]
    if kind < 0.69:
        return tasks_text.running_sum(rng, held_out)
    if kind < 0.81:
        return [facts.fact_turn(rng, held_out)]
    if kind < 0.85:
        return [scope.chat_turn(rng, held_out)]
    if kind < 0.87:
        return [no_picture_turn(rng, held_out)]
    return [scope.scope_turn(rng, held_out)]


def text_group(rng: np.random.Generator, held_out: bool, focus: float = 0.0) -> Group:
    """A text conversation: mostly one task, at times several after each other. `focus`: see train.py."""
    if rng.random() < focus:
        turns = [(scope.chat_turn if rng.random() < 0.25 else scope.scope_turn)(rng, held_out)]
    else:
        turns = text_turns(rng, held_out)
    while rng.random() < 0.15 and len(turns) < 6:
        turns += text_turns(rng, held_out)
    return Group((Conversation(tuple(turns), (), _system(rng, ENGLISH)),))
