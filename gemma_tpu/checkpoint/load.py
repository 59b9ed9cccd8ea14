"""Reading a checkpoint's parameters straight into their shardings and dtype."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import jax
import numpy as np

from gemma_tpu.checkpoint import boxes, checksums, lazy, names, values
from gemma_tpu.checkpoint.boxes import Box
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.progress import Progress, reporter
from gemma_tpu.checkpoint.source import Checkpoint
from gemma_tpu.config import GemmaConfig

_Shard = tuple[Box, list[jax.Device]]
ShardingOf = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
# Parameters are read in parallel as long as this much host memory is enough for them; a larger one is read alone.
_HOST_BYTES = 1 << 30
# XLA's CPU backend takes a host buffer over without a copy if it is aligned to this many bytes.
_ALIGNMENT = 64


def load_params(
    checkpoint: Checkpoint,
    config: GemmaConfig,
    *,
    dtype: jax.typing.DTypeLike,
    sharding: ShardingOf,
    text_only: bool = False,
    progress: Progress | bool = True,
    concurrency: int = 4,
) -> dict[str, jax.Array]:
    """Reads the parameters, named as in `gemma_tpu.model.param_shapes`, onto devices.

    Each device is given its shard, cast to `dtype` on the host; this process reads from storage only what its own
    devices hold, and what several of them hold only once. `sharding` maps a name and shape to a sharding. At most
    `concurrency` parameters are read at a time, and fewer if they are large. `progress` is called with bytes read and
    bytes in all, or True for a bar on standard error.

    Raises `CheckpointError` naming the file and the parameter if anything cannot be read or is not finite, and the file
    if one that is to be verified (`open_checkpoint`) is not what its checksum says; no array is left behind. A
    `CheckpointWarning` names matrices that are all zeros.
    """
    if text_only or config.vision is None:
        config = dataclasses.replace(config, vision=None)
    elif checkpoint.config.vision is None:
        raise CheckpointError(f"{checkpoint.path}: is text-only, but a model with a vision tower was asked for")
    arrays = values.watch(names.ours_from_canonical(checkpoint.arrays, config))
    plans = {name: _Plan(array, sharding(name, array.shape), np.dtype(dtype)) for name, array in arrays.items()}
    total = sum(plan.bytes_read for plan in plans.values())
    memory = _Memory(_HOST_BYTES)
    loaded: dict[str, jax.Array] = {}
    stop = threading.Event()

    with reporter(progress, total) as report, ThreadPoolExecutor(concurrency, "load") as pool:

        def load(name: str) -> None:
            with memory.hold(plans[name].host_bytes):
                try:
                    loaded[name] = plans[name].load(report, stop)
                except _Stopped:
                    return
                except BaseException as error:  # Ctrl-C too
                    stop.set()  # at once: the thread that waits for this one may not run for a while
                    if isinstance(error, CheckpointError) or not isinstance(error, Exception):
                        raise
                    raise CheckpointError(f"{checkpoint.path}: {name} cannot be loaded: {error}") from error

        try:
            with checksums.meanwhile(checkpoint.unchecked):
                # The largest first, so that the rest need not wait for it to be alone at the end.
                order = sorted(plans, key=lambda name: -plans[name].host_bytes)
                futures = [pool.submit(load, name) for name in order]
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            values.report_zeros(arrays, checkpoint.path)
            return {name: loaded[name] for name in plans}
        except BaseException:  # Ctrl-C too: what has been loaded must leave the devices
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for array in loaded.values():
                array.delete()
            raise


class _Stopped(Exception):
    """Another parameter failed; this one need not be finished."""


class _Plan:
    """How one parameter is read: the distinct boxes that this process's devices hold, and from what each is cut."""

    def __init__(self, array: LazyArray, sharding: jax.sharding.Sharding, dtype: np.dtype):
        self.array, self.sharding, self.dtype = array, sharding, dtype
        held: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
        for device, index in sharding.addressable_devices_indices_map(array.shape).items():
            box = boxes.normalise_box(index or (), array.shape)
            held.setdefault(tuple((part.start, part.stop) for part in box), []).append(device)
        shards: list[_Shard] = [(tuple(slice(*part) for part in key), devices) for key, devices in held.items()]
        around = tuple(
            slice(min(part.start for part in parts), max(part.stop for part in parts))
            for parts in zip(*(box for box, _ in shards), strict=True)
        )
        # Shards that cut across the chunks or rows of a file would each read most of it: then it is read once.
        at_once = sum(array.cost(box) for box, _ in shards) > 1.25 * array.cost(around)
        self.reads: list[tuple[Box, list[_Shard]]]
        self.reads = [(around, shards)] if at_once else [(shard[0], [shard]) for shard in shards]

    @property
    def bytes_read(self) -> int:
        """Bytes of the elements that are read, as stored."""
        return sum(math.prod(boxes.box_shape(around)) for around, _ in self.reads) * self.array.dtype.itemsize

    @property
    def host_bytes(self) -> int:
        """An upper estimate of the host memory that `load` needs: the result, and a block with copies of it."""
        result = max(math.prod(boxes.box_shape(around)) for around, _ in self.reads) * self.dtype.itemsize
        return result + 3 * max(self.array.cost(next(lazy.read_blocks(self.array, box))) for box, _ in self.reads)

    def load(self, report: Callable[[int], None], stop: threading.Event) -> jax.Array:
        parts: list[jax.Array] = []
        try:
            for around, shards in self.reads:
                read = self._read(around, report, stop)
                for box, devices in shards:
                    part = read[boxes.relative(box, around)]
                    parts += [jax.device_put(part, device) for device in devices]
                # Only when the devices have it may the next host buffer be filled.
                jax.block_until_ready(parts)
            return jax.make_array_from_single_device_arrays(self.array.shape, self.sharding, parts)
        except BaseException:  # as in load_params: whatever it is, no part stays behind
            for array in parts:
                array.delete()
            raise

    def _read(self, around: Box, report: Callable[[int], None], stop: threading.Event) -> np.ndarray:
        out = _aligned(boxes.box_shape(around), self.dtype)
        for block in lazy.read_blocks(self.array, around):
            if stop.is_set():
                raise _Stopped
            read = self.array.read(block)
            boxes.copy(out[boxes.relative(block, around)], read)
            report(read.nbytes)
        return out


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


class _Memory:
    """Bounds the host memory in use at a time; what needs more than there is has all of it, alone."""

    def __init__(self, size: int):
        self._size, self._used, self._changed = size, 0, threading.Condition()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._size)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
