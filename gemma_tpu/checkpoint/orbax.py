"""Lists, reads and writes the arrays of Orbax checkpoints.

Orbax stores each leaf of a pytree as a zarr array (version 2 or 3) named by its keys, joined by ".", in an OCDBT
database or in a directory for each array. Slices are read with TensorStore, since Orbax restores whole trees; writing
uses Orbax itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from gemma_tpu.checkpoint import lazy, slices, storage, unsupported_formats
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray, Leaf
from gemma_tpu.checkpoint.slices import Box
from gemma_tpu.checks import one_line
from gemma_tpu.environment import quiet_libtpu

TEMPORARY = ".orbax-checkpoint-tmp"
_ZARR = {".zarray": "zarr", "zarr.json": "zarr3"}
# Chunk size of written arrays, so that shards can be read separately. Orbax divides the longest axes; attention weights
# are chunked by heads, as they are sharded.
_CHUNK_BYTES = 16 << 20
_HEADS_AXIS = {"q_einsum": 0, "kv_einsum": 1, "qkv_einsum": 1, "attn_vec_einsum": 0}


class OrbaxArray(Leaf):
    def __init__(self, store: ts.TensorStore, name: str, file: str):
        self.store, self.name, self.file = store, name, file
        self.shape, self.dtype = tuple(store.shape), np.dtype(store.dtype.numpy_dtype)
        self.chunk = store.chunk_layout.read_chunk.shape or self.shape

    def read(self, box: Box) -> np.ndarray:
        try:
            return self.store[box].read(order="C").result()
        except Exception as error:
            raise self._unreadable(error) from error

    def read_into(self, box: Box, out: np.ndarray) -> None:
        if out.dtype != self.dtype:
            super().read_into(box, out)
            return
        try:
            target = ts.array(out, copy=False, write=True)
            target.write(self.store[box].translate_to[(0,) * len(box)] if box else self.store).result()
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.file}: cannot read {self.name}: {one_line(error)}")

    def cost(self, box: Box) -> int:
        count = 1
        for part, chunk, size in zip(box, self.chunk, self.shape, strict=True):
            count *= min(-(-part.stop // chunk) * chunk, size) - part.start // chunk * chunk
        return count * self.dtype.itemsize


def holds_arrays(names: set[str]) -> bool:
    """Whether a directory with these entries is an Orbax checkpoint."""
    if names & {"manifest.ocdbt", "_METADATA"}:
        return True
    # Orbax before 2023 wrote a msgpack file of the tree instead of _METADATA.
    return "checkpoint" in names and any(name.startswith(("transformer", "params", "layer_0")) for name in names)


def list_arrays(path: str) -> dict[str, dict[str, Any]]:
    """The TensorStore specs of the arrays in the checkpoint directory `path`, by their keys joined by "/"."""
    if TEMPORARY in path:
        raise CheckpointError(f"{path}: an Orbax checkpoint whose writing never finished")
    names = storage.entries(path)
    metadata: dict[str, Any] = {}
    if "_METADATA" in names:
        metadata = storage.read_json(storage.join(path, "_METADATA"))
    if "manifest.ocdbt" in names:
        manifest = storage.join(path, "manifest.ocdbt")
        if what := unsupported_formats.identify(storage.read_head(manifest)):
            raise CheckpointError(f"{manifest}: is {what}")
        database = {"driver": "ocdbt", "cache_pool": "cache_pool#directory"}
        keys = storage.list_keys(storage.open_store(path, **database), path)
    else:
        database = None
        keys = storage.list_keys(storage.open_store(path), path)

    specs = {}
    for key in keys:
        directory, _, file = key.rpartition("/")
        if file not in _ZARR or not directory:
            continue
        if database:
            kvstore = {**database, "base": storage.spec(path), "path": f"{directory}/"}
        else:
            kvstore = storage.spec(storage.join(path, directory))
        spec = {"driver": _ZARR[file], "kvstore": kvstore, "recheck_cached_data": "open"}
        # TensorStore reads a missing chunk as zeros. Newer Orbax stores zero chunks, so there one means damage.
        if metadata.get("store_array_data_equal_to_fill_value"):
            spec["fill_missing_data_reads"] = False
        specs[directory.replace(".", "/")] = spec
    return specs


def open_arrays(path: str, specs: Mapping[str, dict[str, Any]]) -> dict[str, OrbaxArray]:
    """Opens arrays listed in `path`, reading shapes and dtypes but no data."""
    futures = {name: ts.open(s, open=True, read=True, context=storage.context()) for name, s in specs.items()}
    arrays = {}
    for name, future in futures.items():
        try:
            arrays[name] = OrbaxArray(future.result(), name, path)
        except Exception as error:
            raise CheckpointError(f"{path}: cannot open {name}: {one_line(error)}") from error
    return arrays


_Infos = Sequence[ocp.type_handlers.ParamInfo]
_Args = Sequence[ocp.type_handlers.SaveArgs] | None


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """Saves lazy arrays like NumPy arrays, with a few at a time in memory."""

    def __init__(self, progress: Callable[[int], None]):
        # Avoids a copy of every array. Some versions (0.12.4) lack the argument.
        known = inspect.signature(ocp.type_handlers.NumpyHandler).parameters
        options: dict[str, Any] = {"deepcopy_host_arrays": False} if "deepcopy_host_arrays" in known else {}
        super().__init__(**options)
        self.progress = progress

    async def serialize(self, values: Sequence[Any], infos: _Infos, args: _Args = None) -> Sequence[Any]:
        """`values`: LazyArrays."""
        args = args or [ocp.type_handlers.SaveArgs()] * len(values)
        start = 0
        for stop in range(1, len(values) + 1):
            nbytes = sum(value.nbytes for value in values[start:stop])
            if nbytes < 16 * lazy.BLOCK_BYTES and stop < len(values):
                continue
            arrays = [slices.contiguous(value.read_all()) for value in values[start:stop]]
            futures = await super().serialize(arrays, infos[start:stop], args[start:stop])
            try:
                for future in futures:
                    future.result()
            except BaseException:  # KeyboardInterrupt: cleaning up must wait for the writing thread
                for future in futures:
                    with contextlib.suppress(Exception):
                        future.result()
                raise
            self.progress(nbytes)
            start = stop
        return []

    async def _background_serialize(self, values: Sequence[np.ndarray], infos: _Infos, args: _Args = None) -> None:
        """Waits for all arrays even if one fails; Orbax's method returns at the first failure."""
        before = asyncio.all_tasks()
        try:
            await super()._background_serialize(values, infos, args)
        finally:
            if others := asyncio.all_tasks() - before:
                await asyncio.wait(others)


def write(path: Path, tree: dict[str, Any], progress: Callable[[int], None] = lambda _: None) -> None:
    """Writes nested dicts of lazy arrays to a checkpoint directory. Calls `progress` with the bytes of each step."""
    quiet_libtpu()  # Orbax initializes JAX
    handlers = (LazyArray, _LazyHandler(progress)), (jax.Array, ocp.type_handlers.ArrayHandler())
    registry = ocp.type_handlers.create_type_handler_registry(*handlers)
    args = ocp.args.PyTreeSave(tree, save_args=jax.tree_util.tree_map_with_path(_save_args, tree))
    with _without_error_log(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as saver:
        saver.save(path, args=args)
    if (note := path / "commit_success.txt").exists():
        note.write_text("Checkpoint commit was successful")  # without the temporary path that Orbax includes


@contextlib.contextmanager
def _without_error_log() -> Iterator[None]:
    """Drops the tracebacks that Orbax logs for errors that it also raises."""

    def wanted(record: logging.LogRecord) -> bool:
        return "raised an exception" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _save_args(path: tuple[Any, ...], _: LazyArray) -> ocp.SaveArgs:
    module = jax.tree_util.keystr(path[:-1], simple=True, separator="/").rsplit("/", 1)[-1]
    axis = _HEADS_AXIS.get(module)
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=() if axis is None else (axis,))
