"""Conversations → rows of tokens to train on.

A row holds several groups one after another. A group is a prefix (the images, computed once) and segments (a
conversation each); a token sees its own segment and its group's prefix, with positions as if it were alone:

    group 1: prefix | question, answer | question, answer     group 2: question, answer     group 3: …

So a dozen separate first questions about an image cost one image. The token sequences are those that
gemma_tpu.text.render_messages makes of the same conversation (a test compares them).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import sentencepiece
from PIL import Image

from checkpoints.demo_model import mixture
from checkpoints.demo_model.dialog import SPELL_END, SPELL_START, Conversation
from checkpoints.demo_model.mixture import Group

SOFT = 256  # soft tokens of an image
ROW = 1024  # tokens of a row
ROWS, IMAGES = 8, 14  # of a unit, the piece of a batch that one worker makes at a time
STORE = 384  # images are kept as uint8[STORE, STORE, 3], their pixels in the top left corner
_JUMP_SHARE = 0.05  # conversations whose later turns are moved away, as if much had been said in between
_MAX_JUMP = 4000

_SPELT = re.compile(f"{SPELL_START}(.*?){SPELL_END}")


class Encoder:
    """Token ids and which of them are answers."""

    def __init__(self, model: Path) -> None:
        self._sp = sentencepiece.SentencePieceProcessor(model_file=str(model))
        ids = {piece: self._sp.piece_to_id(piece) for piece in ("<bos>", "<start_of_turn>", "<end_of_turn>")}
        self.bos, self.start, self.end = ids.values()
        self.image = [
            self._sp.piece_to_id("<start_of_image>"),
            *[-1] * SOFT,
            self._sp.piece_to_id("<end_of_image>"),
        ]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer; marked words letter by letter."""
        ids: list[int] = []
        for i, part in enumerate(_SPELT.split(text)):
            ids += [self._sp.piece_to_id(char) for char in part] if i % 2 else self._sp.encode(part)
        return ids

    def encode(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Ids, and for each the number of the turn whose answer it belongs to (its <end_of_turn> too), or -1."""
        ids, owner = [self.bos], [-1]

        def add(new: list[int], turn: int = -1) -> None:
            ids.extend(new)
            owner.extend([turn] * len(new))

        text = ""
        for i, turn in enumerate(conversation.turns):
            add([*self._sp.encode(text), self.start])
            text = "user\n"
            if i == 0 and conversation.system:
                text += conversation.system + "\n\n"
            if turn.image_last:
                text += turn.question.strip()
            for _ in turn.images:
                add(self._sp.encode(text + "\n\n") + self.image)
                text = "\n\n"
            if not turn.image_last:
                text += turn.question.strip()
            add([*self._sp.encode(text), self.end, *self._sp.encode("\n"), self.start, *self._sp.encode("model\n")])
            add([*self.answer(turn.answer), self.end], i)
            text = "\n"
        return ids, owner


@dataclasses.dataclass
class Unit:
    """Rows and their images, ready for the device. `tasks[row][n]` names the task of the row's answer n."""

    tokens: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((ROWS, ROW), np.int16))
    positions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((ROWS, ROW), np.int16))
    group: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((ROWS, ROW), np.int16))
    segment: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((ROWS, ROW), np.int16))
    soft: np.ndarray = dataclasses.field(default_factory=lambda: np.full((ROWS, ROW), -1, np.int16))
    target: np.ndarray = dataclasses.field(default_factory=lambda: np.full((ROWS, ROW), -1, np.int16))
    weight: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((ROWS, ROW), np.float16))
    answer: np.ndarray = dataclasses.field(default_factory=lambda: np.full((ROWS, ROW), -1, np.int16))
    images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((IMAGES, STORE, STORE, 3), np.uint8))
    sizes: np.ndarray = dataclasses.field(default_factory=lambda: np.full((IMAGES, 2), STORE, np.int16))
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((IMAGES, 3, SOFT), np.uint8))


FIELDS = tuple(field.name for field in dataclasses.fields(Unit))


def fit(image: Image.Image) -> np.ndarray:
    """The image's pixels, made smaller only if it is larger than the store."""
    if max(image.size) > STORE:
        image = image.copy()
        image.thumbnail((STORE, STORE), Image.Resampling.BILINEAR, reducing_gap=None)
    return np.asarray(image)


@dataclasses.dataclass
class _Piece:
    """A group, encoded: its tokens in row order, and per token what a row says of it."""

    ids: list[int]
    positions: list[int]
    segment: list[int]
    owner: list[int]  # number of the answer within the group, or -1
    tasks: list[str]
    group: Group


def encode_group(encoder: Encoder, group: Group, rng: np.random.Generator) -> _Piece:
    """The group as prefix and segments."""
    encoded = [encoder.encode(conversation) for conversation in group.conversations]
    shared = 0
    if len(encoded) > 1:
        last_image = max(i for i, token in enumerate(encoded[0][0]) if token == encoder.image[-1])
        shared = last_image + 1
    piece = _Piece(encoded[0][0][:shared], list(range(shared)), [0] * shared, [-1] * shared, [], group)
    for number, ((ids, owner), conversation) in enumerate(zip(encoded, group.conversations, strict=True)):
        first = len(piece.tasks)
        positions = list(range(shared, len(ids)))
        if len(conversation.turns) > 1 and rng.random() < _JUMP_SHARE:
            start = owner.index(0)  # everything after the first answer is moved away
            jump = int(rng.integers(1, _MAX_JUMP))
            positions = [p + jump * (p > start + owner.count(0)) for p in positions]
        piece.ids += ids[shared:]
        piece.positions += positions
        piece.segment += [number + 1] * (len(ids) - shared)
        piece.owner += [first + turn if turn >= 0 else -1 for turn in owner[shared:]]
        piece.tasks += [turn.task for turn in conversation.turns]
    return piece


class Packer:
    """Makes units, one after another. `focus`: see train.py."""

    def __init__(self, encoder: Encoder, seed: int, held_out: bool = False, focus: float = 0.0) -> None:
        self._encoder, self._held_out, self._focus = encoder, held_out, focus
        self._rng = np.random.default_rng((seed, held_out))

    def unit(self) -> tuple[Unit, list[list[str]]]:
        """A unit, and the tasks of the answers in each row."""
        rng, unit = self._rng, Unit()
        used = [0] * ROWS
        groups = [0] * ROWS
        tasks: list[list[str]] = [[] for _ in range(ROWS)]
        images = 0
        pieces = sorted((self._encode(group) for group in self._image_groups()), key=lambda p: -len(p.ids))
        for piece in pieces:
            row = int(np.argmin(used))
            if used[row] + len(piece.ids) > ROW:
                continue  # rare: its image slot stays empty
            for image, labels in zip(piece.group.images, piece.group.labels, strict=True):
                pixels = fit(image)
                unit.images[images, : pixels.shape[0], : pixels.shape[1]] = pixels
                unit.sizes[images] = pixels.shape[:2]
                unit.labels[images] = labels
                images += 1
            self._put(unit, row, used, groups, tasks, piece, images - len(piece.group.images))
        for row in range(ROWS):
            misses = 0
            while misses < 4:
                piece = self._encode(mixture.text_group(rng, self._held_out, self._focus))
                if used[row] + len(piece.ids) > ROW:
                    misses += 1
                    continue
                self._put(unit, row, used, groups, tasks, piece, 0)
        return unit, tasks

    def _encode(self, group: Group) -> _Piece:
        return encode_group(self._encoder, group, self._rng)

    def _image_groups(self) -> list[Group]:
        """Groups with IMAGES images in all, or four to keep in practice."""
        rng, held_out = self._rng, self._held_out
        if self._focus:
            makers = (mixture.scene_group, mixture.scene_group, mixture.scene_group, mixture.read_group)
            return [make(rng, held_out, int(rng.integers(4, 13))) for make in makers]
        groups = [mixture.pair_group(rng, held_out, int(rng.integers(4, 9))) for _ in range(2)]
        groups.append(mixture.texture_group(rng, held_out) if rng.random() < 0.3 else mixture.read_group(rng, held_out))
        groups += [mixture.read_group(rng, held_out, int(rng.integers(2, 5))) for _ in range(3)]
        return groups + [mixture.scene_group(rng, held_out, int(rng.integers(5, 9))) for _ in range(IMAGES - 8)]

    @staticmethod
    def _put(
        unit: Unit, row: int, used: list[int], groups: list[int], tasks: list[list[str]], piece: _Piece, image: int
    ) -> None:
        count = len(piece.ids)
        at = slice(used[row], used[row] + count)
        ids, owner, segment = np.array(piece.ids), np.array(piece.owner), np.array(piece.segment)
        groups[row] += 1
        is_soft = ids < 0
        unit.tokens[row, at] = np.where(is_soft, 0, ids)
        unit.positions[row, at] = piece.positions
        unit.group[row, at] = groups[row]
        unit.segment[row, at] = segment
        unit.soft[row, at] = np.where(is_soft, image * SOFT + np.cumsum(is_soft) - 1, -1)
        # A token predicts the next one; the last of a segment predicts nothing, since no segment begins with an answer.
        predicts = np.append(owner[1:], -1)
        lengths = np.bincount(owner[owner >= 0], minlength=1)
        unit.target[row, at] = np.where(predicts >= 0, np.append(ids[1:], -1), -1)
        # By tokens a description outweighs a sum ten times; by answers a sum's digits would outweigh. Half way.
        unit.weight[row, at] = np.where(predicts >= 0, lengths[predicts] ** -0.5, 0)
        unit.answer[row, at] = np.where(predicts >= 0, predicts + len(tasks[row]), -1)
        tasks[row] += piece.tasks
        used[row] += count
