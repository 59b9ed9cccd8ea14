"""Random operations on a scheduler and its loop, with a model of the device that checks everything it is told.

The device's rows hold the tokens that were fed to them, and a token is drawn from all that a row holds: an answer is
that of its request alone only if every token was fed once and in order.

`python -m tests.scheduler_steps --steps 1000000` runs more of them than the test does.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import random
import time
from typing import Any

import jax
import numpy as np

from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.deployment import IMAGE_BATCHES, REMEMBERED_IMAGES
from gemma_tpu.engine.errors import NotFiniteError
from gemma_tpu.engine.loop import Loop
from gemma_tpu.engine.request import ImageInput, Request
from gemma_tpu.engine.rows import images_of_chunk
from gemma_tpu.engine.runner import Runner
from gemma_tpu.engine.scheduler import Scheduler
from gemma_tpu.engine.step import NOT_FINITE, Activate, Decode, Encode, Prefill, Step
from gemma_tpu.options import NO_TOKEN, SamplingParams
from gemma_tpu.picture import PlacedImage

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


def draw(state: int, seed: int) -> int:
    return ((state ^ seed * 0x9E3779B97F4A7C15) >> 33) % VOCABULARY


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


class Checked(Request):
    """A request that knows its answer, and checks its end."""

    def __init__(self, world: World, tokens: list[int], images: list[PlacedImage], **asked: Any) -> None:
        self.world, self.ends, self.number = world, 0, world.submitted
        self.watched = frozenset(world.random.sample(range(VOCABULARY), world.random.choice([0, 0, 2])))
        self.watch_fails = world.random.random() < 0.03
        super().__init__(tokens, images, SamplingParams(**asked), self._watch, num_soft_tokens=SOFT)
        self.content: list[Key] = list(tokens)
        for placed in images:
            number = placed.image.number
            self.content[placed.start : placed.start + SOFT] = [(number, i) for i in range(SOFT)]
        self.broken = any(placed.image.broken for placed in images)
        self.shown = list(images)
        self.row: int | None = None  # when it decodes

    def _watch(self, tokens: list[int]) -> int | None:
        if self.watch_fails and self.world.random.random() < 0.3:
            raise ZeroDivisionError("cannot watch")
        return next((i + 1 for i, token in enumerate(tokens) if token in self.watched), None)

    def assign(self, cached_tokens: int) -> None:
        assert self.number > self.world.last_assigned, "a request was overtaken"
        self.world.last_assigned = self.number
        if not self.world.broken_images:  # whose requests leave a row before it is used
            assert cached_tokens == self.world.reusable(self), "not all that could be was reused"
        self.world.counts["reused tokens"] += cached_tokens
        super().assign(cached_tokens)

    def _end(self, reason: str, error: BaseException | None) -> None:
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
        elif reason == "cancelled":
            assert self.cancelled
            if self.row is not None:
                written = self.world.device.rows[self.row].held
                assert written == [*self.content, *self.generated][:-1], "what was written before a cancel is lost"
        elif isinstance(error, MemoryError):
            assert self.broken
        elif isinstance(error, ZeroDivisionError):
            assert self.watch_fails
        else:
            assert error is self.world.failing, "an error without a failure"
        super()._end(reason, error)

    def _alone(self) -> tuple[list[int], str]:
        """The answer of this request alone, and how it ends."""
        asked, state, seed = self.sampling_params, 1, self.sampling_params.seed
        for key in self.content[:-1]:
            state = feed(state, key)
        last, answer = self.content[-1], []
        stop = self.world.eos if asked.stop_tokens is None else asked.stop_tokens
        for _ in range(min(asked.max_new_tokens, self.world.context - len(self.tokens))):
            if (state := feed(state, last)) is None:
                return answer, "not finite"
            if (last := draw(state, seed)) in stop:
                return answer, "stop"
            answer.append(last)
            if last in self.watched:
                return answer, "stop"
        return answer, "length"


@dataclasses.dataclass
class DeviceRow:
    held: list[Key] = dataclasses.field(default_factory=list)
    state: int | None = 1
    spoiled: bool = False  # it holds NaN until it is cleared
    last: int = 0
    remaining: int = 0
    seed: int = 0
    stop: frozenset[int] = frozenset()


class FakeDevice(Runner):
    """A runner without a device. It fails when the world says so: before a step, within it, or when tokens are read."""

    def __init__(self, world: World) -> None:
        self.world, self.lost = world, False

    def reset(self) -> None:
        self.rows = [DeviceRow() for _ in range(self.world.rows)]
        self.images: set[bytes] = set()
        self.lost = False

    @property
    def intact(self) -> bool:
        return not self.lost

    def run(self, step: Step) -> Any:
        self.world.counts["steps"] += 1
        calls = [(getattr(self, f"_{kind}"), one) for kind in ("clear", "release") for one in getattr(step, kind)]
        calls += [(self._encode, images) for images in step.encode]
        calls += [(self._prefill, chunk) for chunk in step.prefill]
        calls += [(self._activate, row) for row in step.activate]
        how = self.world.fails(bool(step.decode))
        if how in ("host", "program"):
            for call, argument in calls[: self.world.random.randrange(len(calls) + 1)]:
                call(argument)
            self.lost = how == "program" and self.world.random.random() < 0.5
            raise self.world.failing
        for call, argument in calls:
            call(argument)
        tokens = self._decode(step.decode) if step.decode else None
        assert not set(step.forget) & {digest for chunk in step.prefill for digest in chunk.images}
        self.images -= set(step.forget)
        assert len(self.images) <= max(REMEMBERED_IMAGES, sum(len(chunk.images) for chunk in step.prefill))
        return Unreadable(self.world.failing) if how == "tokens" else tokens

    def _clear(self, row: int) -> None:
        self.rows[row] = DeviceRow()

    def _release(self, row: int) -> None:
        self.rows[row].remaining = 0

    def _encode(self, images: Encode) -> None:
        assert len(images.digests) == len(images.pixels) in IMAGE_BATCHES
        for digest, pixels in zip(images.digests, images.pixels, strict=True):
            assert digest not in self.images, "an image was encoded twice"
            assert (pixels == int(digest)).all()
            self.images.add(digest)

    def _prefill(self, chunk: Prefill) -> None:
        B, T = chunk.tokens.shape
        assert T in self.world.sizes
        assert len(chunk.images) == images_of_chunk(B, T, SOFT)
        assert chunk.fresh == (not chunk.start.any())
        numbers = range(self.world.rows) if chunk.rows is None else chunk.rows.tolist()
        columns = [chunk.start, chunk.count, chunk.tokens, chunk.soft_index]
        for number, start, count, tokens, soft in zip(numbers, *(x.tolist() for x in columns), strict=True):
            if not count:
                continue
            row = self.rows[number]
            assert not row.remaining, "a row was prefilled while it decodes"
            if start == 0:
                row.held, row.state = [], 1
            assert start == len(row.held), "a chunk does not begin where its row ends"
            image_tokens = [index for index in soft[:count] if index >= 0]
            assert soft[count:] == [-1] * (T - count)
            assert len(image_tokens) % SOFT == 0, "an image was split"
            for token, index in zip(tokens[:count], soft, strict=False):
                assert (index >= 0) == (token == SOFT_TOKEN)
                key: Key = token
                if index >= 0:
                    digest = chunk.images[index // SOFT]
                    assert digest in self.images, "an image was not encoded"
                    key = int(digest), index % SOFT
                row.held.append(key)
                row.state = feed(row.state, key)

    def _activate(self, activate: Activate) -> None:
        row, request = self.rows[activate.row], self.world.scheduler.rows[activate.row].request
        assert not row.remaining, "a row was activated twice"
        if not activate.length:
            row.held, row.state = [], 1
        assert row.held == request.content[:-1], "a row holds something else than its prompt"
        assert activate.length == len(row.held)
        request.row = activate.row
        row.last, row.remaining, row.seed = activate.last, activate.remaining, int(activate.sampling["seed"][0])
        row.stop = frozenset(activate.stop.tolist())

    def _decode(self, decode: Decode) -> np.ndarray:
        active = {i for i, row in enumerate(self.rows) if row.remaining}
        assert active <= set(decode.rows), "a row decodes that nobody reads"
        assert not decode.alone or len(decode.rows) == 1
        assert 0 < decode.steps <= self.world.steps_per_call
        tokens = np.full((self.world.steps_per_call, 1 if decode.alone else len(self.rows)), NO_TOKEN)
        for number in decode.rows:
            row = self.rows[number]
            for i in range(decode.steps):
                if not row.remaining:
                    break
                tokens[i, 0 if decode.alone else number] = self._one(row)
        return tokens

    def _one(self, row: DeviceRow) -> int:
        row.held.append(row.last)
        row.state = feed(row.state, row.last)
        row.remaining -= 1
        row.spoiled |= row.state is None
        if row.state is None or row.spoiled:
            row.remaining = 0
            return NOT_FINITE
        row.last = draw(row.state, row.seed)
        if row.last in row.stop:
            row.remaining = 0
        return row.last


class Unreadable:
    """Tokens of a program that failed."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise self.error


class World:
    """A scheduler of some size, and those who use it."""

    def __init__(self, seed: int, counts: collections.Counter[str]) -> None:
        self.random = r = random.Random(seed)
        self.counts = counts
        self.rows, self.context = r.randint(1, 5), r.choice([24, 40, 64])
        self.sizes = sorted(r.sample([4, 5, 8, 12, 16, 24], r.randint(1, 3)))
        self.steps_per_call, self.eos = r.choice([1, 2, 4, 8]), (1, 2)
        self.failure_rate = r.choice([0, 0, 0.01])
        self.broken_images = r.choice([0, 0.02])  # their share
        self.failing: Exception | None = None
        self.open: set[Checked] = set()
        self.past: collections.deque[Checked] = collections.deque(maxlen=8)
        self.submitted, self.last_assigned = 0, -1
        self.scheduler = Scheduler(
            max_rows=self.rows,
            context=self.context,
            prefill_sizes=self.sizes,
            num_soft_tokens=SOFT,
            steps_per_call=self.steps_per_call,
            batch_always=self.rows == 1 or r.random() < 0.5,
            eos_tokens=self.eos,
            dtype=np.dtype(np.float32),
        )
        self.device = FakeDevice(self)
        self.loop = Loop(self.scheduler, self.device)

    def fails(self, decodes: bool) -> str:
        """How the step that is about to run fails; "" if it does not."""
        self.failing = None
        if self.random.random() >= self.failure_rate:
            return ""
        how = self.random.choice(["host", "program", "tokens"] if decodes else ["host", "program"])
        self.failing = TypeError("cannot be sent") if how == "host" else PROGRAM_FAILED
        return how

    def reusable(self, request: Checked) -> int:
        """The most tokens of a prompt that a free row holds, with nothing else, as the device knows it."""
        free = [self.device.rows[row.index] for row in self.scheduler.rows if row.free or row.request is request]
        held = [row.held for row in free if not row.spoiled and len(row.held) < len(request.content)]
        return max((len(keys) for keys in held if keys == request.content[: len(keys)]), default=0)

    def operate(self) -> None:
        """One random operation."""
        dice = self.random.random()
        if dice < 0.12:
            if len(self.open) < 4 * self.rows:
                self.submit()
        elif dice < 0.15 and self.open:
            self.random.choice(sorted(self.open, key=lambda request: request.number)).cancel()
        elif dice < 0.16:
            self.encode()
        else:
            self.turn()

    def turn(self) -> None:
        if not self.loop.has_work:
            assert not self.open, "a request was lost"
            assert all(row.free for row in self.scheduler.rows)
            assert not any(row.remaining for row in self.device.rows), "a row was lost"
            return
        try:
            self.loop.turn(contextlib.nullcontext())
        except (TypeError, jax.errors.JaxRuntimeError) as error:
            self.recover(error)

    def recover(self, error: Exception) -> None:
        self.failing = error
        self.scheduler.fail(error)
        assert not self.open, "a request was not told of a failure"
        rate, self.failure_rate = self.failure_rate, 0
        self.loop.recover(error)
        self.failure_rate = rate

    def encode(self) -> None:
        """What a caller asks of the vision tower alone."""
        images = [FakeImage(self.random.randrange(IMAGES)) for _ in range(self.random.randint(1, 6))]
        try:
            digests = self.loop.encode(images)
        except (TypeError, jax.errors.JaxRuntimeError) as error:
            if not self.device.intact:
                self.recover(error)
            return
        assert digests == [image.digest for image in images]
        assert set(digests) <= self.device.images

    def submit(self) -> None:
        tokens, images = self.prompt()
        if len(tokens) >= self.context:
            return
        r = self.random
        stop = r.choice([None, (), r.sample(range(VOCABULARY), 3)])
        asked = {"max_new_tokens": r.randint(1, 20), "stop_tokens": stop, "seed": r.randrange(2)}
        request = Checked(self, tokens, images, **asked)
        self.submitted += 1
        self.open.add(request)
        self.past.append(request)
        self.scheduler.waiting.append(request)
        self.counts["requests"] += 1

    def prompt(self) -> tuple[list[int], list[PlacedImage]]:
        """One of its own, or one that goes on from another: from its answer, or from somewhere in its prompt."""
        r, tokens, images = self.random, [], []
        if self.past and r.random() < 0.6:
            before = r.choice(self.past)
            tokens, images = [*before.tokens, *before.generated], list(before.shown)
            if r.random() < 0.3:
                cut = r.randrange(len(before.tokens)) + 1
                images = [placed for placed in images if placed.start + SOFT <= cut]
                inside = [placed.start for placed in before.shown if placed.start < cut < placed.start + SOFT]
                tokens = tokens[: min([cut, *inside])]
        for _ in range(r.choice([0, 1, 1, 2])):
            if r.random() < 0.4:
                images.append(PlacedImage(len(tokens), FakeImage(r.randrange(IMAGES), r.random() < self.broken_images)))
                tokens += [SOFT_TOKEN] * SOFT
            else:
                tokens += [r.randint(0 if r.random() < 0.02 else 1, VOCABULARY - 1) for _ in range(r.randint(1, 12))]
        return [*tokens, r.randint(1, VOCABULARY - 1)], images

    def finish(self) -> None:
        """Until nothing is left to do, which is soon."""
        for _ in range(1000):
            if not self.loop.has_work:
                break
            self.turn()
        assert not self.loop.has_work, "work without end"
        self.turn()


def run(steps: int, seed: int = 0, world_steps: int = 1000) -> collections.Counter[str]:
    """So many operations, in worlds of different sizes; what happened in them, counted."""
    counts: collections.Counter[str] = collections.Counter()
    for world_seed in range(seed, seed + -(-steps // world_steps)):
        world = World(world_seed, counts)
        try:
            for _ in range(world_steps):
                world.operate()
            world.finish()
        except AssertionError as error:
            raise AssertionError(f"seed {world_seed}: {error}") from error
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin = time.monotonic()
    print(json.dumps(run(args.steps, args.seed)))
    print(f"{args.steps:,} operations in {time.monotonic() - begin:.0f} s")
