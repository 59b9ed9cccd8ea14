"""Reads a checkpoint's parameters directly into their shardings and dtype, quantised on the way if so asked."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import jax
import numpy as np
from jax.sharding import NamedSharding

from gemma_tpu.checkpoint import checksums, lazy, names, per_channel, slices, weight_checks
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.host_memory import Buffers, MemoryBudget
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.open import Checkpoint
from gemma_tpu.checkpoint.progress import Progress, reporter
from gemma_tpu.checkpoint.slices import Box
from gemma_tpu.checkpoint.turns import short_turns
from gemma_tpu.config import GemmaConfig
from gemma_tpu.model.linear import QuantizedWeight, Weight
from gemma_tpu.quantization import Grid, quantize

_Shard = tuple[Box, list[jax.Device]]
ShardingOf = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
GridOf = Callable[[str], Grid | None]
# Host memory for parameters that are read in parallel; a larger parameter is read alone.
_HOST_BYTES = 1 << 30
# Host memory for what reading blocks of them takes beside that; a larger block is read alone.
_BLOCKS_BYTES = 512 << 20
_SMALL = 1 << 20  # bytes; to wait until the devices have a parameter takes longer than to get new memory for it
_READERS = min(16, os.cpu_count() or 1)


def load_params(
    checkpoint: Checkpoint,
    config: GemmaConfig,
    *,
    dtype: jax.typing.DTypeLike,
    sharding: ShardingOf,
    grid: GridOf = lambda _: None,
    text_only: bool = False,
    progress: Progress | bool = True,
    concurrency: int = 8,
) -> dict[str, Weight]:
    """Reads the parameters, named as in `gemma_tpu.model.param_shapes`, onto devices.

    Each process reads only the shards of its own devices, replicated ones once, and casts them to `dtype` on the host.
    What is quantised is so there too, from the stored values: of a channel that several processes share each reads all.
    Integers that are stored with a scale for each output channel stay as they are, if the grid's are as wide.

    Args:
      sharding: maps a name and shape to a sharding.
      grid: maps a name to the integers that stand for its weights, or to None.
      text_only: skips the vision tower.
      progress: a function of (bytes read, total bytes), or True for a progress bar on standard error.
      concurrency: parameters on their way at once at most, fewer if they are large; while one is copied to its
        devices, blocks of the others are read, as many at once as there are processor cores, or 16.

    Raises `CheckpointError` naming the file and the parameter if anything cannot be read, is not finite, or does not
    match its checksum (`open_checkpoint`); no arrays stay on devices. A `CheckpointWarning` names all-zero matrices.
    """
    if text_only or config.vision is None:
        config = dataclasses.replace(config, vision=None)
    elif checkpoint.config.vision is None:
        raise CheckpointError(f"{checkpoint.path}: is text-only, but a model with a vision tower was asked for")
    arrays, scales = names.params_from_canonical(checkpoint.arrays, config), {}
    for name, array in arrays.items():
        if (integers := grid(name)) and (found := per_channel.of_param(array, name)) and integers.holds(found.bits):
            arrays[name], scales[name] = found.values, found.scales
    arrays = weight_checks.add_checks(arrays)
    plans = {
        name: _ReadPlan(array, sharding(name, array.shape), np.dtype(dtype), grid(name), scales.get(name))
        for name, array in arrays.items()
    }
    total = sum(plan.bytes_read for plan in plans.values())
    memory = MemoryBudget(_HOST_BYTES)
    loaded: dict[str, Weight] = {}
    stop = threading.Event()

    with (
        short_turns(),
        reporter(progress, total) as report,
        ThreadPoolExecutor(_READERS, "load-read") as readers,
        ThreadPoolExecutor(concurrency, "load") as pool,
    ):
        reader = _Reader(readers, report, stop, Buffers(0 if _adopted(plans.values()) else _HOST_BYTES))

        def load(name: str) -> None:
            with memory.reserve(plans[name].host_bytes):
                try:
                    loaded[name] = plans[name].load(reader)
                except _Stopped:
                    return
                except BaseException as error:  # including KeyboardInterrupt
                    stop.set()  # here, since the waiting thread may react late
                    if isinstance(error, CheckpointError) or not isinstance(error, Exception):
                        raise
                    raise CheckpointError(f"{checkpoint.path}: {name} cannot be loaded: {error}") from error

        try:
            with checksums.verifying(checkpoint.unverified):
                # Largest first, so that it is not left to be read alone at the end.
                order = sorted(plans, key=lambda name: -plans[name].host_bytes)
                futures = [pool.submit(load, name) for name in order]
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            weight_checks.report_zeros(arrays, checkpoint.path)
            return {name: loaded[name] for name in plans}
        except BaseException:  # including KeyboardInterrupt: free device memory
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for array in jax.tree.leaves(loaded):
                array.delete()
            raise


class _Stopped(Exception):
    """Reading was stopped because another parameter failed."""


class _Reader:
    """Reads blocks in parallel. `buffers`: of the arrays whose values go to devices."""

    def __init__(
        self, pool: ThreadPoolExecutor, report: Callable[[int], None], stop: threading.Event, buffers: Buffers
    ) -> None:
        self.buffers = buffers
        self._pool, self._report, self._stop, self._memory = pool, report, stop, MemoryBudget(_BLOCKS_BYTES)

    def read(self, array: LazyArray, box: Box, out: np.ndarray) -> None:
        """Writes the elements in `box` to `out`, cast to its dtype. No thread writes there after this ends."""

        def read(block: Box) -> None:
            # A block that is stored packed is larger than what is read of it; views may make copies of it.
            size = 3 * max(math.prod(slices.box_shape(block)) * array.dtype.itemsize, array.cost(block))
            with self._memory.reserve(size):
                if self._stop.is_set():
                    raise _Stopped
                try:
                    array.read_into(block, out[slices.relative(block, box)])
                    self._report(math.prod(slices.box_shape(block)) * array.dtype.itemsize)
                except BaseException:  # including KeyboardInterrupt: the other blocks need not be read
                    self._stop.set()
                    raise

        first, *more = lazy.read_blocks(array, box)
        if not more:  # other parameters are read beside it
            read(first)
            return
        futures = [self._pool.submit(read, block) for block in (first, *more)]
        _, others = wait(futures, return_when=FIRST_EXCEPTION)
        for future in others:
            future.cancel()
        wait(others)
        errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
        # The cause, and not that others stopped for it.
        for error in sorted(errors, key=lambda error: isinstance(error, _Stopped)):
            raise error


class _ReadPlan:
    """The boxes of one parameter to read, and the shards of this process's devices to cut from each.

    `scales`: of an array that holds integers of the grid.
    """

    def __init__(
        self,
        array: LazyArray,
        sharding: jax.sharding.Sharding,
        dtype: np.dtype,
        grid: Grid | None = None,
        scales: LazyArray | None = None,
    ) -> None:
        self.array, self.sharding, self.dtype, self.grid, self.scales = array, sharding, dtype, grid, scales
        devices_of: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
        for device, index in sharding.addressable_devices_indices_map(array.shape).items():
            box = slices.resolve_box(index or (), array.shape)
            devices_of.setdefault(tuple((part.start, part.stop) for part in box), []).append(device)
        shards: list[_Shard] = [(tuple(slice(*part) for part in key), devices) for key, devices in devices_of.items()]
        union = self._whole_channels(
            tuple(
                slice(min(part.start for part in parts), max(part.stop for part in parts))
                for parts in zip(*(box for box, _ in shards), strict=True)
            )
        )
        own = [self._whole_channels(box) for box, _ in shards]
        # Shards that cut across stored chunks or rows each read most of the file: read their union once instead.
        read_union = len(own) > 1 and sum(map(array.cost, own)) > 1.25 * array.cost(union)
        self.reads: list[tuple[Box, list[_Shard]]]
        self.reads = (
            [(union, shards)] if read_union else [(box, [shard]) for box, shard in zip(own, shards, strict=True)]
        )

    def _whole_channels(self, box: Box) -> Box:
        """With all weights that share a scale with those of `box`."""
        summed = self.grid.summed if self.grid and self.scales is None else ()
        return tuple(slice(0, self.array.shape[axis]) if axis in summed else part for axis, part in enumerate(box))

    @property
    def bytes_read(self) -> int:
        """Bytes of the elements to read, in the stored dtype."""
        return sum(math.prod(slices.box_shape(box)) for box, _ in self.reads) * self.array.dtype.itemsize

    @property
    def host_bytes(self) -> int:
        """An upper estimate of the host memory for `load`, beside that for blocks."""
        itemsize = self.array.dtype.itemsize + self.grid.dtype.itemsize if self.grid else self.dtype.itemsize
        return max(math.prod(slices.box_shape(box)) for box, _ in self.reads) * itemsize

    def load(self, reader: _Reader) -> Weight:
        parts: list[jax.Array] = []
        scales: list[jax.Array] = []
        try:
            for read_box, shards in self.reads:
                shape, dtype = slices.box_shape(read_box), self._read_dtype
                if math.prod(shape) * dtype.itemsize <= _SMALL:
                    values = np.empty(shape, dtype)
                    reader.read(self.array, read_box, values)
                    self._put(values, read_box, shards, parts, scales)
                    continue
                with reader.buffers.lend(shape, dtype) as values:
                    reader.read(self.array, read_box, values)
                    self._put(values, read_box, shards, parts, scales)
                    # The buffer is free once the devices have the values.
                    jax.block_until_ready((parts, scales))
            whole = jax.make_array_from_single_device_arrays(self.array.shape, self.sharding, parts)
            if self.grid is None:
                return whole
            assert isinstance(self.sharding, NamedSharding)
            shape, where = self.grid.of_scales(whole.shape, 1), self.grid.scales_sharding(self.sharding, whole.ndim)
            joined = jax.make_array_from_single_device_arrays(shape, where, scales)
            return QuantizedWeight(whole, joined, self.dtype)
        except BaseException:  # including KeyboardInterrupt: free device memory
            for array in (*parts, *scales):
                array.delete()
            raise

    @property
    def _read_dtype(self) -> np.dtype:
        """What the devices get, or what is to be quantised as it is stored."""
        if self.grid is None:
            return self.dtype
        return self.array.dtype if self.scales is None else self.grid.dtype

    def _put(
        self, values: np.ndarray, box: Box, shards: list[_Shard], parts: list[jax.Array], scales: list[jax.Array]
    ) -> None:
        """Starts copying the shards of `values`, which are those in `box`; appends to `parts` and `scales`."""
        factors = None
        if self.grid and self.scales is not None:
            factors = self.scales.read(self.grid.of_scales(box, slice(0, 1)))
        elif self.grid:
            values, factors = quantize(values, self.grid)
        for shard, devices in shards:
            part = slices.relative(shard, box)
            parts += [jax.device_put(values[part], device) for device in devices]
            if self.grid and factors is not None:
                own = factors[self.grid.of_scales(part, slice(None))]
                scales += [jax.device_put(own, device) for device in devices]


def _adopted(plans: Iterable[_ReadPlan]) -> bool:
    """Whether a device keeps host arrays as its own, as a CPU does, so that they cannot be used again."""
    return any(device.platform == "cpu" for plan in plans for device in plan.sharding.addressable_devices)
