"""Assigns requests to batch rows and plans what the device does next. No jax, no thread, no clock.

`plan` gives a `Step`; `commit` takes the tokens that came of it. Several steps may be planned before the first is
committed, so that the device always has work: what a row has written by then is known only as far as it was read.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from gemma_tpu.engine.errors import NotFiniteError
from gemma_tpu.engine.images import ImageIndex
from gemma_tpu.engine.request import ImageInput, Request
from gemma_tpu.engine.rows import Row, choose_row, chunk_end, make_prefill
from gemma_tpu.engine.step import NOT_FINITE, Activate, Decode, Drawn, Prefill, Step, activate, token_logprobs
from gemma_tpu.options import NO_TOKEN, TokenLogprob

_STEPS_BESIDE = 2  # of a call that runs while the host makes the masks of rows that are held to a grammar


@dataclasses.dataclass
class Scheduler:
    """For one thread at a time.

    `max_rows` and `context`: batch rows, and tokens of prompt and answer of each. `prefill_sizes`: tokens of a prefill
    call, ascending. `num_soft_tokens`: of an image; 0 without a vision tower. `steps_per_call`: decode steps of a call.
    `batch_always`: whether each call runs on all rows; otherwise one that is for a single row runs on that row.
    `eos_tokens` end an answer whose request names no stop tokens. `dtype`: that of the weights. `image_batches` and
    `remembered_images`: see `ImageIndex`.
    """

    max_rows: int
    context: int
    prefill_sizes: Sequence[int]
    num_soft_tokens: int
    steps_per_call: int
    batch_always: bool
    eos_tokens: Sequence[int]
    dtype: np.dtype
    image_batches: Sequence[int]
    remembered_images: int

    def __post_init__(self) -> None:
        self.rows = [Row(i) for i in range(self.max_rows)]
        self.waiting: collections.deque[Request] = collections.deque()
        self.images = ImageIndex(self.dtype, self.image_batches, self.remembered_images)
        self._turn = 0
        self._release: list[int] = []  # rows for the next step
        self._clear: list[int] = []

    @property
    def has_work(self) -> bool:
        """Whether there is something to plan; tokens that have not been committed are the caller's to know."""
        return bool(self.waiting or self._release or self._clear or any(row.request for row in self.rows))

    def plan(self) -> Step:
        """What the device does next; possibly nothing, until earlier steps have been committed."""
        self._turn += 1
        self._end_cancelled()
        self._assign_waiting()
        prefill, shown = self._prefill()
        started, decode = self._activate(), self._decode()
        encode, forget = self.images.use(shown)
        clear, self._clear = tuple(self._clear), []
        release, self._release = tuple(self._release), []
        return Step(clear, release, encode, prefill, started, decode, forget)

    def dispatched(self, step: Step) -> None:
        """A planned step has been handed to the device: the prompts of the rows it activates have been prefilled."""
        for started in step.activate:
            self.rows[started.row].occupant.prefilled()

    def commit(self, step: Step, drawn: Drawn) -> None:
        """Delivers the tokens of a planned step that decodes. In the order of the steps."""
        decode = step.decode or Decode((), 0, False)
        columns = drawn.tokens.T.tolist()
        for index in decode.rows:
            row, column = self.rows[index], 0 if decode.alone else index
            row.unread -= 1
            new = [token for token in columns[column] if token != NO_TOKEN]
            wanted = row.request.sampling_params.logprobs if row.request and new else None
            self._deliver(row, new, [] if wanted is None else token_logprobs(drawn, column, new, wanted))

    def fail(self, error: BaseException) -> None:
        """Ends every request."""
        waiting = list(self.waiting)
        self.waiting.clear()
        for request in [*waiting, *(row.request for row in self.rows)]:
            if request:
                request.fail(error)

    def restart(self) -> Step:
        """After `fail`: no row holds anything and no image is known. The step that makes it so on the device."""
        self.rows = [Row(i) for i in range(self.max_rows)]
        self._release, self._clear = [], []
        return Step(clear=tuple(range(self.max_rows)), forget=self.images.clear())

    def _end_cancelled(self) -> None:
        for row in self.rows:
            if row.request and row.request.cancelled:
                if row.decoding:
                    self._release.append(row.index)
                # The calls under way still write into the cache, which cannot be rewound. What they write is delivered,
                # so that a conversation with this answer in it can go on from there.
                row.decoding, row.halted = False, True
                if not row.unread:
                    self._vacate(row).finish("cancelled")
        cancelled = [request for request in self.waiting if request.cancelled]
        for request in cancelled:  # without waiting for a row
            self.waiting.remove(request)
            request.finish("cancelled")

    def _vacate(self, row: Row, *, resting: bool = False) -> Request:
        """Takes the request out of a row. `resting`: the device has stopped the row already."""
        request = row.occupant
        if row.decoding and not resting:
            self._release.append(row.index)
        row.request, row.decoding, row.halted, row.last_used = None, False, not resting, self._turn
        row.mask = None
        return request

    @contextlib.contextmanager
    def _only(self, row: Row) -> Iterator[None]:
        """What is done for one request on the host: an error in it is that request's alone."""
        try:
            yield
        except Exception as error:
            self._vacate(row).fail(error)

    def _assign_waiting(self) -> None:
        while self.waiting and (choice := choose_row(self.rows, self.waiting[0].keys)):
            row, cached = choice
            request = row.request = self.waiting.popleft()
            row.keys, row.halted = request.keys[:cached], False
            request.assign(cached)

    def _prefill(self) -> tuple[tuple[Prefill, ...], list[ImageInput]]:
        """The next chunk of each row that is not prefilled yet, and the images in them."""
        ends: dict[int, int] = {}
        for row in self.rows:
            if row.prefilling and len(row.keys) < row.prefill_target:
                with self._only(row):
                    starts = [placed.start for placed in row.occupant.images]
                    longest = self.prefill_sizes[-1]
                    end = chunk_end(len(row.keys), row.prefill_target, longest, starts, self.num_soft_tokens)
                    self.images.prepare([placed.image for placed in row.images_until(end)])
                    ends[row.index] = end
        rows = [self.rows[index] for index in ends]
        groups = [rows] if self.batch_always and rows else [[row] for row in rows]
        shown = [placed.image for row in rows for placed in row.images_until(ends[row.index])]
        sizes = self.prefill_sizes, self.max_rows, self.num_soft_tokens
        prefill = tuple(make_prefill(group, ends, *sizes) for group in groups)
        for row in rows:
            row.keys = row.occupant.keys[: ends[row.index]]
        return prefill, shown

    def _activate(self) -> tuple[Activate, ...]:
        """Lets the rows whose prompts are in the cache begin to decode."""
        activated = []
        for row in self.rows:
            if row.prefilling and len(row.keys) >= row.prefill_target:
                with self._only(row):
                    request = row.occupant
                    remaining = min(request.sampling_params.max_new_tokens, self.context - len(request.tokens))
                    numbers = row.index, row.prefill_target, request.tokens[-1], remaining
                    asked = request.sampling_params, self._stop_tokens(request)
                    row.mask = request.constraint.mask() if request.constraint else None
                    activated.append(activate(*numbers, *asked, request.tokens, request.generated))
                    row.decoding, row.dispatched = True, False
                    row.last_key, row.remaining = request.keys[-1], remaining
        return tuple(activated)

    def _decode(self) -> Decode | None:
        decoding = [row for row in self.rows if row.decoding]
        rows = [row for row in decoding if row.mask is not None or not row.constrained]
        if not rows:
            return None
        # A row's first token is worth a call of its own: its caller is waiting for it.
        steps = self.steps_per_call if all(row.dispatched for row in rows) else 1
        if any(row.constrained for row in decoding):  # a mask is good for one step, and the next should not wait long
            steps = 1 if any(row.constrained for row in rows) else min(steps, _STEPS_BESIDE)
        masks = {row.index: row.mask for row in rows if row.mask is not None}
        for row in rows:
            row.dispatched, row.mask = True, None
            row.unread += 1
        asked = [row.occupant.sampling_params for row in rows]
        return Decode(
            rows=tuple(row.index for row in rows),
            steps=steps,
            alone=not self.batch_always and len(rows) == 1,
            count=any(params.penalized for params in asked),
            logprobs=any(params.logprobs is not None for params in asked),
            masks=masks or None,
        )

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
            self._clear.append(row.index)
            row.keys = []
        else:
            # Each token was drawn after the one before it was fed, so the cache now holds all but the last of them.
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
