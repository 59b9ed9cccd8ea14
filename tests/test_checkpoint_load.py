"""Loading onto eight devices: the right shards, and no byte more from disk than they need."""

from __future__ import annotations

import functools
import re
import threading
import time
from pathlib import Path

import checkpoint_samples as samples
import jax
import numpy as np
import pytest
from checkpoint_samples import CONFIGS
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma_tpu.checkpoint import host_memory, lazy, load_params, open_checkpoint, orbax, save_params
from gemma_tpu.checkpoint import load as load_module
from gemma_tpu.checkpoint.host_memory import Buffers, MemoryBudget
from gemma_tpu.checkpoint.load import _ReadPlan
from gemma_tpu.checkpoint.names import params_from_canonical
from gemma_tpu.config import GemmaConfig, gemma3_layers
from gemma_tpu.model.linear import QuantizedWeight
from gemma_tpu.quantization import Quantization, quantize
from gemma_tpu.sharding import make_mesh, param_sharding


def divided(mesh: Mesh):
    """Shards the last axis that the model axis divides, so that shards cut across rows and chunks too."""

    def sharding(name: str, shape: tuple[int, ...]) -> NamedSharding:
        spec: list[str | None] = [None] * len(shape)
        for axis in reversed(range(len(shape))):
            if shape[axis] % mesh.shape["model"] == 0:
                spec[axis] = "model"
                break
        return NamedSharding(mesh, PartitionSpec(*spec))

    return sharding


def save(layout: str, path: Path, sample: samples.Sample) -> Path:
    if layout == "hf":
        return samples.save_hf(path, sample.hf, shards=2)
    tree = samples.flat_tree(sample.canonical) if layout == "flat" else samples.stacked_tree(sample.canonical)
    return samples.save_orbax(path, tree, use_zarr3=layout == "stacked")


@pytest.mark.parametrize("layout", ["flat", "stacked", "hf"])
@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (8, 1)])
def test_every_device_gets_its_shard(shape, layout, tmp_path):
    sample = samples.sample(CONFIGS["grouped-8"])
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
    checkpoint = open_checkpoint(save(layout, tmp_path / "c", sample), config=sample.config)
    sharding = divided(mesh)
    dtype = np.float32
    params = load_params(checkpoint, sample.config, dtype=dtype, sharding=sharding, progress=False)
    assert set(params) == set(sample.ours)
    split = 0
    for name, array in params.items():
        expected = sample.ours[name].astype(dtype)
        assert array.sharding == sharding(name, expected.shape)
        assert array.dtype == dtype
        assert len(array.addressable_shards) == 8
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index], err_msg=name)
        split += not array.is_fully_replicated
    assert (split > 50) == (shape != (8, 1))


def bytes_read_by_this_process() -> int:
    """As the operating system counts them."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


LARGE = GemmaConfig(
    vocab_size=8192, embed_dim=512, hidden_dim=64, layers=gemma3_layers(1, window=8), num_heads=8, num_kv_heads=8,
    head_dim=64, query_scale=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> dict[str, Path]:
    sample = samples.sample(LARGE)
    path = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax, "_CHUNK_BYTES", 1 << 17)
        save_params(sample.ours, LARGE, path / "flat")
    return {"flat": path / "flat", "hf": samples.save_hf(path / "hf", sample.hf)}


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes where Linux does")
@pytest.mark.parametrize("layout", ["flat", "hf"])
def test_only_what_this_process_holds_is_read(large, layout, monkeypatch):
    mesh = Mesh(np.array(jax.devices()), ("model",))
    by_rows = {"embedder.table": "V", "attention.qkv": "K", "attention.out": "K"}

    def sharding(name: str, shape: tuple[int, ...]) -> NamedSharding:
        rows = any(name.endswith(part) for part in by_rows)
        return NamedSharding(mesh, PartitionSpec("model" if rows else None))

    # As on a slice with several hosts, where a process can address some of the devices only.
    mine = jax.devices()[3]
    monkeypatch.setattr(
        NamedSharding,
        "addressable_devices_indices_map",
        lambda self, shape: {mine: self.devices_indices_map(shape)[mine]},
        raising=False,
    )
    made = {}
    monkeypatch.setattr(
        jax, "make_array_from_single_device_arrays", lambda shape, _, parts: made.setdefault(shape, parts)[0]
    )
    checkpoint = open_checkpoint(large[layout], config=LARGE)
    before = bytes_read_by_this_process()
    load_params(checkpoint, LARGE, dtype=samples.BF16, sharding=sharding, progress=False)
    count = bytes_read_by_this_process() - before
    sample = samples.sample(LARGE)
    held = sum(
        array.nbytes // (8 if any(name.endswith(part) for part in by_rows) else 1)
        for name, array in sample.ours.items()
    )
    assert checkpoint.nbytes > 5 * held
    assert held * 0.8 < count < held * 1.25 + 200_000  # less than `held` if compressed; indices on top
    shard = made[(8192, 512)][0]
    np.testing.assert_array_equal(np.asarray(shard), sample.ours["embedder.table"][3 * 1024 : 4 * 1024])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes where Linux does")
@pytest.mark.parametrize("layout", ["flat", "hf"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_nothing_is_read_twice(large, layout, axis):
    """Replicated, divided by rows, and by columns, which cut every row of the file."""
    mesh = Mesh(np.array(jax.devices()), ("model",))

    def sharding(name: str, shape: tuple[int, ...]) -> NamedSharding:
        spec: list[str | None] = [None] * len(shape)
        if axis is not None and axis < len(shape) and shape[axis] % 8 == 0:
            spec[axis] = "model"
        return NamedSharding(mesh, PartitionSpec(*spec))

    checkpoint = open_checkpoint(large[layout], config=LARGE)
    before = bytes_read_by_this_process()
    load_params(checkpoint, LARGE, dtype=samples.BF16, sharding=sharding, progress=False)
    count = bytes_read_by_this_process() - before
    assert checkpoint.nbytes * 0.8 < count < checkpoint.nbytes * 1.1 + 200_000


def test_progress_counts_every_byte_once(tmp_path, capsys):
    sample = samples.sample(CONFIGS["grouped-8"])
    checkpoint = open_checkpoint(samples.save_hf(tmp_path / "c", sample.hf), config=sample.config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    seen: list[tuple[int, int]] = []
    options = {"dtype": np.float32, "sharding": lambda *_: device}
    load_params(checkpoint, sample.config, progress=lambda done, total: seen.append((done, total)), **options)
    total = sum(array.nbytes for array in sample.canonical.values())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert capsys.readouterr().err == ""
    load_params(checkpoint, sample.config, **options)
    assert re.search(r"Loading: 100%\|.*\| 46\.2kB/46\.2kB", capsys.readouterr().err)


@pytest.mark.parametrize("error", [KeyboardInterrupt("stop"), RuntimeError("stop"), SystemExit(3)], ids=type)
def test_an_interrupted_load_leaves_no_array_and_no_thread(error, large, monkeypatch):
    monkeypatch.setattr(lazy, "BLOCK_BYTES", 1 << 14)
    checkpoint = open_checkpoint(large["hf"], config=LARGE)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    before, blocks = len(jax.live_arrays()), 0

    def interrupt(done: int, total: int) -> None:
        nonlocal blocks
        blocks += 1
        if blocks == 20:
            raise error

    with pytest.raises(type(error)) as raised:
        load_params(checkpoint, LARGE, dtype=np.float32, sharding=lambda *_: device, progress=interrupt, concurrency=3)
    assert raised.value is error  # the caller's own, and not a damaged checkpoint
    assert len(jax.live_arrays()) == before
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("load")] == []
    assert blocks < 100  # of more than 500: those that were being read stop between two blocks


@pytest.mark.parametrize("layout", ["flat", "stacked", "hf"])
@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
@pytest.mark.parametrize("dtype", [samples.BF16, np.float32], ids=["stored", "cast"])
def test_blocks_with_ragged_ends_into_buffers_that_are_used_again(layout, shape, dtype, tmp_path, monkeypatch):
    """As onto an accelerator: its copy is made before the next parameter is read into the same memory."""
    monkeypatch.setattr(lazy, "BLOCK_BYTES", 700)
    monkeypatch.setattr(load_module, "_adopted", lambda plans: False)
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda values, device: put(np.array(values), device))
    made = []
    aligned = host_memory._aligned
    monkeypatch.setattr(host_memory, "_aligned", lambda size: made.append(size) or aligned(size))
    sample = samples.sample(CONFIGS["grouped-8"])
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
    checkpoint = open_checkpoint(save(layout, tmp_path / "c", sample), config=sample.config)
    params = load_params(checkpoint, sample.config, dtype=dtype, sharding=divided(mesh), progress=False)
    for name, array in params.items():
        np.testing.assert_array_equal(np.asarray(array), sample.ours[name].astype(dtype), err_msg=name)
    assert len(made) <= 8 < len(params)  # as many as there are parameters on their way at once


@pytest.mark.parametrize("layout", ["flat", "hf"])
def test_a_box_of_a_stored_array_written_into_an_array(large, layout):
    """Whole rows and parts of them, in row-major and other order, as stored and cast."""
    (leaf,) = open_checkpoint(large[layout], config=LARGE).arrays["embedder/input_embedding"].leaves()
    expected = samples.sample(LARGE).ours["embedder.table"]
    for box in [(slice(8, 40), slice(0, 512)), (slice(7, 9), slice(3, 200)), (slice(5, 6), slice(500, 512))]:
        for dtype in (samples.BF16, np.dtype(np.float16), np.dtype(np.float32)):
            for order in ("C", "F"):
                out = np.zeros(expected[box].shape, dtype, order)
                leaf.read_into(box, out)
                np.testing.assert_array_equal(out, expected[box].astype(dtype))


def test_a_buffer_is_lent_to_one_at_a_time():
    buffers = Buffers(1000)
    with buffers.lend((2, 100), np.dtype(np.int32)) as a, buffers.lend((3,), np.dtype(np.int8)) as b:
        assert not np.shares_memory(a, b)
        assert a.ctypes.data % host_memory.ALIGNMENT == b.ctypes.data % host_memory.ALIGNMENT == 0
        assert a.shape == (2, 100)
    with buffers.lend((5, 10), np.dtype(np.float64)) as c, buffers.lend((3,), np.dtype(np.int8)) as d:
        assert np.shares_memory(a, c)  # the smallest that is large enough
        assert np.shares_memory(b, d)
    with buffers.lend((2000,), np.dtype(np.int8)):
        pass
    assert sum(buffer.nbytes for buffer in buffers._free) <= 1000


@pytest.mark.parametrize("layout", ["flat", "hf"])
def test_a_shard_at_a_time_is_in_host_memory(large, layout):
    """If shards lie apart in the file; otherwise, and on one device, the array as a whole."""
    table = open_checkpoint(large[layout], config=LARGE).arrays["embedder/input_embedding"]
    mesh, dtype = Mesh(np.array(jax.devices()), ("model",)), np.dtype(np.float32)
    size = 8192 * 512 * 4

    def host_bytes(*spec: str | None) -> int:
        return _ReadPlan(table, NamedSharding(mesh, PartitionSpec(*spec)), dtype).host_bytes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "BLOCK_BYTES", 1 << 17)
        assert size / 8 <= host_bytes("model") < size / 2
        assert size <= host_bytes() < size * 1.2


def test_host_memory_is_bounded():
    memory, lock = MemoryBudget(100), threading.Lock()
    held: list[int] = []
    most: list[list[int]] = []
    together = threading.Barrier(2)

    def use(size: int) -> None:
        with memory.reserve(size):
            with lock:
                held.append(size)
                most.append(list(held))
            if size == 45:
                together.wait(60)  # which both pass only while both are held
            time.sleep(0.002)
            with lock:
                held.remove(size)

    sizes = [30, 50, 250, 20, 60, 40, 101, 30, 30] * 3
    for group in ([45, 45], sizes):
        threads = [threading.Thread(target=use, args=(size,)) for size in group]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(sum(sizes) <= 100 or len(sizes) == 1 for sizes in most)
    assert max(map(len, most)) > 1
    assert len(most) == 2 + len(sizes)


@pytest.mark.parametrize("layout", ["flat", "stacked", "hf"])
@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (8, 1)])
@pytest.mark.parametrize("width", ["int8", "int4"])
def test_every_device_gets_its_shard_of_quantised_weights(shape, layout, width, tmp_path):
    """A scale is that of a whole channel, also where its weights lie on several devices."""
    sample = samples.sample(CONFIGS["grouped-8"])
    mesh = make_mesh(sample.config, shape)
    checkpoint = open_checkpoint(save(layout, tmp_path / "c", sample), config=sample.config)
    kept = {"grid": functools.partial(Quantization(width, "int8", "int8").grid, platform="tpu")}
    where = functools.partial(param_sharding, mesh=mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "BLOCK_BYTES", 512)  # a weight is read in several blocks
        params = load_params(checkpoint, sample.config, dtype=np.float32, sharding=where, progress=False, **kept)
    shared = 0
    for name, weight in params.items():
        grid = kept["grid"](name)
        assert isinstance(weight, QuantizedWeight) == (grid is not None)
        if isinstance(weight, QuantizedWeight) and grid:
            expected = quantize(sample.ours[name], grid)
            assert weight.values.sharding == where(name, weight.shape)
            for array, whole in zip((weight.values, weight.scales), expected, strict=True):
                assert array.dtype == whole.dtype
                for shard in array.addressable_shards:
                    np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index], err_msg=name)
            parts = weight.values.sharding.shard_shape(weight.shape)
            shared += any(parts[axis] < weight.shape[axis] for axis in grid.summed)
    assert (shared > 10) == (shape != (8, 1))


@pytest.mark.parametrize("layout", ["flat", "hf"])
def test_a_quantised_weight_is_read_once_and_never_whole_in_another_dtype(layout, large, monkeypatch):
    """What is on the host is what is stored, and the integers."""
    checkpoint = open_checkpoint(large[layout], config=LARGE)
    mesh = make_mesh(LARGE, (1, 8))
    seen: list[int] = []
    where, grid = functools.partial(param_sharding, mesh=mesh), functools.partial(Quantization().grid, platform="tpu")
    monkeypatch.setattr(
        load_module, "quantize", lambda values, grid: seen.append(values.nbytes) or quantize(values, grid)
    )
    total = []
    load_params(
        checkpoint, LARGE, dtype=np.float32, sharding=where, grid=grid, progress=lambda *done: total.append(done)
    )
    assert total[-1][0] == total[-1][1] == checkpoint.nbytes
    assert sum(seen) == sum(
        x.nbytes for name, x in params_from_canonical(checkpoint.arrays, LARGE).items() if grid(name)
    )
