"""Sentences as small grammars, and the split into what is trained on and what is held out.

`"[What|Which] colour is the {name}?"` stands for two sentences; brackets nest, an empty choice is allowed, and
`{name}` is a slot for `str.format`.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

HELD_OUT_SHARE = 10  # one key in ten is held out


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """A uniform choice that, unlike `rng.choice`, leaves the options' types alone and is fast for short lists."""
    return options[int(rng.random() * len(options))]


def is_held_out(*key: object) -> bool:
    """Whether the example with this key (a word, two numbers, a scene's signature) is kept out of training."""
    return zlib.crc32(repr(key).encode()) % HELD_OUT_SHARE == 0


def expand(grammar: str, rng: np.random.Generator) -> str:
    """One sentence of `grammar`."""
    return "".join(part if isinstance(part, str) else expand(choose(rng, part), rng) for part in _parse(grammar))


def expansions(grammar: str) -> list[str]:
    """All sentences of `grammar`."""
    parts = [[p] if isinstance(p, str) else [e for option in p for e in expansions(option)] for p in _parse(grammar)]
    return ["".join(parts) for parts in itertools.product(*parts)]


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
