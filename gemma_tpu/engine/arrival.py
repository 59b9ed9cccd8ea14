"""A request as it comes in: checked, and as the cache sees it. All of this is done on its caller's thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.engine.request import ImageInput, Request, StopWatch
from gemma_tpu.engine.rows import ImageSpan, cache_keys, image_spans
from gemma_tpu.options import SamplingParams


@dataclasses.dataclass(frozen=True)
class Arrival:
    """A request that waits for a row."""

    request: Request
    spans: list[ImageSpan]
    keys: list[int | bytes]


def arrive(
    tokens: Sequence[Any],
    images: Sequence[ImageInput],
    options: SamplingParams,
    stop_watch: StopWatch | None,
    *,
    vocab_size: int,
    num_soft_tokens: int,
    max_context: int,
) -> Arrival:
    """ValueError for what cannot be run."""
    if not len(tokens):
        raise ValueError("the prompt is empty")
    check_length(len(tokens), max_context)
    if bad := _not_ids((token for token in tokens if token != SOFT_TOKEN), vocab_size):
        raise ValueError(f"a prompt is ids in [0, {vocab_size}), got {bad[0]!r}")
    if tokens[-1] == SOFT_TOKEN:
        raise ValueError("a prompt cannot end within an image")
    if bad := _not_ids((*(options.stop_tokens or ()), *options.forbidden_tokens), vocab_size):
        raise ValueError(f"stop_tokens and forbidden_tokens must be ids in [0, {vocab_size}), got {bad}")
    spans = image_spans(tokens, num_soft_tokens)
    if len(spans) != len(images):
        raise ValueError(f"the prompt has places for {len(spans)} images, and {len(images)} were given")
    request = Request(tokens, images, options, stop_watch)
    request.image_tokens = sum(span.end - span.start for span in spans)
    return Arrival(request, spans, cache_keys(tokens, spans, [image.digest for image in images]))


def check_length(tokens: int, max_context: int) -> None:
    """ValueError if a prompt of so many tokens leaves no room for an answer."""
    if tokens >= max_context:
        raise ValueError(
            f"the prompt has {tokens} tokens, and the context of {max_context} must hold the answer too: "
            "shorten it, or load the model with a larger max_context"
        )


def _not_ids(tokens: Iterable[object], vocab_size: int) -> list[object]:
    """Those that are no integers (a float may be one's equal) in [0, vocab_size)."""

    def is_id(token: object) -> bool:
        return isinstance(token, int | np.integer) and not isinstance(token, bool) and 0 <= int(token) < vocab_size

    return [token for token in tokens if not is_id(token)]
