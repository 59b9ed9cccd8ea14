"""Steps that run every program once and change nothing, so that no request waits for the compiler."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gemma_tpu.deployment import IMAGE_BATCHES, Calls, Deployment
from gemma_tpu.engine.rows import images_of_chunk
from gemma_tpu.engine.step import COPIES, Clear, Copy, Decode, Encode, PageOwners, Prefill, Step, activate
from gemma_tpu.options import SamplingParams

Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)


def warmup_steps(deployment: Deployment, calls: Calls) -> list[tuple[str, Step]]:
    """Each with what it compiles, in words; first what every answer needs."""
    nobody = _nobody(deployment)
    steps = []
    for few in (None, *calls.few):
        picked = None if few is None else tuple(range(few))
        steps.append(("decode", Step(decode=Decode((0,), 0, nobody, picked, count=True, masks={}))))
    past = deployment.rows  # a row past the end is none: the write is dropped
    penalized = SamplingParams(presence_penalty=1.0)
    steps.append(("activate", Step(activate=(activate(past, 0, 0, 0, penalized, ()),))))
    steps.append(("release", Step(release=(past,))))
    steps.append(("clear", Step(before=(Clear(past, ()),))))
    shapes = [(1, size, fresh) for fresh in (True, False) for size in deployment.prefill_sizes]
    if calls.together and deployment.prefill_rows > 1:
        shapes.append((deployment.prefill_rows, deployment.prefill_sizes[0], True))
    for B, size, fresh in shapes:
        steps.append((f"prefill {B}×{size}", Step(prefill=(_nothing(deployment, B, size, fresh),))))
    if vision := deployment.config.vision:
        side = vision.image_size
        for batch in IMAGE_BATCHES:
            digests = tuple(b"warm-up %d" % i for i in range(batch))
            pixels = np.zeros((batch, side, side, 3), deployment.dtype)
            steps.append((f"{batch} images", Step(encode=(Encode(digests, pixels),), forget=digests)))
    for kind in COPIES if deployment.stored_prefixes else COPIES[:1]:
        target = deployment.stored_prefixes if kind == "store" else past
        steps.append((f"{kind} a prefix", Step(before=(Copy(kind, 0, target, 0, [0], [deployment.pages]),))))
    return steps


def _nothing(deployment: Deployment, B: int, size: int, fresh: bool) -> Prefill:
    zeros, no_images = np.zeros(B, np.int32), (None,) * images_of_chunk(B, size, deployment.num_soft_tokens)
    rows = None if deployment.rows == B else zeros + deployment.rows
    tokens, soft_index = np.zeros((B, size), np.int32), np.full((B, size), -1, np.int32)
    return Prefill(rows, tokens, zeros, zeros, no_images, soft_index, _nobody(deployment), fresh)


def _nobody(deployment: Deployment) -> PageOwners:
    zeros = np.zeros(deployment.pages, np.int32)
    return PageOwners(zeros - 1, zeros)
