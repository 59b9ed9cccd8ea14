"""Host-side bookkeeping: chunks, images, and which row a prompt continues."""

from __future__ import annotations

import pytest

from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.engine.rows import Row, cache_keys, choose_row, chunk_end, image_spans

S = SOFT_TOKEN


def test_images_are_found_and_keyed_by_content() -> None:
    tokens = [2, S, S, S, 5, 6, S, S, S, 7]
    spans = image_spans(tokens, 3)
    assert [(span.start, span.end, span.image) for span in spans] == [(1, 4, 0), (6, 9, 1)]
    assert cache_keys(tokens, spans, [b"a", b"b"]) == [2, b"a", b"a", b"a", 5, 6, b"b", b"b", b"b", 7]
    with pytest.raises(ValueError, match="takes 3 soft tokens, the prompt has a run of 2"):
        image_spans([1, S, S, 4], 3)


def test_chunks_never_split_an_image() -> None:
    tokens = [1] * 5 + [S] * 4 + [1] * 3 + [S] * 4 + [1] * 4
    spans = image_spans(tokens, 4)
    for longest in range(4, 25):
        at, ends = 0, []
        while at < len(tokens):
            at = chunk_end(at, len(tokens), longest, spans)
            ends.append(at)
        assert ends[-1] == len(tokens)
        assert all(end - begin <= longest for begin, end in zip([0, *ends], ends, strict=False))
        assert not any(span.start < end < span.end for end in ends for span in spans)
    with pytest.raises(ValueError, match="no room for an image"):
        chunk_end(5, len(tokens), 3, spans)


def test_a_row_is_continued_only_as_a_whole() -> None:
    rows = [
        Row(0, keys=[1, 2, 3], last_used=5),
        Row(1, keys=[1, 2, 3, 4, 5], last_used=6),
        Row(2, keys=[1, 9], last_used=2),
        Row(3, keys=[1, 2, 3, 4], last_used=9, unread=1, halted=True),  # goes on in a call under way
    ]
    assert choose_row(rows, [1, 2, 3, 4, 5, 6]) == (rows[1], 5)
    assert choose_row(rows, [1, 2, 3, 4, 5]) == (rows[0], 3)  # one token must be left to feed
    assert choose_row(rows, [1, 2, 7]) == (rows[2], 0)  # nothing fits: the one unused for longest
    assert choose_row(rows[3:], [1]) is None
    rows[3].halted = False  # put to rest by the device: the call under way does nothing
    assert choose_row(rows[3:], [1, 2, 3, 4, 5]) == (rows[3], 4)
