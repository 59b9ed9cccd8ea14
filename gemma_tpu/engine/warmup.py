"""Steps that run every program once and change nothing, so that no request waits for the compiler."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gemma_tpu.deployment import IMAGE_BATCHES, Deployment
from gemma_tpu.engine.rows import images_of_chunk
from gemma_tpu.engine.step import Decode, Encode, Prefill, Step, activate
from gemma_tpu.options import SamplingParams

Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)


def warmup_steps(deployment: Deployment, batch_always: bool) -> list[tuple[str, Step]]:
    """Each with what it compiles, in words. `batch_always`: see `gemma_tpu.engine.scheduler.Scheduler`."""
    steps = []
    if vision := deployment.config.vision:
        side = vision.image_size
        for batch in IMAGE_BATCHES:
            digests = tuple(b"warm-up %d" % i for i in range(batch))
            pixels = np.zeros((batch, side, side, 3), deployment.dtype)
            steps.append((f"{batch} images", Step(encode=(Encode(digests, pixels),), forget=digests)))
    for size in deployment.prefill_sizes:
        for B in sorted({1, deployment.rows}) if batch_always else [1]:
            for fresh in (True, False):
                steps.append((f"prefill {B}×{size}", Step(prefill=(_nothing(deployment, B, size, fresh),))))
    past = deployment.rows  # a row past the end is none: the write is dropped
    penalized = SamplingParams(presence_penalty=1.0)
    steps.append(("activate", Step(activate=(activate(past, 0, 0, 0, penalized, ()),))))
    steps.append(("release", Step(release=(past,))))
    steps.append(("clear", Step(clear=(past,))))
    for alone in [False] if batch_always else [False, True]:
        steps.append(("decode", Step(decode=Decode((0,), 0, alone, count=True, masks={}))))
    return steps


def _nothing(deployment: Deployment, B: int, size: int, fresh: bool) -> Prefill:
    zeros, no_images = np.zeros(B, np.int32), (None,) * images_of_chunk(B, size, deployment.num_soft_tokens)
    rows = None if deployment.rows == B else zeros
    tokens, soft_index = np.zeros((B, size), np.int32), np.full((B, size), -1, np.int32)
    return Prefill(rows, tokens, zeros, zeros, no_images, soft_index, fresh)
