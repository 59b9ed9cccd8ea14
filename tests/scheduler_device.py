"""A device, requests and images for the scheduler's steps: small numbers in place of tensors, checked at every call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.engine.errors import NotFiniteError
from gemma_tpu.engine.request import ImageInput, Request
from gemma_tpu.engine.rows import images_of_chunk
from gemma_tpu.engine.runner import Runner
from gemma_tpu.engine.step import NOT_FINITE, Activate, Clear, Copy, Decode, Drawn, Encode, PageOwners, Prefill, Step
from gemma_tpu.options import NO_TOKEN, SamplingParams
from gemma_tpu.picture import PlacedImage

if TYPE_CHECKING:
    from tests.scheduler_steps import World

SOFT = 3  # tokens of an image
VOCABULARY = 100
POISON = 0  # the token that makes logits NaN
IMAGES = 90  # more than are remembered
PROGRAM_FAILED = jax.errors.JaxRuntimeError("INTERNAL: the program failed")
Key = int | tuple[int, int]  # a token, or an image and which of its soft tokens


def feed(state: int | None, key: Key) -> int | None:
    """What a row is after one more token; None if its logits are NaN."""
    number = key if isinstance(key, int) else 100 + key[0] * SOFT + key[1]
    if state is None or number == POISON:
        return None
    return (state * 6364136223846793005 + number + 1442695040888963407) % 2**64


def draw(state: int, seed: int, mask: int = 0) -> int:
    return ((state ^ (seed + mask) * 0x9E3779B97F4A7C15) >> 33) % VOCABULARY


class FakeImage(ImageInput):
    """An image whose pixels say which one it is; `broken` ones cannot be prepared."""

    def __init__(self, number: int, broken: bool = False) -> None:
        self.number, self.digest, self.broken = number, b"%d" % number, broken

    @property
    def pixels(self) -> np.ndarray:
        return np.full((1, 1, 3), self.number, np.float32)

    def prepare(self) -> None:
        if self.broken:
            raise MemoryError("no room for the pixels")


class FakeConstraint:
    """Masks that are numbers, each from all tokens before. Complete at any of some tokens; a mask may fail."""

    def __init__(self, world: World) -> None:
        self.state, self.random = 7, world.random
        self.last = frozenset(self.random.sample(range(VOCABULARY), 2))
        self.fails = self.random.random() < world.failing_masks

    def mask(self) -> np.ndarray:
        if self.fails and self.random.random() < 0.3:
            raise ArithmeticError("no mask")
        return np.array([self.state], np.uint8)

    def push(self, tokens: list[int]) -> bool:
        assert len(tokens) == 1, "more than one token by one mask"
        self.state = (self.state * 31 + tokens[0] + 1) % 251
        return tokens[0] in self.last


class Checked(Request):
    """A request that knows its answer, and checks its end."""

    def __init__(self, world: World, tokens: list[int], images: list[PlacedImage], **asked: Any) -> None:
        self.world, self.ends, self.assigned = world, 0, False
        self.watched = frozenset(world.random.sample(range(VOCABULARY), world.random.choice([0, 0, 2])))
        self.watch_fails = world.random.random() < 0.03
        constraint = FakeConstraint(world) if world.random.random() < 0.3 else None
        more = {"num_soft_tokens": SOFT, "client": world.random.choice([None, None, "a", "b"])}
        super().__init__(tokens, images, SamplingParams(**asked), self._watch, constraint, **more)
        self.content: list[Key] = list(tokens)
        for placed in images:
            number = placed.image.number
            self.content[placed.start : placed.start + SOFT] = [(number, i) for i in range(SOFT)]
        self.broken = any(placed.image.broken for placed in images)
        self.shown = list(images)
        self.row: int | None = None  # when it decodes
        if (timeout := self.sampling_params.timeout) is not None:
            self.deadline = world.now + timeout

    def _watch(self, tokens: list[int]) -> int | None:
        if self.watch_fails and self.world.random.random() < 0.3:
            raise ZeroDivisionError("cannot watch")
        return next((i + 1 for i, token in enumerate(tokens) if token in self.watched), None)

    def assign(self, cached_tokens: int) -> None:
        if not self.assigned:
            self.assigned, last = True, self.world.last_assigned
            assert self.number > last.get(self.client, -1), "a request was overtaken by one of the same client"
            last[self.client] = self.number
        else:
            self.world.counts["resumed"] += 1
        self.row = None
        if self.world.ample:
            assert cached_tokens >= self.world.resting(self), "a row that the prompt begins with was not gone on with"
        self.world.counts["reused tokens"] += cached_tokens
        super().assign(cached_tokens)

    def finish(self, reason: str, error: BaseException | None = None) -> None:
        self.ends += 1
        assert self.ends == 1, "a request ended twice"
        self.world.open.discard(self)
        self.world.counts[f"{reason} {type(error).__name__}" if error else reason] += 1
        tokens, expected = self._alone()
        assert self.generated == tokens[: len(self.generated)], "another answer than alone"
        if isinstance(error, NotFiniteError):
            reason = "not finite"
        if reason in ("stop", "length", "not finite"):
            assert (self.generated, reason) == (tokens, expected), "another end than alone"
        elif reason in ("cancelled", "timeout"):
            assert self.cancelled if reason == "cancelled" else self.world.now >= self.deadline
            row = self.world.scheduler.rows[self.row or 0]
            if (
                self.row is not None
                and row.keys
                and row.request is None
                and row.prompt[: len(self.tokens)] == self.tokens
            ):
                written = self.world.device.content(row.pages, len(row.keys))
                assert written == [*self.content, *self.generated][:-1], "what was written before an early end is lost"
        elif isinstance(error, MemoryError):
            assert self.broken
        elif isinstance(error, ZeroDivisionError):
            assert self.watch_fails
        elif isinstance(error, ArithmeticError):
            assert self.constraint.fails
        else:
            assert error is self.world.failing, "an error without a failure"
        super().finish(reason, error)

    def _alone(self) -> tuple[list[int], str]:
        """The answer of this request alone, and how it ends."""
        asked, state, seed = self.sampling_params, 1, self.sampling_params.seed
        for key in self.content[:-1]:
            state = feed(state, key)
        last, answer, mask = self.content[-1], [], 7
        stop = self.world.eos if asked.stop_tokens is None else asked.stop_tokens
        for _ in range(min(asked.max_new_tokens, self.world.context - len(self.tokens))):
            if (state := feed(state, last)) is None:
                return answer, "not finite"
            if (last := draw(state, seed, mask if self.constraint else 0)) in stop:
                return answer, "stop"
            answer.append(last)
            mask = (mask * 31 + last + 1) % 251
            if last in self.watched or (self.constraint and last in self.constraint.last):
                return answer, "stop"
        return answer, "length"


Entry = tuple[int, Key, int | None]  # position, what was fed there, and the state after it


@dataclasses.dataclass
class DeviceRow:
    rings: list[list[Entry | None]]
    last: int = 0
    remaining: int = 0
    length: int = 0
    seed: int = 0
    stop: frozenset[int] = frozenset()
    constrained: bool = False


class FakeDevice(Runner):
    """A runner without a device. It fails when the world says so: before a step, within it, or when tokens are read.

    Pages and rings hold what was fed, and where: a token is drawn from all before it, which is to be there.
    """

    def __init__(self, world: World) -> None:
        self.world, self.lost = world, False

    def reset(self) -> None:
        self.rows = [DeviceRow(self._empty()) for _ in range(self.world.rows)]
        self.stored = [self._empty() for _ in range(self.world.places)]
        self.pages: list[list[Entry | None]] = [[None] * self.world.page for _ in range(self.world.pages)]
        self.images: set[bytes] = set()
        self.lost = False

    def _empty(self) -> list[list[Entry | None]]:
        return [[None] * slots for _, slots in self.world.rings]

    @property
    def intact(self) -> bool:
        return not self.lost

    def content(self, pages: Sequence[int], length: int) -> list[Key]:
        """What pages hold, in the order of their tokens."""
        entries = [entry for page in pages for entry in self.pages[page]][:length]
        assert [entry and entry[0] for entry in entries] == list(range(length)), "pages do not hold what they should"
        return [entry[1] for entry in entries]

    def _table(self, pages: PageOwners, row: int) -> list[int]:
        """The pages of a row in a call, in order."""
        found = sorted((int(pages.start[page]), page) for page in np.flatnonzero(pages.row == row).tolist())
        assert [start for start, _ in found] == [i * self.world.page for i in range(len(found))], "a page is missing"
        return [page for _, page in found]

    def _feed(self, number: int, table: list[int], position: int, key: Key, looked: int) -> int | None:
        """One more token of a row. `looked`: position up to which it attends to what is cached."""
        row, size = self.rows[number], self.world.page
        before: Entry = (-1, 0, 1)
        if position:
            before = self.pages[table[(position - 1) // size]][(position - 1) % size]
            assert before, "nothing comes before"
            assert before[0] == position - 1, "what comes before is not in its page"
        spoiled = any(entry and entry[2] is None for page in table for entry in self.pages[page])
        for (window, slots), ring in zip(self.world.rings, row.rings, strict=True):
            for at in range(max(0, position - window + 1), looked):
                entry = ring[at % slots]
                assert entry, "a ring lacks what is within the window"
                assert entry[0] == at, "a ring has lost what is within the window"
                assert entry == self.pages[table[at // size]][at % size], "a ring has something else than the page"
            spoiled |= any(entry and entry[2] is None for entry in ring)
        state = None if spoiled else feed(before[2], key)
        self.pages[table[position // size]][position % size] = (position, key, state)
        for (_, slots), ring in zip(self.world.rings, row.rings, strict=True):
            ring[position % slots] = (position, key, state)
        row.length = position + 1
        return state

    def run(self, step: Step) -> Any:
        self.world.counts["steps"] += 1
        kinds = ("release", "before", "encode", "prefill", "after", "activate")
        calls = [(getattr(self, f"_{kind}"), one) for kind in kinds for one in getattr(step, kind)]
        assert len(step.prefill) <= 1, "a step with two chunks"
        if step.prefill:
            assert sum(len(images.digests) for images in step.encode) <= self.world.sizes[-1] // SOFT
        how = self.world.fails(bool(step.decode))
        if how in ("host", "program"):
            for call, argument in calls[: self.world.random.randrange(len(calls) + 1)]:
                call(argument)
            self.lost = how == "program" and self.world.random.random() < 0.5
            raise self.world.failing
        for call, argument in calls:
            call(argument)
        drawn = self._decode(step.decode) if step.decode else None
        assert not set(step.forget) & {digest for chunk in step.prefill for digest in chunk.images}
        self.images -= set(step.forget)
        remembered = self.world.scheduler.remembered_images
        assert len(self.images) <= max(remembered, sum(len(chunk.images) for chunk in step.prefill))
        if drawn is None:
            return Drawn(Unreadable(self.world.failing) if how == "tokens" else np.zeros(1)) if step.prefill else None
        return Drawn(Unreadable(self.world.failing)) if how == "tokens" else drawn

    def _before(self, one: Clear | Copy) -> None:
        self._copy(one) if isinstance(one, Copy) else self._clear(one)

    _after = _before

    def _clear(self, clear: Clear) -> None:
        if clear.row is not None:
            assert not self.rows[clear.row].remaining, "a row was cleared while it decodes"
            self.rows[clear.row] = DeviceRow(self._empty())
        for page in clear.pages:
            self.pages[page] = [None] * self.world.page

    def _copy(self, copy: Copy) -> None:
        self.world.counts[f"{copy.kind} of a prefix"] += 1
        size, count = self.world.page, len(copy.source_pages)
        assert copy.kind == "store" or len(copy.target_pages) == count
        first = -(-copy.length // size) - count
        for i, (source, target) in enumerate(zip(copy.source_pages, copy.target_pages, strict=True)):
            held = [(first + i) * size + j < copy.length for j in range(size)]
            self.pages[target] = [entry if keep else None for entry, keep in zip(self.pages[source], held, strict=True)]
        rows = [row.rings for row in self.rows]
        source = (self.stored if copy.kind == "restore" else rows)[copy.source]
        target = (self.stored if copy.kind == "store" else rows)[copy.target]
        for i, ((window, slots), ring) in enumerate(zip(self.world.rings, source, strict=True)):
            last = [copy.length - 1 - (copy.length - 1 - slot) % slots for slot in range(slots)]
            first = max(0, copy.length - window + 1)
            target[i] = [entry if at >= first else None for entry, at in zip(ring, last, strict=True)]
        if copy.kind != "store":
            assert not self.rows[copy.target].remaining, "a row was written over while it decodes"
            self.rows[copy.target].length = copy.length

    def _release(self, row: int) -> None:
        self.rows[row].remaining = 0

    def _encode(self, images: Encode) -> None:
        assert len(images.digests) == len(images.pixels) in self.world.scheduler.image_batches
        for digest, pixels in zip(images.digests, images.pixels, strict=True):
            assert digest not in self.images, "an image was encoded twice"
            assert (pixels == int(digest)).all()
            self.images.add(digest)

    def _prefill(self, chunk: Prefill) -> None:
        B, T = chunk.tokens.shape
        assert T in self.world.sizes
        assert len(chunk.images) == images_of_chunk(B, T, SOFT)
        assert chunk.fresh == (not chunk.start.any())
        assert max(self.world.sizes) >= B * T
        assert chunk.fresh or B == 1
        numbers = range(self.world.rows) if chunk.rows is None else chunk.rows.tolist()
        columns = [chunk.start, chunk.count, chunk.tokens, chunk.soft_index]
        each = zip(range(B), numbers, *(x.tolist() for x in columns), strict=True)
        for place, number, start, count, tokens, soft in each:
            if not count:
                continue
            assert not self.rows[number].remaining, "a row was prefilled while it decodes"
            table = self._table(chunk.pages, place)
            image_tokens = [index for index in soft[:count] if index >= 0]
            assert soft[count:] == [-1] * (T - count)
            assert len(image_tokens) % SOFT == 0, "an image was split"
            for position, (token, index) in enumerate(zip(tokens[:count], soft, strict=False), start):
                assert (index >= 0) == (token == SOFT_TOKEN)
                key: Key = token
                if index >= 0:
                    digest = chunk.images[index // SOFT]
                    assert digest in self.images, "an image was not encoded"
                    key = int(digest), index % SOFT
                # A chunk longer than a ring leaves only its end there; it attends to what was there before.
                looked = start if position - start < self.world.least_ring else 0
                self._feed(number, table, position, key, looked)

    def _activate(self, activate: Activate) -> None:
        row, held = self.rows[activate.row], self.world.scheduler.rows[activate.row]
        request = held.occupant
        assert not row.remaining, "a row was activated twice"
        fed = self.content(held.pages, activate.length)
        assert fed == [*request.content, *request.generated][:-1], "a row holds something else than its prompt"
        row.length = activate.length
        request.row = activate.row
        row.last, row.remaining, row.seed = activate.last, activate.remaining, int(activate.numbers["seed"][0])
        text = [*request.tokens, *request.generated]
        assert activate.text is None if not self.world.keep_text else activate.text.tolist() == text
        assert activate.numbers["ahead"][0] == (request.constraint is None)
        row.stop, row.constrained = frozenset(activate.stop.tolist()), request.constraint is not None

    def _decode(self, decode: Decode) -> Drawn:
        assert len(set(decode.rows)) == len(decode.rows)
        picked = range(len(self.rows)) if decode.picked is None else decode.picked
        assert decode.picked is None or picked[: len(decode.rows)] == decode.rows
        assert len(set(picked)) == len(picked) in (len(self.rows), *self.world.scheduler.few)
        assert 0 < decode.steps <= self.world.steps_per_call
        constrained = {i for i in decode.rows if self.rows[i].constrained and self.rows[i].remaining}
        for i, row in enumerate(self.rows):
            assert not row.remaining or row.constrained or i in decode.rows, "a row waits for nothing"
        assert decode.masks is None or decode.steps == 1, "a mask for more than one step"
        assert constrained <= set(decode.masks or {}) <= set(decode.rows), "a row without its mask"
        most = 1 + self.world.draft_tokens
        tokens = np.full((self.world.steps_per_call * most, len(picked)), NO_TOKEN)
        guesses = np.zeros((2, tokens.shape[1]), int)
        for row in (self.rows[i] for i in picked):  # those that rest are written to as well
            for (_, slots), ring in zip(self.world.rings, row.rings, strict=True):
                if not row.remaining:
                    ring[row.length % slots] = (-1, 0, 1)
        for number in decode.rows:
            row = self.rows[number]
            table = self._table(decode.pages, decode.column(number))
            mask = int(decode.masks[number][0]) if number in (decode.masks or {}) else 0
            made, column = 0, decode.column(number)
            for _ in range(decode.steps):  # of one token, and some that were guessed right
                for right in range(self.world.random.randint(1, 1 if row.constrained else most)):
                    if row.remaining:
                        tokens[made, column] = self._one(number, table, mask)
                        made, guesses[1, column] = made + 1, guesses[1, column] + (right > 0)
        return Drawn(tokens, guesses=guesses)

    def _one(self, number: int, table: list[int], mask: int) -> int:
        row = self.rows[number]
        state = self._feed(number, table, row.length, row.last, row.length)
        row.remaining -= 1
        if state is None:
            row.remaining = 0
            return NOT_FINITE
        row.last = draw(state, row.seed, mask)
        if row.last in row.stop:
            row.remaining = 0
        return row.last


class Unreadable:
    """Tokens of a program that failed."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise self.error
