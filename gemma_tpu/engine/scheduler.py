"""Assigns requests to batch rows and plans what the device does next. No jax, no thread, no clock.

`plan` gives a `Step`; `commit` takes the tokens that came of it. Several steps may be planned before the first is
committed, so that the device always has work: what a row has written by then is known only as far as it was read.

A step has one prefill call at most, so that a running answer waits for no more than that. Rows share the pages of the
cache: when there are none left, what is kept for later goes first, then the newest request gives up its row, and is
resumed when there is room.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gemma_tpu.engine.errors import NotFiniteError
from gemma_tpu.engine.images import ImageIndex
from gemma_tpu.engine.memory import CacheMemory
from gemma_tpu.engine.queue import Queue
from gemma_tpu.engine.request import ImageInput, Request
from gemma_tpu.engine.rows import Row, chunk_end, make_prefill, page_owners
from gemma_tpu.engine.step import NOT_FINITE, Activate, Clear, Decode, Drawn, Prefill, Step, activate, token_logprobs
from gemma_tpu.options import NO_TOKEN, TokenLogprob

_STEPS_BESIDE = 2  # of a call that runs while the host makes the masks of rows that are held to a grammar


class Occupancy(NamedTuple):
    """Requests that have a batch row and that wait for one, and whose the pages of the cache are.

    `needed` are those of running requests; `kept` those of others that may come again; `resumed` counts the requests
    that had to give their pages to others, and went on later.
    """

    running: int
    waiting: int
    needed: int
    kept: int
    free: int
    resumed: int


@dataclasses.dataclass
class Scheduler:
    """For one thread at a time.

    `memory`: the batch rows and what they hold. `context`: most tokens of prompt and answer. `prefill_sizes`: tokens of
    a prefill call, ascending. `prefill_rows`: rows of a call of the shortest size, which begins several prompts.
    `num_soft_tokens`: of an image; 0 without a vision tower. `steps_per_call`: decode steps of a call. `together`
    and `few`: see `gemma_tpu.deployment.Calls`. `eos_tokens` end an answer whose request names no stop tokens.
    `dtype`: that of the weights. `image_batches` and `remembered_images`: see `ImageIndex`. `draft_tokens`: tokens that
    are guessed at each decode step; `keep_text`: whether from the text.
    """

    memory: CacheMemory
    context: int
    prefill_sizes: Sequence[int]
    prefill_rows: int
    num_soft_tokens: int
    steps_per_call: int
    together: bool
    few: Sequence[int]
    eos_tokens: Sequence[int]
    dtype: np.dtype
    image_batches: Sequence[int]
    remembered_images: int
    draft_tokens: int = 0
    keep_text: bool = False

    def __post_init__(self) -> None:
        self.waiting = Queue()
        self.images = ImageIndex(self.dtype, self.image_batches, self.remembered_images)
        self._turn = self._resumed = 0
        self._release: list[int] = []  # rows for the next step

    @property
    def rows(self) -> list[Row]:
        return self.memory.rows

    @property
    def running(self) -> list[Request]:
        """Requests that have a row."""
        return [row.request for row in self.rows if row.request]

    @property
    def has_work(self) -> bool:
        """Whether there is something to plan; tokens that have not been committed are the caller's to know."""
        return bool(self.waiting or self._release or self.running)

    def occupancy(self) -> Occupancy:
        pool = self.memory.pool
        needed = sum(len(row.pages) for row in self.rows if row.request)
        kept = pool.count - pool.num_free - needed
        return Occupancy(len(self.running), len(self.waiting), needed, kept, pool.num_free, self._resumed)

    def plan(self, now: float) -> Step:
        """What the device does next; possibly nothing, until earlier steps have been committed.

        `now`: seconds by the clock of `Request.deadline`.
        """
        self._turn += 1
        self.memory.turn = self._turn
        self._end_early(now)
        self._assign_waiting()
        prefill, shown = self._prefill()
        before = self.memory.take_operations()
        for row in self.memory.follow(self.num_soft_tokens):
            row.occupant.reuse(len(row.keys))
        self._make_room()
        after = self.memory.take_operations()
        started, decode = self._activate(), self._decode()
        encode, forget = self.images.use(shown)
        release, self._release = tuple(self._release), []
        return Step(release, before, encode, prefill, after, started, decode, forget)

    def dispatched(self, step: Step) -> None:
        """A planned step has been handed to the device: the prompts of the rows it activates have been prefilled."""
        for started in step.activate:
            self.rows[started.row].occupant.prefilled()

    def commit(self, step: Step, drawn: Drawn) -> None:
        """Delivers the tokens of a planned step that decodes. In the order of the steps."""
        if (decode := step.decode) is None:
            return
        columns = drawn.tokens.T.tolist()
        for index in decode.rows:
            row, column = self.rows[index], decode.column(index)
            row.unread -= 1
            row.ahead -= self._most_tokens(decode.steps)
            if row.request and drawn.guesses is not None:
                row.request.count_guesses(*drawn.guesses[:, column].tolist())
            new = [token for token in columns[column] if token != NO_TOKEN]
            wanted = row.request.sampling_params.logprobs if row.request and new else None
            self._deliver(row, new, [] if wanted is None else token_logprobs(drawn, column, new, wanted))
            if not row.unread:
                self._settle(row)

    def fail(self, error: BaseException) -> None:
        """Ends every request."""
        requests = [*self.waiting, *self.running]
        self.waiting.clear()
        for request in requests:
            request.fail(error)

    def restart(self) -> Step:
        """After `fail`: no row holds anything and no image is known. The step that makes it so on the device."""
        self.memory.reset()
        self._release = []
        clear = Clear(None, range(self.memory.pool.count)), *(Clear(row.index, ()) for row in self.rows)
        return Step(tuple(range(len(self.rows))), clear, forget=self.images.clear())

    def _end_early(self, now: float) -> None:
        for row in self.rows:
            if row.request and (reason := row.request.ended_early(now)):
                # The calls under way still write into the cache, which cannot be rewound. What they write is delivered,
                # so that a conversation with this answer in it can go on from there.
                self._halt(row)
                if not row.unread:
                    self._vacate(row).finish(reason)
        for request in list(self.waiting):  # without waiting for a row
            if reason := request.ended_early(now):
                self.waiting.remove(request)
                request.finish(reason)

    def _halt(self, row: Row) -> None:
        """No more calls for this row than those under way."""
        if row.decoding:
            self._release.append(row.index)
        row.decoding, row.halted = False, True

    def _vacate(self, row: Row, *, resting: bool = False) -> Request:
        """Takes the request out of a row. `resting`: the device has stopped the row already."""
        request = row.occupant
        if row.decoding and not resting:
            self._release.append(row.index)
        row.request, row.decoding, row.halted, row.last_used = None, False, not resting, self._turn
        row.mask = None
        if not row.unread:
            self._settle(row)
        return request

    def _settle(self, row: Row) -> None:
        """What is to be done with a row that is not decoding once all is known that was written to it."""
        if row.request is None:
            self.memory.trim(row)
            row.lost = False
        elif row.lost:
            request, row.lost = self._vacate(row, resting=True), False
            self.waiting.resume(request)
            self._resumed += 1

    @contextlib.contextmanager
    def _only(self, row: Row) -> Iterator[None]:
        """What is done for one request on the host: an error in it is that request's alone."""
        try:
            yield
        except Exception as error:
            self._vacate(row).fail(error)

    def _assign_waiting(self) -> None:
        while self.waiting and any(row.free for row in self.rows):
            request = self.waiting.next(self.running)
            row = self.memory.begin(request, self.num_soft_tokens)
            if row is None:  # no room: it is the first to be given some
                return
            self.waiting.take(request)
            row.halted = row.lost = False
            request.assign(len(row.keys))

    def _prefill(self) -> tuple[tuple[Prefill, ...], list[ImageInput]]:
        """One call for the next chunks of a row, or of several that are short, and the images in it."""
        while rows := self._to_prefill():
            ends: dict[int, int] = {}
            longest = self.prefill_sizes[-1] if len(rows) == 1 else self.prefill_sizes[0]
            for row in rows:
                with self._only(row):
                    starts = [placed.start for placed in row.occupant.images]
                    target = self.memory.chunk_target(row, min(row.prefill_target, len(row.keys) + longest))
                    end = chunk_end(len(row.keys), target, longest, starts, self.num_soft_tokens)
                    self.images.prepare([placed.image for placed in row.images_until(end)])
                    ends[row.index] = end
            if rows := [self.rows[index] for index in ends]:
                break
        else:
            return (), []
        size = next(size for size in self.prefill_sizes if size >= max(ends[row.index] - len(row.keys) for row in rows))
        together = len(rows) > 1
        shape = size, self.prefill_rows if together else 1, len(self.rows)
        shown = [placed.image for row in rows for placed in row.images_until(ends[row.index])]
        prefill = make_prefill(rows, ends, *shape, self.num_soft_tokens, self.memory.pool)
        for row in rows:
            self.memory.keep_ends(row, ends[row.index] + 1)
            row.keys, row.served = row.prompt_keys[: ends[row.index]], self._turn
        return (prefill,), shown

    def _to_prefill(self) -> list[Row]:
        """The rows of the next prefill call.

        In turn, the one that has least left, so that a short prompt need not wait for a long one, and the one that has
        waited longest, so that a long one comes to its end. Who waits for another's prompt counts with that one. Those
        that one call of the shortest size is enough for are read together.
        """
        rows = [row for row in self.rows if row.prefilling and not row.leader and len(row.keys) < row.prefill_target]
        if not rows:
            return []
        if self._turn % 2:
            first = min(rows, key=lambda row: (self._left(row), row.occupant.number))
        else:
            first = min(rows, key=lambda row: (row.served, row.occupant.number))
        if not (self._is_short(first) and self.together):
            return [first]
        short = [row for row in rows if self._is_short(row)]
        return sorted(short, key=lambda row: (row is not first, row.occupant.number))[: self.prefill_rows]

    def _left(self, row: Row) -> int:
        """Tokens to prefill before this row or one that waits for it is done."""
        return min(one.prefill_target for one in (row, *self.memory.followers(row))) - len(row.keys)

    def _is_short(self, row: Row) -> bool:
        """Whether it is begun and done with by the shortest call."""
        short = not row.keys and row.prefill_target <= self.prefill_sizes[0]
        return (
            short
            and self.memory.chunk_target(row, row.prefill_target) == row.prefill_target
            and not row.occupant.images
        )

    def _make_room(self) -> None:
        """Pages for what the next decode call writes; and what is to be stored before it does."""
        for row in sorted(self.rows, key=lambda row: row.request.number if row.request else 0):
            if not (row.decoding or self._prefilled(row)):
                continue
            remaining = row.remaining if row.decoding else self._remaining(row.occupant)
            most = len(row.keys) + min(row.ahead + self._most_tokens(self.steps_per_call), remaining)
            while row.request and not row.lost and not self.memory.extend(row, min(most, self.context)):
                self._give_up_newest(row)
        for row in self.rows:
            if row.decoding or self._prefilled(row):
                self.memory.keep_ends(row, row.written + self._most_tokens(self.steps_per_call))

    def _most_tokens(self, steps: int) -> int:
        """Of a row in so many decode steps."""
        return steps * (1 + self.draft_tokens)

    def _prefilled(self, row: Row) -> bool:
        return row.prefilling and len(row.keys) >= row.prefill_target

    def _give_up_newest(self, row: Row) -> None:
        """Takes the pages of the newest request of those that share pages with `row`; it is resumed later."""
        group = self.memory.group(row)
        rivals = [one for one in self.rows if one.request and not one.halted and self.memory.group(one) == group]
        newest = max(rivals, key=lambda one: one.occupant.number)
        self._halt(newest)
        newest.checked = False  # what the calls under way write is not known
        self.memory.drop(newest)
        newest.lost = True
        if not newest.unread:
            self._settle(newest)

    def _activate(self) -> tuple[Activate, ...]:
        """Lets the rows whose prompts are in the cache begin to decode."""
        activated = []
        for row in self.rows:
            if self._prefilled(row):
                with self._only(row):
                    request = row.occupant
                    remaining = self._remaining(request)
                    numbers = row.index, row.prefill_target, row.prompt[-1], remaining
                    asked = request.sampling_params, self._stop_tokens(request)
                    row.mask = request.constraint.mask() if request.constraint else None
                    text = request.tokens, request.generated, request.seed
                    how = {"constrained": row.constrained, "keep_text": self.keep_text}
                    activated.append(activate(*numbers, *asked, *text, **how))
                    row.decoding, row.dispatched = True, False
                    row.last_key, row.remaining = row.prompt_keys[-1], remaining
        return tuple(activated)

    def _decode(self) -> Decode | None:
        decoding = [row for row in self.rows if row.decoding]
        rows = [row for row in decoding if row.mask is not None or not row.constrained]
        if not rows:
            return None
        # A row's first token is worth a call of its own: its caller is waiting for it.
        # And while prompts are prefilled, a call of one step lets the next chunk begin soon.
        waiting = any(row.prefilling for row in self.rows)
        steps = 1 if waiting or not all(row.dispatched for row in rows) else self.steps_per_call
        if any(row.constrained for row in decoding):  # a mask is good for one step, and the next should not wait long
            steps = 1 if any(row.constrained for row in rows) else min(steps, _STEPS_BESIDE)
        masks = {row.index: row.mask for row in rows if row.mask is not None}
        for row in rows:
            row.dispatched, row.mask = True, None
            row.unread += 1
            row.ahead += self._most_tokens(steps)
        asked = [row.occupant.sampling_params for row in rows]
        asked_rows, picked = [row.index for row in rows], None
        if few := next((few for few in self.few if few >= len(rows)), None):
            others = [row.index for row in self.rows if row.index not in asked_rows]
            picked = (*asked_rows, *others[: few - len(rows)])
        places = asked_rows if picked is None else range(len(rows))
        pages = [(place, row.pages) for place, row in zip(places, rows, strict=True)]
        return Decode(
            rows=tuple(asked_rows),
            steps=steps,
            pages=page_owners(self.memory.pool, pages),
            picked=picked,
            count=any(params.penalized for params in asked),
            logprobs=any(params.logprobs is not None for params in asked),
            masks=masks or None,
        )

    def _remaining(self, request: Request) -> int:
        """Tokens that a request may still produce when it begins to decode."""
        most = min(request.sampling_params.max_new_tokens, self.context - len(request.tokens))
        return most - len(request.generated)

    def _stop_tokens(self, request: Request) -> Sequence[int]:
        asked = request.sampling_params
        if asked.stop_tokens is None:
            return () if asked.ignore_eos else self.eos_tokens
        return [token for token in asked.stop_tokens if not (asked.ignore_eos and token in self.eos_tokens)]

    def _deliver(self, row: Row, new: list[int], logprobs: list[TokenLogprob]) -> None:
        if not new:
            return
        if spoiled := new[-1] == NOT_FINITE:
            new = new[:-1]
            self.memory.spoil(row)
        else:
            self.memory.check(row)
            if not row.lost:
                # Each token was drawn after the one before was fed, so the cache now holds all but the last of them.
                row.keys += [row.last_key, *new[:-1]]
            row.last_key = new[-1]
            row.remaining -= len(new)
        request = row.request
        if request is None:  # it has left while this call was under way
            return
        stopped = not spoiled and new[-1] in self._stop_tokens(request)
        complete = False  # a stop string
        if visible := new[:-1] if stopped else new:
            with self._only(row):
                complete = request.push(visible, logprobs[: len(visible)])
                if request.constraint and not (complete or stopped or spoiled):
                    complete = request.constraint.push(visible)
                    row.mask = None if complete or not row.remaining else request.constraint.mask()
        resting = spoiled or stopped or not row.remaining
        if row.request and (resting or complete):
            self._vacate(row, resting=resting)
            if stopped or complete:
                request.finish("stop")
            elif spoiled:
                request.fail(NotFiniteError(f"after {len(request.generated)} tokens of an answer", self.dtype))
            else:
                request.finish("length")
