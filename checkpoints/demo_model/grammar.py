"""Phrasings as small grammars, and the split into what is trained on and what is held out.

`"[What|Which] colour is the {name}?"` stands for two sentences; brackets nest, an empty choice is allowed, and
`{name}` is a slot for `str.format`. A task has two lists of grammars: one is trained on, the other never is.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

HELD_OUT_SHARE = 10  # one key in ten is held out


@dataclasses.dataclass(frozen=True)
class Phrasings:
    """Grammars of one task. `held_out` ones are only ever used for evaluation."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def pick(self, rng: np.random.Generator, held_out: bool, **slots: object) -> str:
        """One phrasing, slots filled."""
        return expand(choose(rng, self.held_out if held_out else self.train), rng).format(**slots)


def phrasings(train: str, held_out: str) -> Phrasings:
    """Grammars given one a line."""
    split = [tuple(line.strip() for line in text.strip().splitlines() if line.strip()) for text in (train, held_out)]
    return Phrasings(*split)


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """A uniform choice that, unlike `rng.choice`, leaves the options' types alone and is fast for short lists."""
    return options[int(rng.random() * len(options))]


def is_held_out(*key: object) -> bool:
    """Whether the example with this key (a word, two numbers, a scene's signature) is kept out of training."""
    return zlib.crc32(repr(key).encode()) % HELD_OUT_SHARE == 0


def expand(grammar: str, rng: np.random.Generator) -> str:
    """One sentence of `grammar`."""
    return "".join(part if isinstance(part, str) else expand(choose(rng, part), rng) for part in _parse(grammar))


@functools.cache
def _parse(grammar: str) -> tuple[str | tuple[str, ...], ...]:
    parts: list[str | tuple[str, ...]] = []
    options: list[str] = []
    literal = ""
    depth = 0
    for char in grammar:
        if char == "[":
            depth += 1
            if depth == 1:
                parts.append(literal)
                literal, options = "", []
                continue
        elif char == "]":
            depth -= 1
            if depth == 0:
                parts.append((*options, literal))
                literal = ""
                continue
        elif char == "|" and depth == 1:
            options.append(literal)
            literal = ""
            continue
        literal += char
    if depth:
        raise ValueError(f"phrasing {grammar!r}: unbalanced brackets")
    return (*parts, literal)
