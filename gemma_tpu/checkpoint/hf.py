"""Reads slices of safetensors files in Hugging Face directories, and writes such directories block by block.

A safetensors file has an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and
the arrays, row-major and contiguous (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gemma_tpu.checkpoint import lazy, slices, storage, unsupported_formats
from gemma_tpu.checkpoint.errors import CheckpointError, CheckpointWarning
from gemma_tpu.checkpoint.lazy import LazyArray, Leaf
from gemma_tpu.checkpoint.slices import Box
from gemma_tpu.checks import brief, one_line

INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),  # buffers, and shapes of packed matrices
    # Of quantised matrices alone.
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_TOO_LARGE = 1 << 64
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


class SafetensorsArray(Leaf):
    """An array in a safetensors file, starting at byte `offset` of the file."""

    def __init__(self, file: str, name: str, dtype: np.dtype, shape: tuple[int, ...], offset: int):
        self.file, self.name, self.dtype, self.shape, self.offset = file, name, dtype, shape, offset

    def _span(self, box: Box) -> tuple[Box, int, int]:
        """The smallest box around `box` that is contiguous in the file, and its byte range."""
        around = list(slices.whole(self.shape))
        for axis, part in enumerate(box):
            around[axis] = part
            if part.stop - part.start > 1:
                break
        strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        start = sum(part.start * stride for part, stride in zip(around, strides, strict=True))
        count = math.prod(slices.box_shape(tuple(around)))
        first = self.offset + start * self.dtype.itemsize
        return tuple(around), first, first + count * self.dtype.itemsize

    def read(self, box: Box) -> np.ndarray:
        around, first, last = self._span(box)
        values = np.empty(last - first, np.uint8)
        self._fill(values, first)
        return values.view(self.dtype).reshape(slices.box_shape(around))[*slices.relative(box, around), ...]

    def read_into(self, box: Box, out: np.ndarray) -> None:
        around, first, _ = self._span(box)
        if around == box and out.dtype == self.dtype and out.flags.c_contiguous:
            self._fill(out.reshape(-1).view(np.uint8), first)
        else:
            super().read_into(box, out)

    def _fill(self, out: np.ndarray, start: int) -> None:
        try:
            storage.read_range(self.file, start, out)
        except CheckpointError as error:
            raise CheckpointError(f"{error} (while reading {self.name})") from error

    def cost(self, box: Box) -> int:
        _, first, last = self._span(box)
        return last - first


def is_hf(names: set[str]) -> bool:
    """Whether a directory with these entries is a Hugging Face checkpoint."""
    return INDEX in names or any(name.endswith(".safetensors") for name in names)


def holds_model(names: set[str]) -> bool:
    """Whether a directory with these entries has the weights of a model, not only of an adapter."""
    return INDEX in names or bool(_weight_files(names))


def _weight_files(names: set[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_"))


def read_directory(path: str) -> dict[str, SafetensorsArray]:
    """The arrays in a directory's safetensors files, by stored name.

    A `CheckpointWarning` names files that are not part of the checkpoint.
    """
    names = storage.entries(path)
    stored = _weight_files(names)
    index: dict[str, str] | None = None
    if INDEX in names:
        index = _read_index(storage.join(path, INDEX))
        files = sorted(set(index.values()))
        if missing := sorted(set(files) - names):
            raise CheckpointError(f"{path}: {INDEX} lists files that are missing: {', '.join(missing)}")
    elif "model.safetensors" in names:
        files = ["model.safetensors"]
    else:
        files = stored
    if others := sorted(set(stored) - set(files)):
        listed = INDEX if index is not None else "model.safetensors"
        warnings.warn(f"{path}: read by {listed}, without {', '.join(others)}", CheckpointWarning, stacklevel=2)
    arrays: dict[str, SafetensorsArray] = {}
    for file in files:
        for name, array in read_file(storage.join(path, file)).items():
            if name in arrays:
                raise CheckpointError(f"{path}: {name} is in {arrays[name].file.rsplit('/', 1)[1]} and in {file}")
            arrays[name] = array
    if index is not None and (missing := sorted(set(index) - set(arrays))):
        raise CheckpointError(f"{path}: {INDEX} lists parameters that no file holds: {', '.join(missing)}")
    return arrays


def _read_index(path: str) -> dict[str, str]:
    weight_map = storage.read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{path}: is no index of safetensors files: it has no weight_map of names to files")
    return weight_map


def read_file(path: str) -> dict[str, SafetensorsArray]:
    """The arrays in one safetensors file. Raises `CheckpointError` if it is damaged or of another format."""
    head = storage.read_head(path)
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or not 2 <= length <= _MAX_HEADER:
        what = unsupported_formats.identify(head, path)
        raise CheckpointError(f"{path}: is {what or 'no safetensors file (its first 8 bytes are no header length)'}")
    if not _size_at_least(path, 8 + length):
        raise CheckpointError(f"{path}: truncated: the file ends inside its header of {length} bytes")
    entries, size = _read_header(storage.read_file(path, slice(8, 8 + length)), path)
    if not _size_at_least(path, 8 + length + size):
        raise CheckpointError(f"{path}: truncated: its header describes {8 + length + size} bytes, the file has fewer")
    if _size_at_least(path, 8 + length + size + 1):
        raise CheckpointError(f"{path}: damaged: its header describes {8 + length + size} bytes, the file has more")
    return {
        name: SafetensorsArray(path, name, dtype, shape, 8 + length + start)
        for name, (dtype, shape, start) in entries.items()
    }


def _read_header(header: bytes, path: str) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...], int]], int]:
    """Dtype, shape and offset after the header of each array, and the total size of the arrays in bytes.

    Like the safetensors library (0.8, safetensors/src/tensor.rs), rejects arrays that are not contiguous or whose
    sizes do not match their shapes.
    """
    where = f"{path}: its safetensors header is corrupt"
    found: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    try:
        raw = storage.parse_json(header.decode(), where, strict=True)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: {error}") from error
    metadata = raw.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{where}: __metadata__ is {brief(metadata)}, not texts by name")
    for name, entry in raw.items():
        if not isinstance(entry, dict) or not entry.keys() >= _ENTRY_KEYS:
            raise CheckpointError(f"{where}: {brief(name)} is {brief(entry)}, without dtype, shape and data_offsets")
        shape, offsets = entry["shape"], entry["data_offsets"]
        others = (value for key, value in entry.items() if key not in _ENTRY_KEYS)
        if any(isinstance(value, list | dict) for value in others):
            raise CheckpointError(f"{where}: {brief(name)} has more than is known of an array: {brief(entry)}")
        if not isinstance(entry["dtype"], str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
            raise CheckpointError(f"{where}: {brief(name)} has the dtype, shape or data_offsets {brief(entry)}")
        found[name] = entry["dtype"], tuple(shape), offsets[0], offsets[1]
    if unsupported := sorted({code for code, *_ in found.values()} - set(DTYPES)):
        raise CheckpointError(
            f"{path}: holds {one_line(', '.join(unsupported))[:80]} arrays: a quantised checkpoint? Only "
            f"{', '.join(DTYPES)} can be read"
        )
    entries, end = {}, 0
    for name, (code, shape, start, stop) in sorted(found.items(), key=lambda item: item[1][2:]):
        dtype = DTYPES[code]
        sizes = list(itertools.accumulate(shape, operator.mul, initial=dtype.itemsize))
        if stop - start != sizes[-1] or max(sizes) >= _TOO_LARGE:
            raise CheckpointError(f"{where}: {brief(name)} has {stop - start} bytes")
        if start != end:
            raise CheckpointError(f"{where}: {brief(name)} begins at byte {start}, and what is before it ends at {end}")
        entries[name], end = (dtype, shape, start), stop
    return entries, end


def _are_sizes(value: Any) -> bool:
    """Whether a header value is a list of non-negative integers."""
    return isinstance(value, list) and all(type(count) is int and 0 <= count < _TOO_LARGE for count in value)


def _size_at_least(path: str, size: int) -> bool:
    """Whether a file has at least `size` bytes. Of a remote file, reads the last of them."""
    if not storage.is_remote(path):
        return os.path.isfile(path) and os.path.getsize(path) >= size
    try:
        return size == 0 or len(storage.read_file(path, slice(size - 1, size))) == 1
    except CheckpointError as error:
        if "OUT_OF_RANGE" in str(error):
            return False
        raise


def write_directory(
    path: Path,
    arrays: dict[str, LazyArray],
    *,
    max_shard_bytes: int = 5_000_000_000,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes safetensors files of at most `max_shard_bytes`; a larger array gets a file of its own.

    Keeps one block of one array in memory. Calls `progress` with the size of each block written.
    """
    shards: list[dict[str, LazyArray]] = [{}]
    for name, array in arrays.items():
        if shards[-1] and sum(other.nbytes for other in shards[-1].values()) + array.nbytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = array
    if len(shards) == 1:
        _write_file(path / "model.safetensors", shards[0], progress)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(path / file, shard, progress)
        weight_map |= dict.fromkeys(shard, file)
    index: dict[str, Any] = {
        "metadata": {"total_size": sum(array.nbytes for array in arrays.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (path / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_file(path: Path, arrays: dict[str, LazyArray], progress: Callable[[int], None]) -> None:
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires this
    offset = 0
    for name, array in arrays.items():
        if array.dtype not in codes:
            raise CheckpointError(f"{path}: {name} is {array.dtype}, which safetensors files here do not hold")
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": codes[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for array in arrays.values():
            for box in lazy.read_blocks(array, slices.whole(array.shape), axis=0):
                data = slices.contiguous(array.read(box)).view(np.uint8)
                file.write(data.data)
                progress(data.nbytes)
