"""The cache as the scheduler sees it: batch rows, stored prefixes, and the pages that they share. No jax.

A prompt begins with as much as possible of what some row or stored prefix holds. What a row holds to its end is gone on
with where it is; a part of it is copied, as far as the rings still have it. Rings forget: so where a prompt's end, or
the place where two prompts part, is going to leave them, it is stored, and found when it comes again.

A prompt that begins like one which is being prefilled waits until that has come to where the two part, and then begins
with a copy, at once: the rings go on in the same step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gemma_tpu.cache.pool import PagePool
from gemma_tpu.engine.prefixes import Held, Key, intact, reusable
from gemma_tpu.engine.request import Request
from gemma_tpu.engine.rows import Row
from gemma_tpu.engine.step import Clear, Copy

LEAST_SHARED = 32  # tokens that are worth a copy: a prompt without any is prefilled in fewer calls


@dataclasses.dataclass
class Stored(Held):
    """A stored prefix; `maker` is the request in whose row it was."""

    maker: Request | None = None


class CacheMemory:
    """`rows`: how many. `pages`, `page`, `groups`: see `PagePool`. `rings`: window and slots of each kind.

    `places`: for stored prefixes. `least_shared`: tokens that are worth a copy; more than `least_awaited` are worth
    waiting for. `turn` is the scheduler's, to tell what has not been used for longest.
    """

    def __init__(
        self,
        rows: int,
        pages: int,
        page: int,
        groups: int = 1,
        rings: Sequence[tuple[int, int]] = (),
        places: int = 0,
        least_shared: int = LEAST_SHARED,
        least_awaited: int = LEAST_SHARED,
    ) -> None:
        self._sizes, self._rings = (rows, pages, page, groups, places), rings
        self._least, self._least_awaited = least_shared, max(least_shared, least_awaited)
        self.turn = 0
        self.reset()

    def reset(self) -> None:
        """Nothing is held."""
        rows, pages, page, groups, places = self._sizes
        self.pool = PagePool(pages, page, groups)
        self.rows = [Row(i) for i in range(rows)]
        self.stored = [Stored(i) for i in range(places)]
        self._operations: list[Clear | Copy] = []
        self._unchecked: set[int] = set()  # pages that may hold what is not finite, whoever has them now

    def take_operations(self) -> tuple[Clear | Copy, ...]:
        """What the device has to do, in this order, so that the cache is as it is said to be here."""
        taken, self._operations = tuple(self._operations), []
        return taken

    def group(self, row: Held) -> int:
        """The group of a row's pages."""
        rows, _, _, groups, _ = self._sizes
        return row.index * groups // rows

    def begin(self, request: Request, num_soft_tokens: int) -> Row | None:
        """Gives a free row to a request, with pages for its prompt; None if there is no room for these.

        Its `keys` are what is cached of the prompt.
        """
        keys = [*request.keys, *request.generated]
        shared = self._shared(request, keys, num_soft_tokens)
        longest = max(length for length, _ in shared)
        usable = [(length, held) for length, held in shared if self._usable(held, length)]
        cached, source = max(usable, key=lambda one: (one[0], self._goes_on(one[1], one[0])), default=(0, None))
        if (row := self._claim(request, keys, cached, source) or self._claim(request, keys, 0, None)) is None:
            return None
        self._choose_leader(row, num_soft_tokens)
        # The prompt's end, for another answer; where it went on from what was there, for another question; and where it
        # parts from others.
        ends = {row.prefill_target, len(row.keys), longest, row.shared}
        row.stores = sorted(end for end in ends if self._least <= end <= row.prefill_target) if self.stored else []
        return row

    def _shared(self, request: Request, keys: Sequence[Key], num_soft_tokens: int) -> list[tuple[int, Held]]:
        """How many tokens a prompt could begin with of what each row and stored prefix holds."""
        images = [placed.start for placed in request.images]
        return [(reusable(held.keys, keys, images, num_soft_tokens), held) for held in [*self.rows, *self.stored]]

    def _choose_leader(self, row: Row, num_soft_tokens: int) -> None:
        """Has a row wait for the one that is about to hold most of its prompt, if that is worth it.

        Nobody waits for a row that waits itself, and who no longer waits never does again: all come to their ends.
        """
        images = [placed.start for placed in row.occupant.images]
        row.leader, row.shared = None, 0
        for one in self.rows:
            if one is row or not one.prefilling or one.leader:
                continue
            length = reusable(one.prompt_keys[: one.prefill_target], row.prompt_keys, images, num_soft_tokens)
            if length > max(len(one.keys), len(row.keys) + self._least_awaited, row.shared):
                row.leader, row.shared = one.request, length

    def followers(self, row: Row) -> list[Row]:
        """Rows that wait for this one."""
        return [one for one in self.rows if one.prefilling and one.leader and one.leader is row.request]

    def follow(self, num_soft_tokens: int) -> list[Row]:
        """Gives the rows that wait for others what these have prefilled; returns those that were given something.

        One whose leader has left takes what there is, and looks for another.
        """
        given = []
        waiting = [row for row in self.rows if row.prefilling and row.leader]
        for row in sorted(waiting, key=lambda row: row.occupant.number):
            leaders = [one for one in self.rows if one.prefilling and one.request is row.leader]
            if any(len(leader.keys) < row.shared for leader in leaders):
                continue
            shared = self._shared(row.occupant, row.prompt_keys, num_soft_tokens)
            more = [one for one in shared if one[0] >= len(row.keys) + self._least]
            usable = [(length, held) for length, held in more if intact(self._rings, held.written, length)]
            if usable:
                self._copy(*max(usable, key=lambda one: one[0]), row)
                given.append(row)
            self._choose_leader(row, num_soft_tokens)
        return given

    def _copy(self, length: int, source: Held, row: Row) -> None:
        """The first `length` tokens of `source`, to a row that has pages for them and holds the beginning of them."""
        first, end = len(row.keys) // self.pool.size, self.pool.needed(length)
        pages = tuple(source.pages[first:end]), tuple(row.pages[first:end])
        self._operations.append(Copy(_kind(source), source.index, row.index, length, *pages))
        row.keys, source.last_used = row.prompt_keys[:length], self.turn
        row.stores = [end for end in row.stores if end >= length]  # its rings have not had the others

    def _usable(self, held: Held, length: int) -> bool:
        if not length or not intact(self._rings, held.written, length):
            return False
        return length >= self._least or self._goes_on(held, length)

    def _goes_on(self, held: Held, length: int) -> bool:
        """Whether a prompt that begins with so many of its tokens can take the row as it is."""
        return isinstance(held, Row) and held.free and length == len(held.keys)

    def _claim(self, request: Request, keys: Sequence[Key], length: int, source: Held | None) -> Row | None:
        """A row that holds the first `length` tokens of `source`, and pages for all of `keys`."""
        free = sorted((row for row in self.rows if row.free), key=lambda row: (bool(row.keys), row.last_used))
        candidates = [source] if isinstance(source, Row) and self._goes_on(source, length) else free
        for row in sorted(candidates, key=lambda row: row is source):  # what it holds besides is not lost, if possible
            kept = row.pages[: self.pool.needed(length)] if row is source else []
            goes_back = row is source and length < len(row.keys)
            # What follows in its page and rings has a weight of 0, and may not be finite: it is left behind.
            dirty = goes_back and not row.checked
            # Another may hold the page of which a part is about to be written over.
            part = goes_back and length % self.pool.size > 0 and (dirty or self.pool.shared(kept[-1]))
            more = self.pool.needed(len(keys)) + part - len(kept)
            if row is source:
                more -= sum(not self.pool.shared(page) for page in row.pages[len(kept) :])
            if self._room(self.group(row), more, keep=(source,), first=row):
                break
        else:
            return None
        old = row.pages if row is source else []
        if row is source:
            self._give_back(row, row.pages[len(kept) :])
        else:
            self.drop(row)
        row.pages = kept
        if source is not None and (dirty or part or row is not source):
            first, end = len(kept) - part, self.pool.needed(length)
            row.pages = [*kept[:first], *self.pool.take(self.group(row), end - first)]
            pages = (old or source.pages)[first:end], row.pages[first:]
            self._operations.append(Copy(_kind(source), source.index, row.index, length, *map(tuple, pages)))
            if part:
                self._give_back(row, kept[-1:])
            source.last_used = self.turn
        row.keys = list(keys[:length])
        row.pages = row.pages + self.pool.take(self.group(row), self.pool.needed(len(keys)) - len(row.pages))
        row.begin(request)
        row.checked = False
        return row

    def keep_ends(self, row: Row, written: int) -> None:
        """Stores the prefixes in `row.stores` that its rings lose when so many positions have been written."""
        lost = [end for end in row.stores if end <= len(row.keys) and not intact(self._rings, written, end)]
        row.stores = [end for end in row.stores if end not in lost]
        for end in lost:
            self._store(row, end)

    def chunk_target(self, row: Row, end: int) -> int:
        """How far a chunk up to `end` may go without passing over a prefix that is to be stored, or waited for."""
        written = end + 1  # rows that rest are written to as well
        wanted = [*row.stores, *(one.shared for one in self.followers(row))]
        passed = [at for at in wanted if len(row.keys) < at < end and not intact(self._rings, written, at)]
        return min([end, *passed])

    def _store(self, row: Row, length: int) -> None:
        """Keeps the first `length` tokens of a row in the place that has not been used for longest."""
        keys = row.keys[:length]
        place = next((one for one in self.stored if one.keys == keys), None)
        if place is not None:
            place.last_used = self.turn
            return
        place = min(self.stored, key=lambda one: one.last_used)
        self.drop(place)
        place.keys, place.pages, place.last_used = keys, row.pages[: self.pool.needed(length)], self.turn
        place.checked, place.maker = row.checked, row.request
        self.pool.hold(place.pages)
        self._operations.append(Copy("store", row.index, place.index, length))

    def check(self, row: Row) -> None:
        """A token that was drawn from all that a row holds shows that this is finite."""
        row.checked = True
        for one in self.stored:
            one.checked |= one.maker is row.request

    def extend(self, row: Row, tokens: int) -> bool:
        """Gives a row pages for so many tokens; False if there is no room."""
        more = self.pool.needed(tokens) - len(row.pages)
        if more <= 0:
            return True
        if not self._room(self.group(row), more, keep=(row,)):
            return False
        row.pages += self.pool.take(self.group(row), more)
        return True

    def trim(self, row: Row) -> None:
        """Gives back the pages of a row that hold nothing."""
        kept = self.pool.needed(len(row.keys))
        self.pool.give_back(row.pages[kept:])
        row.pages = row.pages[:kept]

    def drop(self, held: Held) -> None:
        """Forgets what is held."""
        pages, held.pages = held.pages, []
        self._give_back(held, pages)
        if isinstance(held, Row) and not held.checked:
            self._operations.append(Clear(held.index, ()))
        held.keys, held.checked = [], True
        if isinstance(held, Stored):
            held.maker = None

    def _give_back(self, held: Held, pages: Sequence[int]) -> None:
        """What may not be finite is cleared before others have it: its weight is 0 there, and 0 times NaN is NaN."""
        if not held.checked:
            self._unchecked.update(pages)
        freed = self._unchecked.intersection(page for page in pages if not self.pool.shared(page))
        self.pool.give_back(pages)
        if freed:
            self._unchecked -= freed
            self._operations.append(Clear(None, sorted(freed)))

    def spoil(self, row: Row) -> None:
        """Forgets a row whose numbers are no longer finite, and the prefixes that have pages of it."""
        for one in self.stored:
            if set(row.pages) & set(one.pages):
                one.checked = False
                self.drop(one)
        row.checked = False
        self.drop(row)

    def _room(self, group: int, count: int, keep: Sequence[Held | None], first: Held | None = None) -> bool:
        """Makes as many pages of a group free, if need be by forgetting what nobody uses: `first`, then the oldest."""
        if self.pool.free(group) >= count:
            return True
        rows = [row for row in self.rows if row.free and row.pages and self.group(row) == group]
        unused = [held for held in (*rows, *self.stored) if all(held is not one for one in keep)]
        used = [held for held in (*self.rows, *self.stored) if all(held is not one for one in unused)]
        pages = {page for held in unused for page in held.pages} - {page for held in used for page in held.pages}
        if self.pool.free(group) + sum(self.pool.group(page) == group for page in pages) < count:
            return False
        for held in sorted(unused, key=lambda held: (held is not first, held.last_used)):
            if self.pool.free(group) < count:
                self.drop(held)
        return True


def _kind(source: Held) -> str:
    """Of a copy from there to a row."""
    return "copy" if isinstance(source, Row) else "restore"
