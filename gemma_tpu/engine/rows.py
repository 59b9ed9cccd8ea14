"""Batch rows as the scheduler knows them, and their next chunks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gemma_tpu.cache.pool import PagePool
from gemma_tpu.engine.prefixes import Held, Key
from gemma_tpu.engine.request import ImageInput, Request
from gemma_tpu.engine.step import PageOwners, Prefill
from gemma_tpu.picture import PlacedImage


def images_of_chunk(rows: int, tokens: int, num_soft_tokens: int) -> int:
    """Images that a prefill call of rows × tokens has room for; 0 without a vision tower (`num_soft_tokens` 0)."""
    return rows * (tokens // num_soft_tokens) if num_soft_tokens else 0


def chunk_end(start: int, target: int, longest: int, images: Iterable[int], num_soft_tokens: int) -> int:
    """End of the chunk that begins at `start`: as long as allowed without splitting an image over two chunks.

    `images`: where their soft tokens begin.
    """
    end = min(target, start + longest)
    for image in images:
        if image < end < image + num_soft_tokens:
            end = image
    if end <= start:
        raise ValueError(f"a chunk of {longest} tokens has no room for an image block")
    return end


@dataclasses.dataclass
class Row(Held):
    """A batch row. `keys` are those (`Request.keys`) of the tokens in its cache.

    A row that the device stopped (stop token, length) is known to be as read. One that the host stopped (`halted`)
    goes on in the calls under way, and is free only when their tokens have been read.

    A row that has a `leader`, a request whose prompt begins alike, does not prefill before that one's row holds the
    first `shared` tokens.

    A row that is held to a grammar decodes one step when it has a `mask`. The next comes when the token has been read.
    """

    request: Request | None = None
    prompt: list[int] = dataclasses.field(default_factory=list)  # what is to be fed before it decodes, with
    prompt_keys: list[Key] = dataclasses.field(default_factory=list)  # what was written before it lost its row
    stores: list[int] = dataclasses.field(default_factory=list)  # prefixes to be stored before the rings lose them
    leader: Request | None = None
    shared: int = 0
    served: int = 0  # the turn in which it was prefilled last
    decoding: bool = False
    last_key: Key = 0  # of the token to be fed next
    remaining: int = 0  # tokens the request may still produce, as far as they have been read
    dispatched: bool = False  # whether a decode call for the request has been planned
    unread: int = 0  # planned decode calls whose tokens have not been read
    ahead: int = 0  # steps of those calls
    halted: bool = False
    lost: bool = False  # the request is to be resumed: its pages were needed
    mask: np.ndarray | None = None

    @property
    def occupant(self) -> Request:
        """The request of a row that is not free."""
        if self.request is None:
            raise ValueError(f"row {self.index} has no request")
        return self.request

    @property
    def constrained(self) -> bool:
        return self.request is not None and self.request.constraint is not None

    @property
    def free(self) -> bool:
        return self.request is None and not (self.halted and self.unread)

    @property
    def written(self) -> int:
        ahead = self.ahead if self.decoding or self.halted else 0
        return len(self.keys) + ahead + 1

    def begin(self, request: Request) -> None:
        self.request = request
        self.prompt = [*request.tokens, *request.generated]
        self.prompt_keys = [*request.keys, *request.generated]
        self.leader, self.shared = None, 0

    def images_until(self, end: int) -> list[PlacedImage[ImageInput]]:
        """The images that a chunk from the end of what is cached up to `end` holds."""
        begin = len(self.keys)
        return [placed for placed in self.occupant.images if begin <= placed.start < end]

    @property
    def prefill_target(self) -> int:
        """Tokens to cache before decoding: all but the last, which the first decode step feeds."""
        return len(self.prompt_keys) - 1

    @property
    def prefilling(self) -> bool:
        return self.request is not None and not self.decoding and not self.halted


def page_owners(pool: PagePool, pages: Iterable[tuple[int, Sequence[int]]]) -> PageOwners:
    """As a call sees them in which rows have these `pages`, each in the order of its tokens."""
    row, start = np.full(pool.count, -1, np.int32), np.zeros(pool.count, np.int32)
    numbers, held = zip(*pages, strict=True)
    counts = [len(one) for one in held]
    where = np.fromiter(itertools.chain.from_iterable(held), np.intp, sum(counts))
    row[where] = np.repeat(numbers, counts)
    start[where] = np.concatenate([np.arange(count) for count in counts]) * pool.size
    return PageOwners(row, start)


def make_prefill(
    rows: Sequence[Row], ends: Mapping[int, int], size: int, B: int, max_rows: int, num_soft_tokens: int, pool: PagePool
) -> Prefill:
    """A call of B rows × `size` tokens for those of each row up to its end (`ends`, by row number)."""
    whole = max_rows == B
    tokens, soft_index = np.zeros((B, size), np.int32), np.full((B, size), -1, np.int32)
    start, count = np.zeros(B, np.int32), np.zeros(B, np.int32)
    digests: list[bytes | None] = []
    places = {row.index: row.index if whole else i for i, row in enumerate(rows)}
    for row in rows:
        at, begin, end = places[row.index], len(row.keys), ends[row.index]
        start[at], count[at] = begin, end - begin
        tokens[at, : end - begin] = row.prompt[begin:end]
        for placed in row.images_until(end):
            soft = len(digests) * num_soft_tokens + np.arange(num_soft_tokens)
            soft_index[at, placed.start - begin :][:num_soft_tokens] = soft
            digests.append(placed.image.digest)
    digests += [None] * (images_of_chunk(B, size, num_soft_tokens) - len(digests))
    picked = None
    if not whole:  # places that are not taken are rows past the end: what they write is dropped
        picked = np.arange(max_rows, max_rows + B, dtype=np.int32)
        picked[: len(rows)] = [row.index for row in rows]
    pages = page_owners(pool, [(places[row.index], row.pages) for row in rows])
    return Prefill(picked, tokens, start, count, tuple(digests), soft_index, pages, fresh=not start.any())
