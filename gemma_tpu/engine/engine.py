"""The engine: one thread that calls the device, gives requests rows, and keeps the device busy.

Each turn of its loop dispatches at most one chunk of prefill and one call of decode, and reads the tokens of the
decode call before last: the device always has the next call queued when the host looks at the last one's tokens.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from gemma_tpu.cache.state import NO_TOKEN, Controls
from gemma_tpu.deployment import IMAGE_BATCHES, STEPS_PER_CALL, Deployment
from gemma_tpu.distributed.processes import open_device
from gemma_tpu.engine.arrival import Arrival, arrive, check_length
from gemma_tpu.engine.chunk import make_chunk
from gemma_tpu.engine.finite import NotFiniteError, require_finite
from gemma_tpu.engine.images import SoftTokens
from gemma_tpu.engine.programs import NOT_FINITE
from gemma_tpu.engine.request import ImageInput, Request, StopWatch, row_controls
from gemma_tpu.engine.rows import Row, choose_row, chunk_end
from gemma_tpu.engine.sequences import check_logits, pad
from gemma_tpu.engine.worker import Worker
from gemma_tpu.model import Params
from gemma_tpu.options import SamplingParams

Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)


class Engine(Worker):
    """Runs requests on one model. Thread-safe; `close` ends the thread."""

    def __init__(
        self,
        deployment: Deployment,
        params: Params,
        *,
        eos_tokens: Sequence[int] = (),
        steps_per_call: int = STEPS_PER_CALL,
        batch_always: bool | None = None,
    ) -> None:
        super().__init__("gemma-engine")
        self.deployment, self.config = deployment, deployment.config
        self.max_context, self.max_rows = deployment.context, deployment.rows
        self._dtype = np.dtype(deployment.dtype)
        self._eos_tokens, self._steps_per_call = tuple(eos_tokens), steps_per_call
        self._num_soft, self._chunks = deployment.num_soft_tokens, deployment.prefill_sizes
        # On an accelerator the rows that rest come almost for free, and fewer programs are fewer to compile. On a CPU
        # they cost as much as the others, so there one row is run alone: `batch_always` False.
        by_platform = deployment.platform != "cpu"
        self._batch_always = self.max_rows == 1 or (by_platform if batch_always is None else batch_always)

        self._pending: collections.deque[Arrival] = collections.deque()
        self._turn = 0
        self._rows: list[Row] = []
        self._device = open_device(params, self._abort, deployment, max_steps=steps_per_call)
        self._reset()
        self._start()

    # What callers use, from any thread.

    def submit(
        self,
        tokens: Sequence[int],
        images: Sequence[ImageInput] = (),
        options: SamplingParams = SamplingParams(),
        stop_watch: StopWatch | None = None,
    ) -> Request:
        """Queues an expanded prompt; iterate over the result for its tokens. ValueError for what cannot be run."""
        self.check_open()
        limits = {"vocab_size": self.config.vocab_size, "max_context": self.max_context}
        arrival = arrive(tokens, images, options, stop_watch, num_soft_tokens=self._num_soft, **limits)
        with self._wake:
            self.check_open()
            self._pending.append(arrival)
            self._wake.notify()
        return arrival.request

    def check_length(self, tokens: int) -> None:
        """ValueError if a prompt of so many tokens leaves no room for an answer."""
        check_length(tokens, self.max_context)

    def waiting_before(self, request: Request) -> int | None:
        """How many requests are given a row before this one; None if it does not wait for one (any more)."""
        with self._wake:
            waiting = [arrival.request for arrival in self._pending]
        return waiting.index(request) if request in waiting else None

    def warmup(self, progress: Progress | None = None) -> int:
        """Compiles every program there is, so that no request has to; returns how many calls that took.

        `progress` is called on the caller's thread, between two calls of the device: it may use the engine itself.
        """
        calls = self._warmup_calls()
        for done, (label, call) in enumerate(calls):
            if progress:
                progress(label, done, len(calls))
            self._call(lambda call=call: (call(), self._device.wait()))
        if progress:
            progress("ready", len(calls), len(calls))
        return len(calls)

    def encode_images(self, images: Sequence[ImageInput]) -> list[jax.Array]:
        """Soft tokens [soft, D] of each image."""
        return self._call(lambda: self._device.soft_tokens(self._soft_tokens.of(images)))

    def logits(self, rows: Sequence[Sequence[int]], kept: np.ndarray, images: Sequence[ImageInput] = ()) -> jax.Array:
        """float32[B, K, V] of rows of expanded tokens at positions int32[B, K], by the plain path."""
        self.check_open()
        self.check_logits(max(map(len, rows)), kept.size)
        tokens, lengths = pad(rows, len(images) * self._num_soft, self.max_context)
        try:
            # Here, on the caller's thread: the engine's goes on with everybody's requests meanwhile.
            self._device.compile_logits(len(rows), tokens.shape[1], kept.shape[1], len(images))
            run = self._device.logits
            logits, finite = self._call(lambda: run(tokens, lengths, kept, self._soft_tokens.of(images)))
            finite = np.asarray(finite)
        except jax.errors.JaxRuntimeError as error:
            if (explained := self._explained(error)) is error:
                raise
            raise explained from error
        require_finite(finite, self._dtype)
        return logits

    def check_logits(self, tokens: int, positions: int) -> None:
        """ValueError for rows of more tokens, or logits at more positions of all rows together, than can be given."""
        check_logits(tokens, positions, max_context=self.max_context, vocab_size=self.config.vocab_size)

    def knows_image(self, digest: bytes) -> bool:
        """Whether the soft tokens of an image are at hand, so that its pixels are not needed."""
        self.check_open()
        return digest in self._soft_tokens

    # Everything below runs on the engine's thread.

    def _reset(self) -> None:
        self._device.reset()
        self._soft_tokens = SoftTokens(self._device, self.deployment)
        self._forget_rows()

    def _forget_rows(self) -> None:
        self._rows = [Row(i) for i in range(self.max_rows)]
        self._unread: collections.deque[tuple[list[Row], bool, jax.Array]] = collections.deque()

    def _has_work(self) -> bool:
        return bool(self._pending or self._unread) or self._busy()

    def _work(self) -> None:
        try:
            self._turn_once()
        except Exception as error:  # of all in a row: what concerns one of them alone has been caught (`_only`)
            self._fail_requests(self._explained(error))
            self._recover(error)

    def _recover(self, error: Exception) -> None:
        """Starts afresh if a program failed, which may have consumed or spoiled the state; or lets all rows rest."""
        if isinstance(error, jax.errors.JaxRuntimeError) or not self._device.intact:
            self._reset()
            return
        for row in self._rows:
            if row.decoding:
                self._device.release(row.index)
        self._forget_rows()

    def _after_failed_task(self, error: Exception) -> None:
        if not self._device.intact:
            self._fail_requests(self._explained(error))
            self._reset()

    def _explained(self, error: Exception) -> Exception:
        return self._device.explained(error)

    def _free(self) -> None:
        self._device.close()

    def _busy(self) -> bool:
        return any(row.request for row in self._rows)

    def _fail_requests(self, error: BaseException) -> None:
        with self._wake:
            waiting = [arrival.request for arrival in self._pending]
            self._pending.clear()
        for request in [*waiting, *(row.request for row in self._rows if row.request)]:
            request.fail(error)

    def _turn_once(self) -> None:
        self._turn += 1
        self._drop_cancelled()
        self._assign_pending()
        self._prefill_chunk()
        dispatched = self._decode()
        while len(self._unread) > (1 if dispatched else 0):
            self._read()

    def _drop_cancelled(self) -> None:
        for row in self._rows:
            if row.request and row.request.cancelled:
                if row.decoding:
                    self._device.release(row.index)
                # The calls under way still write into the cache, which cannot be rewound. What they write is delivered,
                # so that a conversation with this answer in it can go on from there.
                row.decoding, row.halted = False, True
                if not row.unread:
                    self._vacate(row).finish("cancelled")
        with self._wake:  # those that wait for a row need not wait for it to be told
            given_up = [arrival for arrival in self._pending if arrival.request.cancelled]
            for arrival in given_up:
                self._pending.remove(arrival)
        for arrival in given_up:
            arrival.request.finish("cancelled")

    def _vacate(self, row: Row, *, resting: bool = False) -> Request:
        """Takes the request out of a row, which the device has put to rest already or is told to."""
        request = row.occupant
        if row.decoding and not resting:
            self._device.release(row.index)
        row.request, row.decoding, row.halted, row.last_used = None, False, not resting, self._turn
        return request

    @contextlib.contextmanager
    def _only(self, row: Row) -> Iterator[None]:
        """What the host does for one request: an error is that request's, and the device knows nothing of it."""
        try:
            yield
        except Exception as error:
            self._vacate(row).fail(error)

    def _assign_pending(self) -> None:
        while self._pending:
            arrival = self._pending[0]
            choice = choose_row(self._rows, arrival.keys)
            if choice is None:
                return
            self._pending.popleft()
            row, cached = choice
            row.request, row.spans, row.prompt_keys = arrival.request, arrival.spans, arrival.keys
            row.keys, row.halted = arrival.keys[:cached], False
            row.request.cached_tokens = cached
            row.request.clock.admitted = time.perf_counter()

    # Prefill.

    def _prefill_chunk(self) -> None:
        ends: dict[int, int] = {}
        for row in self._rows:
            if row.prefilling and len(row.keys) < row.prefill_target:
                with self._only(row):
                    end = chunk_end(len(row.keys), row.prefill_target, self._chunks[-1], row.spans)
                    self._soft_tokens.prepare([image for _, image in row.images_until(end)])
                    ends[row.index] = end
        rows = [self._rows[index] for index in ends]
        for group in [rows] if self._batch_always else [[row] for row in rows]:
            if group:
                self._dispatch_prefill(group, ends)
        for row in self._rows:
            if row.prefilling and len(row.keys) >= row.prefill_target:
                self._start_decoding(row)

    def _dispatch_prefill(self, rows: Sequence[Row], ends: dict[int, int]) -> None:
        sizes = {"sizes": self._chunks, "max_rows": self.max_rows, "num_soft_tokens": self._num_soft}
        chunk = make_chunk(rows, ends, **sizes)
        places = self._soft_tokens.for_chunk(chunk.images, *chunk.tokens.shape)
        for row in rows:
            row.keys = row.prompt_keys[: ends[row.index]]
        arrays = chunk.rows, chunk.tokens, chunk.start, chunk.count, places, chunk.soft_index
        self._device.prefill(*arrays, fresh=not chunk.start.any())

    # Decode.

    def _start_decoding(self, row: Row) -> None:
        request, controls = row.occupant, None
        with self._only(row):
            controls = self._controls(request.options)
        if controls is None:
            return
        row.decoding, row.dispatched, row.last_key = True, False, row.prompt_keys[-1]
        row.remaining = min(request.options.max_new_tokens, self.max_context - len(request.tokens))
        self._device.admit(row.index, row.prefill_target, request.tokens[-1], row.remaining, controls)
        request.clock.prefilled = time.perf_counter()

    def _controls(self, options: SamplingParams) -> Controls:
        return row_controls(options, self._stop_tokens(options), self.config.vocab_size)

    def _stop_tokens(self, options: SamplingParams) -> Sequence[int]:
        return self._eos_tokens if options.stop_tokens is None else options.stop_tokens

    def _decode(self) -> bool:
        rows = [row for row in self._rows if row.decoding]
        if not rows:
            return False
        # A row's first token is worth a call of its own: its caller is waiting for it.
        first = not all(row.dispatched for row in rows)
        single = not self._batch_always and len(rows) == 1
        picked = np.array([rows[0].index], np.int32) if single else None
        tokens = self._dispatch_decode(picked, 1 if first else self._steps_per_call)
        tokens.copy_to_host_async()
        for row in rows:
            row.dispatched = True
            row.unread += 1
        self._unread.append((rows, single, tokens))
        return True

    def _dispatch_decode(self, picked: np.ndarray | None, steps: int) -> jax.Array:
        return self._device.decode(picked, steps)

    def _read(self) -> None:
        rows, single, tokens = self._unread.popleft()
        for row, column in ((row, 0 if single else row.index) for row in rows):
            row.unread -= 1
            self._deliver(row, [int(t) for t in np.asarray(tokens)[:, column] if t != NO_TOKEN])

    def _deliver(self, row: Row, new: list[int]) -> None:
        if not new:
            return
        if new[-1] == NOT_FINITE:
            self._drop_spoiled(row, new[:-1])
            return
        # Each token was drawn after the one before it was fed, so the cache now holds all but the last of them.
        row.keys += [row.last_key, *new[:-1]]
        row.last_key = new[-1]
        row.remaining -= len(new)
        request = row.request
        if request is None:  # it has left while this call was under way
            return
        stopped = new[-1] in self._stop_tokens(request.options)
        complete = False  # a stop string
        if visible := new[:-1] if stopped else new:
            with self._only(row):
                complete = request.push(visible)
        if row.request and (stopped or complete or not row.remaining):
            resting = stopped or not row.remaining
            self._vacate(row, resting=resting).finish("stop" if stopped or complete else "length")

    def _drop_spoiled(self, row: Row, good: list[int]) -> None:
        """Ends a request after the last tokens that could be drawn, and cleans its row for the next one."""
        self._device.clear(row.index)
        row.keys = []
        if row.request is None:  # as in _deliver
            return
        if good:
            with self._only(row):
                row.request.push(good)
        if row.request:
            request = self._vacate(row, resting=True)
            request.fail(NotFiniteError(f"after {len(request.generated)} tokens of an answer", self._dtype))

    # Warm-up: every program runs once on inputs that change nothing.

    def _warmup_calls(self) -> list[tuple[str, Callable[[], object]]]:
        calls: list[tuple[str, Callable[[], object]]] = []
        if vision := self.config.vision:
            for batch in IMAGE_BATCHES:
                calls.append((f"{batch} images", functools.partial(self._warm_encode, batch, vision.image_size)))
        for size in self._chunks:
            for B in sorted({1, self.max_rows}) if self._batch_always else [1]:
                for fresh in (True, False):
                    calls.append((f"prefill {B}×{size}", functools.partial(self._warm_prefill, B, size, fresh)))
        # A row past the end is none: the write is dropped.
        calls.append(("admit", lambda: self._device.admit(self.max_rows, 0, 0, 0, self._controls(SamplingParams()))))
        calls.append(("release", lambda: self._device.release(self.max_rows)))
        calls.append(("clear", lambda: self._device.clear(self.max_rows)))
        for picked in [None] if self._batch_always else [None, np.zeros(1, np.int32)]:
            calls.append(("decode", functools.partial(self._dispatch_decode, picked, 0)))
        return calls

    def _warm_encode(self, batch: int, side: int) -> None:
        digests = [b"warm-up %d" % i for i in range(batch)]
        self._device.encode(digests, np.zeros((batch, side, side, 3), np.float32))
        self._device.wait()
        self._device.forget(digests)

    def _warm_prefill(self, B: int, size: int, fresh: bool) -> None:
        places, soft_index = self._soft_tokens.for_chunk([], B, size), np.full((B, size), -1, np.int32)
        nothing = np.zeros(B, np.int32)
        rows = None if self.max_rows == B else nothing
        self._device.prefill(rows, np.zeros((B, size), np.int32), nothing, nothing, places, soft_index, fresh=fresh)
