"""What batch rows and stored prefixes hold, and how much of it a prompt can begin with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

Key = int | bytes  # of `Request.keys`

_COMPARED = 64  # keys at once: most prompts part early, and each is compared with what every row holds


@dataclasses.dataclass
class Held:
    """Tokens in the cache, by their keys: in pages, and at the end of them in the rings of a row or a stored prefix."""

    index: int
    keys: list[Key] = dataclasses.field(default_factory=list)
    pages: list[int] = dataclasses.field(default_factory=list)
    last_used: int = 0
    checked: bool = True  # whether it is known to be finite

    @property
    def written(self) -> int:
        """Positions of its rings that have been written: rows that rest are written to as well, behind their end."""
        return len(self.keys) + 1


def common(a: Sequence[Key], b: Sequence[Key]) -> int:
    """How many keys two sequences begin with alike."""
    most = min(len(a), len(b))
    for start in range(0, most, _COMPARED):
        end = min(start + _COMPARED, most)
        if a[start:end] != b[start:end]:
            return next(at for at in range(start, end) if a[at] != b[at])
    return most


def intact(rings: Iterable[tuple[int, int]], written: int, length: int) -> bool:
    """Whether rings of these windows and slots still hold what comes before position `length`, within the window.

    `written`: positions that have been written since the rings were empty.
    """
    return all(written <= slots + max(0, length - window + 1) for window, slots in rings)


def before_image(length: int, images: Iterable[int], num_soft_tokens: int) -> int:
    """The largest number of tokens up to `length` that splits no image; `images`: where these begin."""
    return min([length, *(start for start in images if start < length < start + num_soft_tokens)])


def reusable(held: Sequence[Key], keys: Sequence[Key], images: Iterable[int], num_soft_tokens: int) -> int:
    """How many tokens a prompt of `keys` can begin with of what is held: not its last one, and no part of an image."""
    return before_image(min(common(held, keys), len(keys) - 1), images, num_soft_tokens)
