"""What prompts begin with alike, against comparing key by key."""

from __future__ import annotations

import random

from gemma_tpu.engine.prefixes import common


def plain(a: list, b: list) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_common() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        alike = [rng.choice([3, b"picture"]) for _ in range(rng.choice([0, 1, 63, 64, 65, 127, 128, 129, 300]))]
        a, b = ([*alike, *(rng.choice([3, 4]) for _ in range(rng.choice([0, 0, 1, 64, 100])))] for _ in range(2))
        assert common(a, b) == plain(a, b)
