from __future__ import annotations

import numpy as np
import pytest

from gemma_tpu.checkpoint import CheckpointError, lazy, slices


class Counted(lazy.InMemory):
    """An array that counts the elements that are read from it."""

    elements = 0

    def read(self, box):
        self.elements += int(np.prod(slices.box_shape(box)))
        return super().read(box)

    def cost(self, box):
        return int(np.prod(slices.box_shape(box))) * self.dtype.itemsize


def leaf(*shape: int, seed: int = 0) -> Counted:
    return Counted(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), "a")


def random_boxes(shape: tuple[int, ...], count: int = 40):
    rng = np.random.default_rng(1)
    for _ in range(count):
        starts = [int(rng.integers(size)) for size in shape]
        yield tuple(slice(s, int(rng.integers(s + 1, size + 1))) for s, size in zip(starts, shape, strict=True))


def views():
    """A view, and the same with NumPy."""
    a, b = leaf(6, 8, 5), leaf(6, 8, 5, seed=1)
    x, y = a.array, b.array
    yield a.transpose(2, 0, 1), x.transpose(2, 0, 1)
    yield a.split(1, (2, 4)), x.reshape(6, 2, 4, 5)
    yield a.merge(0), x.reshape(48, 5)
    yield a.merge(1), x.reshape(6, 40)
    yield a.expand(1), x[:, None]
    yield a.take(1, 3), x[:, 3]
    yield a.crop(0, 2, 5), x[2:5]
    yield a.pad(1, 11), np.pad(x, ((0, 0), (0, 3), (0, 0)))
    yield lazy.stack([a, b], 1), np.stack([x, y], 1)
    yield lazy.concat([a, b, a], 2), np.concatenate([x, y, x], 2)
    yield a.astype(np.dtype(np.float16)), x.astype(np.float16)
    yield a.merge(0).transpose(1, 0).split(1, (8, 6)), x.reshape(48, 5).T.reshape(5, 8, 6)
    fused = lazy.concat([a.transpose(0, 2, 1).split(0, (3, 2)), b.crop(0, 0, 3).transpose(0, 2, 1).expand(1)], 1)
    yield fused, np.concatenate([x.transpose(0, 2, 1).reshape(3, 2, 5, 8), y[:3].transpose(0, 2, 1)[:, None]], 1)


@pytest.mark.parametrize("index", range(13))
def test_a_box_of_a_view_is_what_numpy_says(index):
    view, expected = list(views())[index]
    assert view.shape == expected.shape
    np.testing.assert_array_equal(view.read_all(), expected)
    for box in random_boxes(view.shape):
        np.testing.assert_array_equal(view.read(box), expected[box])


@pytest.mark.parametrize("index", range(13))
@pytest.mark.parametrize("layout", ["rows", "strided", "wider"])
def test_a_box_of_a_view_written_into_an_array(index, layout):
    """Whatever the array's strides, and also if it has another dtype; around it nothing changes."""
    view, expected = list(views())[index]
    for box in [slices.whole(view.shape), *random_boxes(view.shape)]:
        shape = slices.box_shape(box)
        around = np.full([size + 2 for size in shape], 7, np.float64 if layout == "wider" else view.dtype)
        inner = tuple(slice(1, -1) for _ in shape)
        out = np.full(shape, 7, view.dtype) if layout == "rows" else around[inner]
        view.read_into(box, out)
        np.testing.assert_array_equal(out, expected[box])
        if layout != "rows":
            around[inner] = 7
            assert (around == 7).all()


def test_storage_writes_where_a_view_says():
    """Without an array in between: a leaf gets the memory of `out` itself, in its own order."""
    targets: list[np.ndarray] = []

    class Written(Counted):
        def read_into(self, box, out):
            targets.append(out)
            super().read_into(box, out)

    def written(*shape: int) -> Written:
        return Written(np.random.default_rng(0).standard_normal(shape).astype(np.float32), "a")

    q, kv = written(8, 16, 4), written(2, 4, 16, 4)
    fused = lazy.concat([q.transpose(0, 2, 1).split(0, (4, 2)), kv.transpose(1, 0, 3, 2)], 1)
    out = np.zeros(fused.shape, np.float32)
    fused.read_into(slices.whole(fused.shape), out)
    np.testing.assert_array_equal(out, fused.read_all())
    assert all(np.shares_memory(target, out) for target in targets[:5])
    assert [target.shape for target in targets[:5]] == [(2, 16, 4)] * 4 + [(2, 4, 16, 4)]


def test_a_shard_of_a_fused_view_reads_its_part_of_each_array_and_no_more():
    q, kv = leaf(8, 16, 4), leaf(2, 4, 16, 4)
    fused = lazy.concat([q.transpose(0, 2, 1).split(0, (4, 2)), kv.transpose(1, 0, 3, 2)], 1)
    fused.read((slice(1, 2), slice(0, 4), slice(0, 4), slice(0, 16)))
    assert (q.elements, kv.elements) == (2 * 16 * 4, 2 * 16 * 4)  # two of 8 query heads, one of 4 kv heads, twice


def test_cost_is_what_is_read():
    for view, _ in views():
        for box in random_boxes(view.shape, 10):
            before = {id(part): part.elements for part in view.leaves()}
            view.read(box)
            read = sum(part.elements - before[key] for key, part in {id(p): p for p in view.leaves()}.items())
            assert view.cost(box) == read * 4


def test_blocks_cover_a_box_once_and_do_not_read_a_chunk_twice(monkeypatch):
    monkeypatch.setattr(lazy, "BLOCK_BYTES", 1024)
    a = leaf(64, 32)
    box = (slice(3, 60), slice(1, 31))
    seen = np.zeros(a.shape, int)
    blocks = list(lazy.read_blocks(a, box))
    for block in blocks:
        seen[block] += 1
    expected = np.zeros(a.shape, int)
    expected[box] = 1
    assert len(blocks) > 3
    np.testing.assert_array_equal(seen, expected)

    class OneChunk(Counted):
        def cost(self, box):
            return self.nbytes

    assert list(lazy.read_blocks(OneChunk(a.array, "a"), box)) == [box]


def test_views_that_cannot_be_are_errors():
    a = leaf(6, 8)
    with pytest.raises(CheckpointError, match="cannot be divided"):
        a.split(0, (4, 2))
    with pytest.raises(CheckpointError, match="has no 3:9"):
        a.crop(0, 3, 9)
    with pytest.raises(CheckpointError, match="cannot be joined"):
        lazy.concat([a, leaf(6, 7)], 0)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (2, 0, 1)])
def test_copies_of_large_arrays(axes):
    values = np.random.default_rng(0).standard_normal((33, 70, 1100)).astype(np.float32).transpose(axes)
    out = np.zeros(values.shape, np.float32)
    slices.copy(out, values)
    np.testing.assert_array_equal(out, values)
    assert slices.contiguous(values).flags.c_contiguous
    np.testing.assert_array_equal(slices.contiguous(values), values)
    wide = np.zeros(values.shape, np.float64)
    slices.copy(wide, values)
    np.testing.assert_array_equal(wide, values)
