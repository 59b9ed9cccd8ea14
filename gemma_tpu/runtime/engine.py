"""The engine: one thread that calls the device, gives requests rows, and keeps the device busy.

Each turn of its loop dispatches at most one chunk of prefill and one call of decode, and reads the tokens of the
decode call before last: the device always has the next call queued when the host looks at the last one's tokens.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError

import jax
import numpy as np
from jax.sharding import Mesh

from gemma_tpu.config import SOFT_TOKEN, GemmaConfig
from gemma_tpu.model import Params
from gemma_tpu.runtime.distributed import open_device
from gemma_tpu.runtime.finite import NotFiniteError, require_finite
from gemma_tpu.runtime.images import SoftTokens
from gemma_tpu.runtime.programs import NO_TOKEN, NOT_FINITE
from gemma_tpu.runtime.request import ImageInput, Options, Request, row_controls
from gemma_tpu.runtime.rows import Row, cache_keys, choose_row, chunk_end, image_spans
from gemma_tpu.runtime.shapes import IMAGE_BATCHES, STEPS_PER_CALL, chunk_sizes, min_rows

_FAILED_JOIN = 1  # seconds that `close` gives a thread that may be stuck in a program

Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)


class Engine:
    """Runs requests on one model. Thread-safe; `close` ends the thread."""

    def __init__(
        self,
        config: GemmaConfig,
        params: Params,
        *,
        mesh: Mesh,
        max_context: int,
        max_rows: int,
        dtype: jax.typing.DTypeLike,
        eos_tokens: Sequence[int] = (),
        steps_per_call: int = STEPS_PER_CALL,
        chunks: Sequence[int] | None = None,
        batch_always: bool | None = None,
    ) -> None:
        self.config, self.mesh, self.max_context, self.max_rows = config, mesh, max_context, max_rows
        self._dtype = np.dtype(dtype)
        self._eos_tokens, self._steps_per_call = tuple(eos_tokens), steps_per_call
        self._num_soft = config.vision.num_soft_tokens if config.vision else 0
        platform = mesh.devices.flat[0].platform
        self._chunks = chunk_sizes(platform, max_context, self._num_soft, chunks)
        # On an accelerator the rows that rest come almost for free, and fewer programs are fewer to compile. On a CPU
        # they cost as much as the others, so there one row is run alone: `batch_always` False.
        self._batch_always = max_rows == 1 or (platform != "cpu" if batch_always is None else batch_always)

        self._wake = threading.Condition()
        self._pending: collections.deque[Request] = collections.deque()
        self._tasks: collections.deque[tuple[Callable[[], object], Future]] = collections.deque()
        self._waiting: set[Future] = set()
        self._closed = False
        self._failure: BaseException | None = None  # of the kind that leaves nothing to go on with
        self._turn = 0
        self._rows = [Row(i) for i in range(max_rows)]
        self._device = open_device(
            params,
            self._abort,
            config=config,
            mesh=mesh,
            rows=max_rows,
            context=max_context,
            dtype=self._dtype,
            max_steps=steps_per_call,
            min_rows=min_rows(platform),
        )
        self._reset()
        self._thread = threading.Thread(target=self._run, name="gemma-engine", daemon=True)
        self._thread.start()

    # What callers use, from any thread.

    def submit(self, tokens: Sequence[int], images: Sequence[ImageInput] = (), options: Options = Options()) -> Request:
        """Queues an expanded prompt; iterate over the result for its tokens. ValueError for what cannot be run."""
        if not tokens:
            raise ValueError("the prompt is empty")
        self.check_length(len(tokens))
        if (spans := len(image_spans(tokens, self._num_soft))) != len(images):
            raise ValueError(f"the prompt has places for {spans} images, and {len(images)} were given")
        vocabulary = range(self.config.vocab_size)
        if not all(token in vocabulary or token == SOFT_TOKEN for token in tokens) or tokens[-1] == SOFT_TOKEN:
            raise ValueError(f"a prompt is ids in [0, {len(vocabulary)}) and cannot end within an image")
        ids = (*(options.stop_tokens or ()), *options.forbidden_tokens)
        if bad := [token for token in ids if token not in vocabulary]:
            raise ValueError(f"stop_tokens and forbidden_tokens must be in [0, {len(vocabulary)}), got {bad}")
        request = Request(tokens, images, options)
        with self._wake:
            self._check_open()
            self._pending.append(request)
            self._wake.notify()
        return request

    def check_length(self, tokens: int) -> None:
        """ValueError if a prompt of so many tokens leaves no room for an answer."""
        if tokens >= self.max_context:
            raise ValueError(
                f"the prompt has {tokens} tokens, and the context of {self.max_context} must hold the answer too: "
                "shorten it, or load the model with a larger max_context"
            )

    def waiting_before(self, request: Request) -> int | None:
        """How many requests are given a row before this one; None if it does not wait for one (any more)."""
        try:
            return self._pending.index(request)
        except ValueError:
            return None

    def warmup(self, progress: Progress | None = None) -> int:
        """Compiles every program there is, so that no request has to; returns how many calls that took."""
        return self._call(lambda: self._warmup(progress or (lambda *_: None)))

    def encode_images(self, images: Sequence[ImageInput]) -> list[jax.Array]:
        """Soft tokens [soft, D] of each image."""
        return self._call(lambda: self._device.soft_tokens(self._soft_tokens.of(images)))

    def logits(
        self, tokens: np.ndarray, lengths: np.ndarray, kept: np.ndarray, images: Sequence[ImageInput] = ()
    ) -> jax.Array:
        """float32[B, K, V] of expanded tokens int[B, T] at positions int[B, K], by the plain path."""

        def run() -> jax.Array:
            logits = self._device.logits(tokens, lengths, kept, self._soft_tokens.of(images))
            return require_finite(logits, self._dtype)

        return self._call(run)

    def knows_image(self, digest: bytes) -> bool:
        """Whether the soft tokens of an image are at hand, so that its pixels are not needed."""
        self._check_open()
        return digest in self._soft_tokens

    def close(self) -> None:
        """Ends the thread and lets go of the device memory; requests under way fail."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(_FAILED_JOIN if self._failure else None)
        if not self._thread.is_alive():
            self._device.close()

    def _check_open(self) -> None:
        if self._failure:
            raise RuntimeError(str(self._failure)) from self._failure
        if self._closed:
            raise RuntimeError("this model has been closed")

    def _call(self, function: Callable[[], object]):
        future: Future = Future()
        with self._wake:
            self._check_open()
            self._tasks.append((function, future))
            self._waiting.add(future)
            self._wake.notify()
        try:
            return future.result()
        finally:
            self._waiting.discard(future)

    def _abort(self, error: BaseException) -> None:
        """Ends everything now, from another thread: the engine's own may be stuck in a program for good."""
        with self._wake:
            self._closed, self._failure = True, error
            self._wake.notify()
        self._fail_all(error)
        for future in list(self._waiting):
            _settle(future, error=error)

    # Everything below runs on the engine's thread.

    def _reset(self) -> None:
        self._device.reset()
        self._rows = [Row(i) for i in range(self.max_rows)]
        self._unread: collections.deque[tuple[list[Row], bool, jax.Array]] = collections.deque()
        self._soft_tokens = SoftTokens(self._device, self._num_soft)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closed or self._pending or self._tasks or self._unread or self._busy()):
                    self._wake.wait()
                tasks, self._tasks = self._tasks, collections.deque()
                if self._closed:
                    break
            for function, future in tasks:
                try:
                    _settle(future, function())
                except Exception as error:  # the caller's to handle: it waits on the future
                    _settle(future, error=self._device.explained(error))
            try:
                self._turn_once()
            except Exception as error:  # a failed program may have consumed the state: tell everyone, start afresh
                self._fail_all(self._device.explained(error))
                self._restart()
        closed = RuntimeError("the model was closed")
        self._fail_all(closed)
        for _, future in tasks:
            _settle(future, error=closed)

    def _restart(self) -> None:
        try:
            self._reset()
        except Exception as error:  # no memory for a new state, say: nothing can run any more
            self._abort(error)

    def _busy(self) -> bool:
        return any(row.request for row in self._rows)

    def _fail_all(self, error: BaseException) -> None:
        with self._wake:
            requests = [*self._pending, *(row.request for row in self._rows if row.request)]
            self._pending.clear()
        for request in requests:
            request.fail(error)

    def _turn_once(self) -> None:
        self._turn += 1
        self._drop_cancelled()
        self._admit_pending()
        self._prefill_chunk()
        dispatched = self._decode()
        while len(self._unread) > (1 if dispatched else 0):
            self._read()

    def _drop_cancelled(self) -> None:
        for row in self._rows:
            if row.request and row.request.cancelled.is_set() and not row.cancelled:
                if row.decoding:
                    self._device.release(row.index)
                # Its request stays until the calls under way are read: what they write is in the cache, which cannot be
                # rewound, so only a conversation that has it in its history can go on from there.
                row.decoding, row.cancelled = False, True
            if row.cancelled and not row.unread:
                self._leave(row, "cancelled")
        with self._wake:  # those that wait for a row need not wait for it to be told
            given_up = [request for request in self._pending if request.cancelled.is_set()]
            for request in given_up:
                self._pending.remove(request)
        for request in given_up:
            request.finish("cancelled")

    def _leave(self, row: Row, reason: str) -> None:
        request, row.request, row.last_used = row.occupant, None, self._turn
        row.decoding = row.cancelled = False
        request.finish(reason)

    def _admit_pending(self) -> None:
        while self._pending:
            request = self._pending[0]
            if request.cancelled.is_set():
                self._pending.popleft()
                request.finish("cancelled")
                continue
            spans = image_spans(request.tokens, self._num_soft)
            keys = cache_keys(request.tokens, spans, [image.digest for image in request.images])
            choice = choose_row(self._rows, keys)
            if choice is None:
                return
            self._pending.popleft()
            row, cached = choice
            row.request, row.spans, row.prompt_keys, row.keys = request, spans, keys, keys[:cached]
            request.cached_tokens = cached
            request.image_tokens = sum(span.end - span.start for span in spans)
            request.clock.admitted = time.perf_counter()

    # Prefill.

    def _prefill_chunk(self) -> None:
        rows = [row for row in self._rows if row.prefilling]
        unfinished = [row for row in rows if len(row.keys) < row.prefill_target]
        for group in [unfinished] if self._batch_always else [[row] for row in unfinished]:
            if group:
                self._dispatch_prefill(group)
        for row in rows:
            if len(row.keys) >= row.prefill_target:
                self._start_decoding(row)

    def _dispatch_prefill(self, rows: Sequence[Row]) -> None:
        ends = {row.index: chunk_end(len(row.keys), row.prefill_target, self._chunks[-1], row.spans) for row in rows}
        longest = max(ends[row.index] - len(row.keys) for row in rows)
        size = next(size for size in self._chunks if size >= longest)
        whole = len(rows) > 1 or self.max_rows == 1
        B = self.max_rows if whole else 1
        tokens, soft_index = np.zeros((B, size), np.int32), np.full((B, size), -1, np.int32)
        start, count = np.zeros(B, np.int32), np.zeros(B, np.int32)
        images: list[ImageInput] = []
        for row in rows:
            at = row.index if whole else 0
            begin, end = len(row.keys), ends[row.index]
            start[at], count[at] = begin, end - begin
            tokens[at, : end - begin] = row.occupant.tokens[begin:end]
            for span in row.spans:
                if begin <= span.start and span.end <= end:
                    first = len(images) * self._num_soft
                    soft_index[at, span.start - begin : span.end - begin] = first + np.arange(self._num_soft)
                    images.append(row.occupant.images[span.image])
            row.keys = row.prompt_keys[:end]
        places = self._soft_tokens.for_chunk(images, B, size)
        picked = None if whole else np.array([rows[0].index], np.int32)
        self._device.prefill(picked, tokens, start, count, places, soft_index, fresh=not start.any())

    # Decode.

    def _start_decoding(self, row: Row) -> None:
        request = row.occupant
        row.decoding, row.dispatched, row.last_key = True, False, row.prompt_keys[-1]
        row.limit = min(request.options.max_new_tokens, self.max_context - len(request.tokens))
        self._admit(row.index, row.prefill_target, request.tokens[-1], row.limit, request.options)
        request.clock.prefilled = time.perf_counter()

    def _admit(self, index: int, length: int, last: int, remaining: int, options: Options) -> None:
        controls = row_controls(options, self._stop_tokens(options), self.config.vocab_size)
        self._device.admit(index, length, last, remaining, controls)

    def _stop_tokens(self, options: Options) -> Sequence[int]:
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
        request = row.occupant
        stopped = new[-1] in self._stop_tokens(request.options)
        if visible := new[:-1] if stopped else new:
            request.push(visible)
        if stopped or len(request.generated) >= row.limit:
            self._leave(row, "stop" if stopped else "length")

    def _drop_spoiled(self, row: Row, good: list[int]) -> None:
        """Ends a request after the last tokens that could be drawn, and cleans its row for the next one."""
        self._device.clear(row.index)
        request, row.request, row.keys, row.last_used = row.occupant, None, [], self._turn
        row.decoding = row.cancelled = False
        if good:
            request.push(good)
        request.fail(NotFiniteError(f"after {len(request.generated)} tokens of an answer", self._dtype))

    # Warm-up: every program runs once on inputs that change nothing.

    def _warmup(self, progress: Progress) -> int:
        calls: list[tuple[str, Callable[[], object]]] = []
        if vision := self.config.vision:
            for batch in IMAGE_BATCHES:
                calls.append((f"{batch} images", functools.partial(self._warm_encode, batch, vision.image_size)))
        for size in self._chunks:
            for B in sorted({1, self.max_rows}) if self._batch_always else [1]:
                for fresh in (True, False):
                    calls.append((f"prefill {B}×{size}", functools.partial(self._warm_prefill, B, size, fresh)))
        # A row past the end is none: the write is dropped.
        calls.append(("admit", lambda: self._admit(self.max_rows, 0, 0, 0, Options())))
        calls.append(("release", lambda: self._device.release(self.max_rows)))
        calls.append(("clear", lambda: self._device.clear(self.max_rows)))
        for picked in [None] if self._batch_always else [None, np.zeros(1, np.int32)]:
            calls.append(("decode", functools.partial(self._dispatch_decode, picked, 0)))
        for done, (label, call) in enumerate(calls):
            progress(label, done, len(calls))
            call()
            self._device.wait()
        progress("ready", len(calls), len(calls))
        return len(calls)

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


def _settle(future: Future, result: object = None, error: BaseException | None = None) -> None:
    """Gives a future its end, unless `_abort` has done so."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(result) if error is None else future.set_exception(error)
