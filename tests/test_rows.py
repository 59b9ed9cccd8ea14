"""Host-side bookkeeping: chunks, images, and which row a prompt continues."""

from __future__ import annotations

import pytest

from gemma_tpu.engine.rows import Row, choose_row, chunk_end


def test_chunks_never_split_an_image() -> None:
    starts, length = (5, 12), 20
    for longest in range(4, 25):
        at, ends = 0, []
        while at < length:
            at = chunk_end(at, length, longest, starts, 4)
            ends.append(at)
        assert ends[-1] == length
        assert all(end - begin <= longest for begin, end in zip([0, *ends], ends, strict=False))
        assert not any(start < end < start + 4 for end in ends for start in starts)
    with pytest.raises(ValueError, match="no room for an image"):
        chunk_end(5, length, 3, starts, 4)


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
