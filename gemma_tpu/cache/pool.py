"""Which pages of the cache are free, and how many rows and stored prefixes hold each of the others. No jax."""

from __future__ import annotations

import collections
import heapq
from collections.abc import Iterable, Sequence


class PagePool:
    """`count` pages of `size` tokens in `groups` equal parts."""

    def __init__(self, count: int, size: int, groups: int) -> None:
        self.count, self.size = count, size
        self._group_size = count // groups
        self._free = [list(range(i * self._group_size, (i + 1) * self._group_size)) for i in range(groups)]
        self._holders: collections.Counter[int] = collections.Counter()

    @property
    def num_free(self) -> int:
        return sum(map(len, self._free))

    def free(self, group: int) -> int:
        """How many there are in a group."""
        return len(self._free[group])

    def group(self, page: int) -> int:
        return page // self._group_size

    def needed(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.size)

    def take(self, group: int, count: int) -> list[int]:
        """Free pages, held once: the lowest, since a call of the device reads up to the last one in use."""
        taken = [heapq.heappop(self._free[group]) for _ in range(count)]
        self.hold(taken)
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """Once more."""
        self._holders.update(pages)

    def shared(self, page: int) -> bool:
        """Whether several hold it."""
        return self._holders[page] > 1

    def give_back(self, pages: Sequence[int]) -> None:
        """By one of its holders; the last one frees it."""
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                heapq.heappush(self._free[self.group(page)], page)
