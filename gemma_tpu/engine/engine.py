"""The engine: a thread that runs requests on one model, and what its callers ask of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np

from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.deployment import IMAGE_BATCHES, REMEMBERED_IMAGES, STEPS_PER_CALL, Deployment
from gemma_tpu.distributed.processes import open_runner
from gemma_tpu.engine.ahead import Ahead, compiler
from gemma_tpu.engine.errors import require_finite
from gemma_tpu.engine.memory import CacheMemory
from gemma_tpu.engine.request import Constraint, ImageInput, Request, StopWatch
from gemma_tpu.engine.scheduler import Occupancy, Scheduler
from gemma_tpu.engine.step import Drawn, token_logprobs
from gemma_tpu.engine.validate import check_attention, check_logits, make_request, pad, padded_count
from gemma_tpu.engine.warmup import Progress, warmup_steps
from gemma_tpu.engine.worker import Worker
from gemma_tpu.model import Params
from gemma_tpu.options import SamplingParams, TokenLogprob
from gemma_tpu.picture import PlacedImage


class Engine(Worker):
    """Runs requests on one model. Every method may be called from any thread; `close` ends the engine's own."""

    def __init__(
        self,
        deployment: Deployment,
        params: Params,
        *,
        eos_tokens: Sequence[int] = (),
        steps_per_call: int = STEPS_PER_CALL,
        batch_always: bool | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        self.deployment = deployment
        self._calls, self._ahead = deployment.calls(batch_always), ahead
        self._compile = compiler(deployment, params, steps_per_call=steps_per_call, batch_always=batch_always)
        memory = CacheMemory(
            rows=deployment.rows,
            pages=deployment.pages,
            page=deployment.page,
            groups=deployment.page_groups,
            rings=deployment.rings,
            places=deployment.stored_prefixes,
            least_awaited=deployment.prefill_sizes[0],  # prompts as short as that share a call
        )
        scheduler = Scheduler(
            memory=memory,
            context=deployment.context,
            prefill_sizes=deployment.prefill_sizes,
            prefill_rows=deployment.prefill_rows,
            num_soft_tokens=deployment.num_soft_tokens,
            steps_per_call=steps_per_call,
            together=self._calls.together,
            few=self._calls.few,
            eos_tokens=tuple(eos_tokens),
            dtype=np.dtype(deployment.dtype),
            image_batches=IMAGE_BATCHES,
            remembered_images=REMEMBERED_IMAGES,
            draft_tokens=deployment.draft_tokens,
            keep_text=deployment.looks_up,
        )
        super().__init__(scheduler)
        runner = open_runner(deployment, params, self._abort, max_steps=steps_per_call)
        runner.ahead = ahead
        self._start(runner)

    def submit(
        self,
        tokens: Sequence[int],
        images: Sequence[PlacedImage[ImageInput]] = (),
        sampling_params: SamplingParams = SamplingParams(),
        stop_watch: StopWatch | None = None,
        constraint: Constraint | None = None,
        client: Hashable = None,
    ) -> Request:
        """Queues an expanded prompt; iterate over the result for its tokens. ValueError for what cannot be run.

        `constraint` is that of the `grammar` in `sampling_params`, of which the engine knows nothing. Requests of
        different clients take turns where they wait for batch rows.
        """
        self.check_open()
        request = make_request(self.deployment, tokens, images, sampling_params, stop_watch, constraint, client)
        with self._held():
            self.check_open()
            self._scheduler.waiting.append(request)
            self._wake.notify()
        return request

    def waiting_before(self, request: Request) -> int | None:
        """How many requests are given a row before this one; None if it does not wait for one (any more)."""
        with self._held():
            waiting = list(self._scheduler.waiting.order(self._scheduler.running))
        return waiting.index(request) if request in waiting else None

    def occupancy(self) -> Occupancy:
        with self._held():
            return self._scheduler.occupancy()

    def warmup(self, progress: Progress | None = None) -> int:
        """Compiles every program there is, so that no request has to; returns how many calls that took.

        `progress` is called on the caller's thread, between two calls of the device: it may use the engine itself.
        """
        self.check_open()
        steps = warmup_steps(self.deployment, self._calls)
        self._ahead = self._runner.ahead = self._ahead or self._compile()
        for done, (label, step) in enumerate(steps):
            if progress:
                progress(label, done, len(steps))
            if self._ahead:
                self._ahead.wait(done)
            self._call(lambda step=step: (self._runner.run(step), self._runner.wait()))
        if progress:
            progress("ready", len(steps), len(steps))
        return len(steps)

    def close(self) -> None:
        """See `Worker.close`."""
        if self._ahead:
            self._ahead.stop()
        super().close()

    def image_inputs(self, images: Sequence[Any]) -> list[ImageInput]:
        """Pictures as the other calls take them, resized on this thread unless the device has their soft tokens.

        ValueError without a vision tower.
        """
        self.check_open()
        if not images:
            return []
        if (vision := self.deployment.config.vision) is None:
            raise ValueError("this model has no vision tower: it takes text only")
        inputs = {image.digest: ImageInput(image, vision.image_size) for image in images}
        for digest, made in inputs.items():
            if digest not in self._scheduler.images:
                made.prepare()
        for image in images:  # not before all are prepared: crops are cut from the same picture
            image.release()
        return [inputs[image.digest] for image in images]

    def encode_images(self, images: Sequence[ImageInput]) -> list[jax.Array]:
        """Soft tokens [soft, D] of each image."""
        return self._call(lambda: self._runner.soft_tokens(self._loop.encode(images)))

    def logits(self, rows: Sequence[Sequence[int]], kept: np.ndarray, images: Sequence[ImageInput] = ()) -> jax.Array:
        """float32[B, K, V] of rows of expanded tokens at positions int32[B, K], by the plain path."""
        self.check_open()
        check_logits(self.deployment, len(rows), max(map(len, rows)), kept.shape[1])
        tokens, lengths = pad(rows, len(images) * self.deployment.num_soft_tokens, self.deployment.context)
        compile_first = functools.partial(self._runner.compile_logits, len(rows), tokens.shape[1], kept.shape[1])
        logits, finite = self._whole(
            lambda: compile_first(len(images)),
            lambda: self._runner.logits(tokens, lengths, kept, self._loop.encode(images)),
        )
        finite = np.asarray(finite)
        require_finite(finite, np.dtype(self.deployment.dtype))
        return logits

    def attention(self, rows: Sequence[Sequence[int]], at: np.ndarray, images: Sequence[ImageInput] = ()) -> np.ndarray:
        """float32[B, K, L, N, S]: attention weights of the queries int32[B, K] of rows of expanded tokens.

        S is the longest row; by the plain path.
        """
        self.check_open()
        S, (B, K) = max(map(len, rows)), at.shape
        check_attention(self.deployment, B, S, K)
        tokens, lengths = pad(rows, len(images) * self.deployment.num_soft_tokens, self.deployment.context)
        at = np.pad(at, ((0, 0), (0, padded_count(K) - K)))
        layers = self._whole(
            lambda: self._runner.compile_attention(B, tokens.shape[1], at.shape[1], len(images)),
            lambda: self._runner.attention(tokens, lengths, at, self._loop.encode(images)),
        )
        weights = np.empty((B, K, len(layers), self.deployment.config.num_heads, S), np.float32)
        for i, layer in enumerate(layers):
            weights[:, :, i] = np.asarray(layer)[:, :K, :, :S]
        finite = np.isfinite(weights.sum(axis=-1)).all(axis=(1, 2, 3))
        require_finite(finite, np.dtype(self.deployment.dtype))
        return weights

    def prompt_logprobs(
        self, prompt: Sequence[int], images: Sequence[ImageInput], top: int
    ) -> list[TokenLogprob | None]:
        """Of each token of an expanded prompt, with so many likeliest ones, by the plain path.

        None for the first token and those of images.
        """
        self.check_open()
        tokens, lengths = pad([prompt], len(images) * self.deployment.num_soft_tokens, self.deployment.context)
        found = self._whole(
            lambda: self._runner.compile_logprobs(tokens.shape[1], len(images)),
            lambda: self._runner.logprobs(tokens, lengths, self._loop.encode(images)),
        )
        drawn = Drawn(tokens, *(np.asarray(array)[:, None] for array in found))
        following = token_logprobs(drawn, 0, prompt[1:], top)
        finite = np.array([all(math.isfinite(one.logprob) for one in following)])
        require_finite(finite, np.dtype(self.deployment.dtype))
        return [None, *(None if one.token == SOFT_TOKEN else one for one in following)]

    def _whole(self, compile_first: Callable[[], None], call: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """What `call` gives on the engine's thread, once this one has compiled it: others go on meanwhile."""
        try:
            compile_first()
            return jax.block_until_ready(self._call(call))
        except jax.errors.JaxRuntimeError as error:
            if (explained := self._runner.explained(error)) is error:
                raise
            raise explained from error
