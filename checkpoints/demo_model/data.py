"""The mixture to train on, in shards of packed rows: `python -m checkpoints.demo_model.data --out DIR --rows N`.

A row holds several groups one after another. A group is a prefix (the images, computed once) and segments (a
conversation each); a token sees its own segment and its group's prefix, with positions as if it were alone:

    group 1: prefix | question, answer | question, answer     group 2: question, answer     group 3: …

So a dozen separate first questions about an image cost one image. Eight rows share up to 14 images and make a unit, of
which a shard holds some. Token ids are those of the package's own chat template.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from checkpoints.demo_model import by_hand, scenes, text_tasks
from checkpoints.demo_model.dialog import SPELL, Conversation, Group, Speaker, Turn
from checkpoints.demo_model.phrases import BOTH, CHINESE, ENGLISH, FOLDER, Phrases, bare, choose, is_held_out
from checkpoints.demo_model.picture_tasks import Asker, compare_turns, scene_pair, scene_turns, twin_turns
from gemma_tpu.text.template import render_messages
from gemma_tpu.text.tokenizer import Tokenizer

TOKENIZER = FOLDER / "tokenizer.model"
SOFT = 256  # soft tokens of an image
ROWS, ROW, IMAGES = 8, 1024, 14  # of a unit: rows, tokens of a row, images
STORE = 384  # images are kept as uint8[side, side, 3] with sides of at most this
UNITS = 16  # of a shard
FIELDS = ("tokens", "positions", "group", "segment", "soft", "target", "weight", "task")  # int16[ROWS, ROW], but weight


def _new(conversations: Group, held_out: bool) -> Group:
    """Without what, in training, asks a question of the test set written by hand."""
    return [c for c in conversations if held_out or not any(bare(t.question) in by_hand.SENTENCES for t in c.turns)]


def _together(
    rng: np.random.Generator, held_out: bool, turns: list[list[Turn]], images: tuple[Image.Image, ...], phrases: Phrases
) -> Group:
    """Each list of turns as its own conversation about the images; one time in four all in one, at times interrupted
    by a question that needs no image, or with the images after the text."""
    layout, shown = rng.random(), tuple(range(len(images)))
    system = phrases.pick("system", rng, False) if rng.random() < 0.12 else None
    if layout < 0.24:
        flat = [turn for part in turns[:6] for turn in part]
        if rng.random() < 0.3:
            flat.insert(int(rng.integers(1, len(flat) + 1)), text_tasks.text_turns(rng, held_out)[0])
        turns = [flat]
    heads = [dataclasses.replace(part[0], images=shown, image_last=layout < 0.12) for part in turns]
    talks = [Conversation((head, *part[1:]), images, system) for head, part in zip(heads, turns, strict=True)]
    return _new(talks, held_out)


def scene_group(rng: np.random.Generator, held_out: bool) -> Group:
    """One drawn scene: separate questions, follow-ups, the other language, and now and then what is out of scope."""
    phrases = choose(rng, BOTH)
    crowd = int(rng.integers(6, 13)) if rng.random() < 0.1 else None
    scene = scenes.random_scene(rng, held_out, crowd, others=0.18)
    asker = Asker(scene, phrases, rng, held_out)
    turns = [[turn] for turn in scene_turns(asker, int(rng.integers(5, 9)))]
    other = ENGLISH if phrases.chinese else CHINESE
    if not crowd:
        if rng.random() < 0.4 and asker.unique:
            turns.append(asker.chain())
        if rng.random() < 0.45:
            turns.append(twin_turns(scene, (phrases, other), rng, held_out))
        if rng.random() < 0.25:  # a follow-up in the other language
            turns.append([turns[0][0], scene_turns(Asker(scene, other, rng, held_out), 1)[0]])
    if rng.random() < 0.2:
        turns.append([text_tasks.picture_scope(rng, held_out, phrases)])
    return _together(rng, held_out, turns, (scenes.render(scene, rng),), phrases)


def read_group(rng: np.random.Generator, held_out: bool) -> Group:
    """A printed word or number."""
    phrases, content, style = choose(rng, BOTH), "", rng.random()
    while len(content) < 2 or is_held_out("word", content.lower()) != held_out:
        number, top = rng.random() < 0.35, 10 ** int(rng.integers(1, 6))
        content = str(rng.integers(0, top)) if number else text_tasks.any_word(rng, 8, held_out)
    if style < 0.75 or set(content) <= set("cosvwxz"):  # whose capitals look the same
        content = content.capitalize() if 0.6 <= style < 0.75 else content.upper()
    asker = Asker(scenes.text_scene(rng, content), phrases, rng, held_out)
    return _together(rng, held_out, [[t] for t in scene_turns(asker, 3)], (scenes.render(asker.scene, rng),), phrases)


def pair_group(rng: np.random.Generator, held_out: bool) -> Group:
    """Two scenes in one prompt; one time in five the second comes in a later turn."""
    phrases, pair = choose(rng, BOTH), scene_pair(rng, held_out)
    images = tuple(scenes.render(scene, rng) for scene in pair)
    turns = compare_turns(pair, Speaker(phrases, rng, held_out), int(rng.integers(3, 7)))
    if rng.random() < 0.2:
        askers = (Asker(scene, phrases, rng, held_out) for scene in pair)
        ones = [dataclasses.replace(scene_turns(a, 1)[0], images=(i,)) for i, a in enumerate(askers)]
        return _new([Conversation((*ones, *turns[:4]), images)], held_out)
    return _together(rng, held_out, [[turn] for turn in turns], images, phrases)


def texture_group(rng: np.random.Generator, held_out: bool) -> Group:
    """A picture that is no drawn scene, with questions of every kind: all out of scope."""
    phrases = choose(rng, BOTH)
    asker = Asker(scenes.random_scene(rng, held_out), phrases, rng, held_out)
    asked = [turn.question for turn in scene_turns(asker, 3)]
    turns = [[text_tasks.picture_scope(rng, held_out, phrases, question)] for question in (*asked, "")]
    return _together(rng, held_out, turns, (scenes.texture(rng),), phrases)


def text_group(rng: np.random.Generator, held_out: bool) -> Group:
    """A text conversation: mostly one task, at times several after each other."""
    turns = text_tasks.text_turns(rng, held_out)
    while rng.random() < 0.15 and len(turns) < 6:
        turns += text_tasks.text_turns(rng, held_out)
    return _together(rng, held_out, [turns], (), ENGLISH)


def encode(conversation: Conversation, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids, and for each the number of the turn whose answer it belongs to (its <end_of_turn> too), or -1."""
    ids, owner, end = list[int](), list[int](), tokenizer.id("<end_of_turn>")
    for i, turn in enumerate(conversation.turns):
        so_far = dataclasses.replace(conversation, turns=conversation.turns[: i + 1])
        prompt = render_messages(so_far.messages(), tokenizer, SOFT, load_image=lambda image: image).tokens
        ends = [at + 1 for at, token in enumerate(prompt) if token == end]
        new = prompt[ends[2 * i - 1] :] if i else prompt  # after the answer before, which may be spelt in letters
        answer = [*_spelt(turn.answer, tokenizer), end]
        ids += [*new, *answer]
        owner += [-1] * len(new) + [i] * len(answer)
    return ids, owner


def _spelt(answer: str, tokenizer: Tokenizer) -> Iterator[int]:
    """Ids of an answer; marked words letter by letter."""
    for i, part in enumerate(answer.split(SPELL)):
        yield from map(tokenizer.id, part) if i % 2 else tokenizer.encode(part)


class Unit:
    """ROWS rows and their images. `tasks` are the names that the field `task` numbers."""

    def __init__(self) -> None:
        self.arrays = {name: np.zeros((ROWS, ROW), np.float16 if name == "weight" else np.int16) for name in FIELDS}
        for name in ("soft", "target"):
            self.arrays[name] -= 1
        self.images, self.tasks = list[np.ndarray](), list[str]()

    def add(self, group: Group, tokenizer: Tokenizer) -> bool:
        """Puts the group into the row that has most room; False if it does not fit."""
        if not group:
            return False
        packed, used = self._pack(group, tokenizer), (self.arrays["group"] > 0).sum(1)
        row, is_soft = int(np.argmin(used)), packed["tokens"] < 0
        at = slice(used[row], used[row] + len(is_soft))
        if at.stop > ROW or len(self.images) + len(group[0].images) > IMAGES:
            return False
        # Soft tokens are numbered after those of the images already here.
        packed["soft"] = np.where(is_soft, len(self.images) * SOFT + np.cumsum(is_soft) - 1, -1)
        packed |= dict(tokens=np.where(is_soft, 0, packed["tokens"]), group=self.arrays["group"][row].max() + 1)
        for name in FIELDS:
            self.arrays[name][row, at] = packed[name]
        for image in group[0].images:  # made smaller only if it is larger than the store
            image.thumbnail((STORE, STORE), Image.Resampling.BILINEAR)
            self.images.append(np.asarray(image))
        return True

    def _pack(self, group: Group, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
        """A group as a stretch of a row: its prefix, then its conversations."""
        encoded = [encode(conversation, tokenizer) for conversation in group]
        shared = max(np.flatnonzero(np.array(encoded[0][0]) < 0)) + 2 if len(encoded) > 1 else 0  # with <end_of_image>
        nothing = np.full(shared, -1)
        parts = [(encoded[0][0][:shared], np.arange(shared), nothing + 1, nothing, nothing + 1, nothing + 1)]
        for number, (conversation, (ids, owner)) in enumerate(zip(group, encoded, strict=True), 1):
            # A token predicts the next; the last of a segment predicts nothing, as none begins with an answer.
            answers, following = np.append(owner[shared + 1 :], -1), np.append(ids[shared + 1 :], -1)
            names = [turn.task for turn in conversation.turns]
            self.tasks += [name for name in dict.fromkeys(names) if name not in self.tasks]
            target, lengths = np.where(answers >= 0, following, -1), np.bincount(answers[answers >= 0])
            # By tokens a description outweighs a sum ten times; by answers a sum's digits would. Half way.
            weight = np.where(answers >= 0, np.maximum(lengths[answers], 1) ** -0.5, 0)
            task = np.where(answers >= 0, np.array([self.tasks.index(name) for name in names])[answers], 0)
            segment, positions = np.full(len(answers), number), np.arange(shared, len(ids))
            parts.append((ids[shared:], positions, segment, target, weight, task))
        names = ("tokens", "positions", "segment", "target", "weight", "task")
        return {name: np.concatenate(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def make_unit(rng: np.random.Generator, tokenizer: Tokenizer) -> Unit:
    """A unit: groups that show images, IMAGES in all, then text until no more fits."""
    unit, misses = Unit(), 0
    makers = [pair_group] * 2 + [texture_group if rng.random() < 0.3 else read_group] + [read_group] * 2
    for make in makers + [scene_group] * (IMAGES - 7):
        unit.add(make(rng, False), tokenizer)  # rare: one that does not fit is left out
    while misses < 12:
        misses += not unit.add(text_group(rng, False), tokenizer)
    return unit


def write_shard(path: Path, units: list[Unit]) -> None:
    """Units as one file that appears when it is complete."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_bytes(pickle.dumps([unit.arrays | {"images": unit.images, "tasks": unit.tasks} for unit in units]))
    unfinished.rename(path)


def read_shard(path: Path) -> list[dict[str, Any]]:
    """The units of a shard that write_shard wrote."""
    return pickle.loads(path.read_bytes())


def _work(out: Path, units: int, seed: int, worker: int) -> None:
    os.nice(5)  # a trainer beside it must never wait for a core
    tokenizer, rng = Tokenizer(TOKENIZER), np.random.default_rng((seed, worker))
    for number, done in enumerate(range(0, units, UNITS)):
        made = [make_unit(rng, tokenizer) for _ in range(min(UNITS, units - done))]
        write_shard(out / f"rows-{number:04}-{worker:03}.pickle", made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64_000)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    share = max(1, options.rows // ROWS // options.workers)
    with multiprocessing.Pool(options.workers) as pool:
        pool.starmap(_work, [(options.out, share, options.seed, worker) for worker in range(options.workers)])


if __name__ == "__main__":
    main()
