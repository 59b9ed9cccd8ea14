"""Random operations on a scheduler and its loop, with a model of the device that checks everything it is told.

The device's rows hold the tokens that were fed to them, and a token is drawn from all that a row holds: an answer is
that of its request alone only if every token was fed once and in order.

`python -m tests.scheduler_steps --steps 1000000` runs more of them than the test does.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import random
import time

import jax
import numpy as np

from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.engine.loop import Loop
from gemma_tpu.engine.memory import CacheMemory
from gemma_tpu.engine.scheduler import Scheduler
from gemma_tpu.picture import PlacedImage
from tests.scheduler_device import IMAGES, PROGRAM_FAILED, SOFT, VOCABULARY, Checked, FakeDevice, FakeImage


class World:
    """A scheduler of some size, and those who use it."""

    def __init__(self, seed: int, counts: collections.Counter[str]) -> None:
        self.random = r = random.Random(seed)
        self.counts = counts
        self.rows, self.context = r.randint(1, 5), r.choice([24, 40, 64])
        self.sizes = sorted(r.sample([4, 5, 8, 12, 16, 24], r.randint(1, 3)))
        self.steps_per_call, self.eos = r.choice([1, 2, 4, 8]), (1, 2)
        self.draft_tokens, self.keep_text = r.choice([0, 0, 1, 4]), r.random() < 0.5
        self.failure_rate = r.choice([0, 0, 0.01])
        self.broken_images, self.failing_masks = r.choice([0, 0.02]), r.choice([0, 0.03])  # their share
        self.failing: Exception | None = None
        self.open: set[Checked] = set()
        self.past: collections.deque[Checked] = collections.deque(maxlen=8)
        self.submitted = self.now = 0  # a turn is a second
        self.last_assigned: dict[object, int] = {}
        self.page, self.places = r.choice([2, 4, 8]), r.choice([0, 1, 3])
        self.groups = r.choice([1, 2]) if self.rows % 2 == 0 else 1
        longest = -(-self.context // self.page)
        most = self.rows // self.groups * longest
        self.ample = r.random() < 0.4  # else pages run out
        self.pages = self.groups * (
            most + self.places * longest if self.ample else r.randint(longest, max(longest, most * 2 // 3))
        )
        windows = r.choice([[], [4], [4, 6], [1000]])
        self.rings = [(window, min(window, longest * self.page)) for window in windows]
        self.least_ring = min([slots for _, slots in self.rings], default=0)
        self.least_awaited, least = r.choice([1, 4, 32]), r.choice([1, 4, 32])
        self.least_awaited = max(self.least_awaited, least)
        sizes = self.rows, self.pages, self.page, self.groups, self.rings, self.places
        memory = CacheMemory(*sizes, least_shared=least, least_awaited=self.least_awaited)
        self.scheduler = Scheduler(
            memory=memory,
            context=self.context,
            prefill_sizes=self.sizes,
            prefill_rows=min(self.rows, self.sizes[-1] // self.sizes[0]),
            num_soft_tokens=SOFT,
            steps_per_call=self.steps_per_call,
            together=r.random() < 0.5,
            few=[few for few in r.choice([[], [1], [2], [1, 3]]) if few < self.rows],
            eos_tokens=self.eos,
            dtype=np.dtype(np.float32),
            image_batches=r.choice([(4, 1), (1,)]),
            remembered_images=r.choice([8, 64]),
            draft_tokens=self.draft_tokens,
            keep_text=self.keep_text,
        )
        self.device = FakeDevice(self)
        self.loop = Loop(self.scheduler, self.device, lambda: self.now)

    def fails(self, decodes: bool) -> str:
        """How the step that is about to run fails; "" if it does not."""
        self.failing = None
        if self.random.random() >= self.failure_rate:
            return ""
        how = self.random.choice(["host", "program", "tokens"] if decodes else ["host", "program"])
        self.failing = TypeError("cannot be sent") if how == "host" else PROGRAM_FAILED
        return how

    def resting(self, request: Checked) -> int:
        """The most tokens of a prompt that a free row holds, with nothing else."""
        free = [row for row in self.scheduler.rows if row.free or row.request is request]
        held = [self.held.get(row.index, []) for row in free]
        wanted = [*request.content, *request.generated]
        return max((len(keys) for keys in held if len(keys) < len(wanted) and keys == wanted[: len(keys)]), default=0)

    def check_pages(self) -> None:
        """Every page is free, or held as often as it is said to be; no two rows have the same."""
        memory = self.scheduler.memory
        rows = [page for row in memory.rows for page in row.pages]
        assert len(set(rows)) == len(rows), "two rows have a page"
        held = collections.Counter(rows + [page for one in memory.stored for page in one.pages])
        assert held == memory.pool._holders, "pages are not held by whom they should"
        assert len(held) + memory.pool.num_free == self.pages, "a page was lost"
        for held in [*memory.rows, *memory.stored]:
            assert all(memory.pool.group(page) == memory.group(held) for page in held.pages) or held in memory.stored
        for row in memory.rows:
            assert len(row.pages) >= memory.pool.needed(len(row.keys)) or row.lost
            if row.free and not row.unread:
                assert len(row.pages) == memory.pool.needed(len(row.keys)), "a free row keeps pages for nothing"

    def check_waiting(self) -> None:
        """Of rows that prefill, the last to begin with it is not far from where it parts from the others."""
        rows = [row for row in self.scheduler.rows if row.prefilling and not row.leader]
        for a, b in itertools.combinations(rows, 2):
            some, others = (row.occupant.content + row.occupant.generated for row in (a, b))
            alike = [x == y for x, y in zip(some[:-1], others[:-1], strict=False)]
            common = [*alike, False].index(False)
            inside = [placed.start for placed in a.occupant.shown if placed.start < common < placed.start + SOFT]
            common = min([common, *inside])
            done = max(len(a.keys), len(b.keys))
            assert common <= done + self.least_awaited, "two rows prefill the same"

    def operate(self) -> None:
        """One random operation."""
        dice = self.random.random()
        if dice < 0.12:
            if len(self.open) < 4 * self.rows:
                self.submit()
                while self.past and self.random.random() < 0.4:
                    self.submit(self.past[-1])
        elif dice < 0.15 and self.open:
            self.random.choice(sorted(self.open, key=lambda request: request.number)).cancel()
        elif dice < 0.16:
            self.encode()
        else:
            self.turn()
        self.check_pages()

    def turn(self) -> None:
        if not self.loop.has_work:
            assert not self.open, "a request was lost"
            assert all(row.free for row in self.scheduler.rows)
            assert not any(row.remaining for row in self.device.rows), "a row was lost"
            return
        self.held = {
            row.index: self.device.content(row.pages, len(row.keys)) for row in self.scheduler.rows if row.free
        }
        self.now += 1
        try:
            self.loop.turn(contextlib.nullcontext())
            # Who has a row is told when the calls under way have been read.
            late = [request for request in self.open if request.deadline <= self.now]
            assert not any(request in self.scheduler.waiting for request in late), "a late request waits on"
            assert all(request.deadline > self.now - 2 for request in late), "a late request goes on"
        except (TypeError, jax.errors.JaxRuntimeError) as error:
            self.recover(error)
        waiting = [row for row in self.scheduler.rows if self.scheduler.memory.followers(row)]
        self.counts["prompts waited for"] += len(waiting)
        self.check_waiting()

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

    def submit(self, like: Checked | None = None) -> None:
        """One of its own, or one that is or begins like another."""
        tokens, images = (like.tokens, like.shown) if like else self.prompt()
        if like and self.random.random() < 0.6:
            tokens, images = self.prompt(like)
        if len(tokens) >= self.context:
            return
        r = self.random
        stop = r.choice([None, (), r.sample(range(VOCABULARY), 3)])
        asked = {"max_new_tokens": r.randint(1, 20), "stop_tokens": stop, "seed": r.randrange(2)}
        asked["timeout"] = r.choice([None, None, None, r.randint(1, 60)])
        request = Checked(self, tokens, images, **asked)
        self.submitted += 1
        self.open.add(request)
        self.past.append(request)
        self.scheduler.waiting.append(request)
        self.counts["requests"] += 1

    def prompt(self, before: Checked | None = None) -> tuple[list[int], list[PlacedImage]]:
        """One of its own, or one that goes on from another: from its answer, or from somewhere in its prompt."""
        r, tokens, images = self.random, [], []
        if before or (self.past and r.random() < 0.6):
            before = before or r.choice(self.past)
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
