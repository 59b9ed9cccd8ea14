"""Batch rows as the scheduler knows them: what each holds, which one a prompt can continue, and their next chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gemma_tpu.engine.request import ImageInput, Request
from gemma_tpu.engine.step import Prefill
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
class Row:
    """A batch row. `keys` are those (`Request.keys`) of the tokens in its cache.

    A row that the device stopped (stop token, length) is known to be as read. One that the host stopped (`halted`)
    goes on in the calls under way, and is free only when their tokens have been read.

    A row that is held to a grammar decodes one step when it has a `mask`. The next comes when the token has been read.
    """

    index: int
    request: Request | None = None
    keys: list[int | bytes] = dataclasses.field(default_factory=list)
    decoding: bool = False
    last_key: int | bytes = 0  # of the token to be fed next
    remaining: int = 0  # tokens the request may still produce, as far as they have been read
    dispatched: bool = False  # whether a decode call for the request has been planned
    unread: int = 0  # planned decode calls whose tokens have not been read
    halted: bool = False
    mask: np.ndarray | None = None
    last_used: int = 0

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

    def images_until(self, end: int) -> list[PlacedImage[ImageInput]]:
        """The images that a chunk from the end of what is cached up to `end` holds."""
        begin = len(self.keys)
        return [placed for placed in self.occupant.images if begin <= placed.start < end]

    @property
    def prefill_target(self) -> int:
        """Tokens to cache before decoding: all but the last, which the first decode step feeds."""
        return len(self.occupant.keys) - 1

    @property
    def prefilling(self) -> bool:
        return self.request is not None and not self.decoding and not self.halted


def choose_row(rows: Sequence[Row], keys: Sequence[int | bytes]) -> tuple[Row, int] | None:
    """The free row for a prompt of these keys, and how many of its cached tokens still hold; None if none is free.

    A ring has forgotten what lies more than W behind its end, so a row can be continued but not rewound: its whole
    content must begin the prompt. Otherwise the row unused for longest is emptied.
    """
    free = [row for row in rows if row.free]
    if not free:
        return None

    def reusable(row: Row) -> int:
        n = len(row.keys)
        return n if n < len(keys) and row.keys == list(keys[:n]) else 0

    best = max(free, key=lambda row: (reusable(row), -row.last_used))
    return best, reusable(best)


def make_prefill(
    rows: Sequence[Row], ends: Mapping[int, int], sizes: Sequence[int], max_rows: int, num_soft_tokens: int
) -> Prefill:
    """A call for the tokens of each row up to its end (`ends`, by row number), in the shortest of the `sizes`."""
    longest = max(ends[row.index] - len(row.keys) for row in rows)
    size = next(size for size in sizes if size >= longest)
    whole = len(rows) > 1 or max_rows == 1
    B = max_rows if whole else 1
    tokens, soft_index = np.zeros((B, size), np.int32), np.full((B, size), -1, np.int32)
    start, count = np.zeros(B, np.int32), np.zeros(B, np.int32)
    digests: list[bytes | None] = []
    for row in rows:
        at = row.index if whole else 0
        begin, end = len(row.keys), ends[row.index]
        start[at], count[at] = begin, end - begin
        tokens[at, : end - begin] = row.occupant.tokens[begin:end]
        for placed in row.images_until(end):
            soft = len(digests) * num_soft_tokens + np.arange(num_soft_tokens)
            soft_index[at, placed.start - begin :][:num_soft_tokens] = soft
            digests.append(placed.image.digest)
    digests += [None] * (images_of_chunk(B, size, num_soft_tokens) - len(digests))
    picked = None if whole else np.array([rows[0].index], np.int32)
    return Prefill(picked, tokens, start, count, tuple(digests), soft_index, fresh=not start.any())
