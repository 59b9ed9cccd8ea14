"""The arrays of one prefill call, from the rows that it is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from gemma_tpu.engine.request import ImageInput
from gemma_tpu.engine.rows import Row


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Arguments of `gemma_tpu.engine.programs.prefill`, and the images whose soft tokens `soft_index` counts."""

    rows: Int[np.ndarray, "B"] | None
    tokens: Int[np.ndarray, "B T"]
    start: Int[np.ndarray, "B"]
    count: Int[np.ndarray, "B"]
    soft_index: Int[np.ndarray, "B T"]
    images: list[ImageInput]


def make_chunk(
    rows: Sequence[Row], ends: Mapping[int, int], *, sizes: Sequence[int], max_rows: int, num_soft_tokens: int
) -> Chunk:
    """The tokens of each row up to its end (`ends`, by row number), in the shortest of the ascending `sizes`."""
    longest = max(ends[row.index] - len(row.keys) for row in rows)
    size = next(size for size in sizes if size >= longest)
    whole = len(rows) > 1 or max_rows == 1
    B = max_rows if whole else 1
    tokens, soft_index = np.zeros((B, size), np.int32), np.full((B, size), -1, np.int32)
    start, count = np.zeros(B, np.int32), np.zeros(B, np.int32)
    images: list[ImageInput] = []
    for row in rows:
        at = row.index if whole else 0
        begin, end = len(row.keys), ends[row.index]
        start[at], count[at] = begin, end - begin
        tokens[at, : end - begin] = row.occupant.tokens[begin:end]
        for span, image in row.images_until(end):
            first = len(images) * num_soft_tokens
            soft_index[at, span.start - begin : span.end - begin] = first + np.arange(num_soft_tokens)
            images.append(image)
    return Chunk(None if whole else np.array([rows[0].index], np.int32), tokens, start, count, soft_index, images)
