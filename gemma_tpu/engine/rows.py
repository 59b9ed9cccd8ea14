"""Host-side bookkeeping of the cache's rows: who sits where, what can be reused, which tokens go next."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.engine.request import ImageInput, Request


@dataclasses.dataclass(frozen=True)
class ImageSpan:
    """Soft tokens of image number `image` of a request: positions start … end - 1."""

    start: int
    end: int
    image: int


def image_spans(tokens: Sequence[int], num_soft_tokens: int) -> list[ImageSpan]:
    """Where the images of an expanded prompt stand. ValueError if a run of soft tokens has another length."""
    spans = []
    for is_soft, run in itertools.groupby(range(len(tokens)), key=lambda i: tokens[i] == SOFT_TOKEN):
        if is_soft:
            positions = list(run)
            if len(positions) != num_soft_tokens:
                raise ValueError(
                    f"an image takes {num_soft_tokens} soft tokens, the prompt has a run of {len(positions)}"
                )
            spans.append(ImageSpan(positions[0], positions[-1] + 1, len(spans)))
    return spans


def cache_keys(tokens: Sequence[int], spans: Sequence[ImageSpan], digests: Sequence[bytes]) -> list[int | bytes]:
    """What the cache of a prompt depends on: its tokens, with the images' digests where their soft tokens stand."""
    keys: list[int | bytes] = list(tokens)
    for span in spans:
        keys[span.start : span.end] = [digests[span.image]] * (span.end - span.start)
    return keys


def chunk_end(start: int, target: int, longest: int, spans: Sequence[ImageSpan]) -> int:
    """End of the chunk that begins at `start`: as long as allowed without splitting an image over two chunks."""
    end = min(target, start + longest)
    for span in spans:
        if span.start < end < span.end:
            end = span.start
    if end <= start:
        raise ValueError(f"a chunk of {longest} tokens has no room for an image block")
    return end


@dataclasses.dataclass
class Row:
    """A row of the cache. `keys` are those of the tokens in it.

    A row that the device itself put to rest (stop token, length) is known to be as read. One that the host put to rest
    (`halted`) goes on in the calls that are under way: it is free only when they have been read.
    """

    index: int
    request: Request | None = None
    spans: list[ImageSpan] = dataclasses.field(default_factory=list)
    prompt_keys: list[int | bytes] = dataclasses.field(default_factory=list)
    keys: list[int | bytes] = dataclasses.field(default_factory=list)
    decoding: bool = False
    last_key: int | bytes = 0  # of the token to be fed next
    remaining: int = 0  # tokens the request may still produce, as far as they have been read
    dispatched: bool = False  # whether a decode call for the request has been dispatched
    unread: int = 0  # dispatched decode calls whose tokens have not been read
    halted: bool = False
    last_used: int = 0

    @property
    def occupant(self) -> Request:
        """The request of a row that is not free."""
        if self.request is None:
            raise ValueError(f"row {self.index} has no request")
        return self.request

    @property
    def free(self) -> bool:
        return self.request is None and not (self.halted and self.unread)

    def images_until(self, end: int) -> list[tuple[ImageSpan, ImageInput]]:
        """The images that a chunk from the end of what is cached up to `end` holds."""
        begin, images = len(self.keys), self.occupant.images
        return [(span, images[span.image]) for span in self.spans if begin <= span.start and span.end <= end]

    @property
    def prefill_target(self) -> int:
        """Tokens to cache before decoding: all but the last, which the first decode step feeds."""
        return len(self.prompt_keys) - 1

    @property
    def prefilling(self) -> bool:
        return self.request is not None and not self.decoding and not self.halted


def choose_row(rows: Sequence[Row], prompt_keys: Sequence[int | bytes]) -> tuple[Row, int] | None:
    """The free row to use and how many of its cached tokens still hold, or None if no row is free.

    A ring has forgotten what lies more than W behind its end, so a row can be continued but not rewound: its whole
    content must begin the prompt. Otherwise the row unused for longest is emptied.
    """
    free = [row for row in rows if row.free]
    if not free:
        return None

    def reusable(row: Row) -> int:
        n = len(row.keys)
        return n if n < len(prompt_keys) and row.keys == list(prompt_keys[:n]) else 0

    best = max(free, key=lambda row: (reusable(row), -row.last_used))
    return best, reusable(best)
