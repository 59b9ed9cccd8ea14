"""Host-side bookkeeping: chunks and images."""

from __future__ import annotations

import pytest

from gemma_tpu.engine.rows import chunk_end


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
