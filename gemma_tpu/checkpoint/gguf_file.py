"""Reads GGUF files: metadata and tensors, which are dequantised box by box (ggml-org/ggml, docs/gguf.md).

The header is read here and not by `gguf.GGUFReader`, which takes 20 seconds and 0.8 GB for the 262,144 tokens of
Gemma's vocabulary and may read a damaged file without end. Block types and their dequantisation are those of `gguf`.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from gemma_tpu.checkpoint import storage, unsupported_formats
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.hf import SafetensorsArray
from gemma_tpu.checkpoint.lazy import FLOAT32, Leaf
from gemma_tpu.checkpoint.slices import Box, relative
from gemma_tpu.checks import brief, one_line

MAGIC = b"GGUF"
SUFFIX = ".gguf"
_VERSIONS = (2, 3)
_MAX_AXES = 4  # ggml.h, GGML_MAX_DIMS
_DEFAULT_ALIGNMENT = 32
# NumPy dtypes of metadata values by type (enum gguf_metadata_value_type); strings and arrays are 8 and 9.
_SCALARS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}
_STRING, _ARRAY = 8, 9


class GgufArray(Leaf):
    """A tensor in a GGUF file, float32. Reading a box dequantises the blocks that the box overlaps.

    `type`: the name of the block type, such as "Q4_0". `packed`: the stored blocks as bytes, [..., bytes of a row];
    a row is `block_bytes` for each `block_size` elements.
    """

    def __init__(self, file: str, name: str, type_number: int, shape: tuple[int, ...], offset: int):
        gguf = library(file)
        try:
            block_type = gguf.GGMLQuantizationType(type_number)
            self.block_size, self.block_bytes = gguf.GGML_QUANT_SIZES[block_type]
            self._dequantize = lambda packed: gguf.quants.dequantize(packed, block_type)
            self._dequantize(np.zeros((1, self.block_bytes), np.uint8))
        except (ValueError, KeyError, NotImplementedError):
            known = [found.name for found in gguf.GGMLQuantizationType if found == type_number]
            raise CheckpointError(
                f"{file}: {brief(name)} is of type {known[0] if known else type_number}, which gguf cannot dequantise: "
                "take a file of another quantisation, such as Q4_0, Q8_0 or Q4_K_M"
            ) from None
        if shape[-1] % self.block_size:
            raise CheckpointError(
                f"{file}: damaged: {brief(name)} has rows of {shape[-1]}, no multiple of the {self.block_size} "
                f"elements in a block of {block_type.name}"
            )
        self.file, self.name, self.type, self.shape, self.dtype = file, name, block_type.name, shape, FLOAT32
        row_bytes = shape[-1] // self.block_size * self.block_bytes
        self.packed = SafetensorsArray(file, name, np.dtype(np.uint8), (*shape[:-1], row_bytes), offset)

    def _blocks(self, box: Box) -> Box:
        """The box of `packed` with the blocks that `box` overlaps."""
        first, last = box[-1].start // self.block_size, -(-box[-1].stop // self.block_size)
        return (*box[:-1], slice(first * self.block_bytes, last * self.block_bytes))

    def read(self, box: Box) -> np.ndarray:
        packed = np.ascontiguousarray(self.packed.read(self._blocks(box)))
        with np.errstate(over="ignore", invalid="ignore"):  # not finite: `weight_checks` names the tensor
            values = self._dequantize(packed)
        start = box[-1].start // self.block_size * self.block_size
        return values[..., relative((box[-1],), (slice(start, start + values.shape[-1]),))[0]]

    def cost(self, box: Box) -> int:
        return self.packed.cost(self._blocks(box))


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """`metadata` by key; an array is a list of strings or a NumPy array."""

    path: str
    metadata: Mapping[str, Any]
    arrays: Mapping[str, GgufArray]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata in Python's own types."""
        value = self.metadata.get(key, default)
        return value.tolist() if isinstance(value, np.ndarray) else value


def library(path: str) -> Any:
    """The gguf package. Raises `CheckpointError` naming the file at `path` if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise CheckpointError(f"{path}: reading a GGUF file needs pip install 'gemma_tpu[gguf]'") from None
    return gguf


def gguf_names_in(entries: set[str]) -> list[str]:
    """The GGUF files among the entries of a directory."""
    return sorted(name for name in entries if name.lower().endswith(SUFFIX) and not name.startswith("."))


def is_gguf(path: str) -> bool:
    """Whether a file begins as a GGUF file, whatever its name."""
    return storage.read_head(path).startswith(MAGIC)


def read_file(path: str) -> GgufFile:
    """Reads the header of a local GGUF file. Raises `CheckpointError` if it is damaged or of another format."""
    library(path)
    if not (head := storage.read_head(path)).startswith(MAGIC):
        what = unsupported_formats.identify(head, path)
        raise CheckpointError(f"{path}: is {what or 'no GGUF file (it does not begin with GGUF)'}")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Header(data, path))
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged: {one_line(error)}") from error


class _Header:
    """Reads values one after another. Counts are checked against what is left of the file before they are followed."""

    def __init__(self, data: mmap.mmap, path: str):
        self.data, self.path, self.position = data, path, 0

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged: {what}")

    def take(self, size: int, of: str) -> int:
        """The position of the next `size` bytes, which are skipped."""
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise CheckpointError(f"{self.path}: truncated: the file ends inside its header, in {of}")
        return start

    def number(self, code: str, of: str) -> Any:
        size = struct.calcsize(f"<{code}")
        return struct.unpack_from(f"<{code}", self.data, self.take(size, of))[0]

    def string(self, of: str) -> str:
        size = self.number("Q", of)
        start = self.take(size, of)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{of} is no text: {error}") from error

    def value(self, kind: int, of: str) -> Any:
        if kind == _STRING:
            return self.string(of)
        if kind == _ARRAY:
            item, count = self.number("I", of), self.number("Q", of)
            if item == _STRING:
                self.require_room(count, 8, of)
                return self._strings(count, of)
            if item in _SCALARS:
                return self._numbers(item, count, of)
            raise self.error(f"{of} is an array of type {item}")
        if kind in _SCALARS:
            return self._numbers(kind, 1, of)[0].item()
        raise self.error(f"{of} is of type {kind}, which GGUF does not have")

    def _strings(self, count: int, of: str) -> list[str]:
        """Four times as fast as `string` for each of a vocabulary."""
        unpack, data, position, size = struct.Struct("<Q").unpack_from, self.data, self.position, len(self.data)
        found = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(data, position)[0]
                if position > size:
                    break
                found.append(data[start:position].decode())
        except struct.error:  # at the end of the file
            position = size + 1
        except UnicodeDecodeError as error:
            raise self.error(f"{of} is no list of texts: {error}") from error
        self.take(position - self.position, of)
        return found

    def _numbers(self, kind: int, count: int, of: str) -> np.ndarray:
        dtype = np.dtype(_SCALARS[kind])
        start = self.take(count * dtype.itemsize, of)
        return np.frombuffer(self.data[start : self.position], dtype)

    def require_room(self, count: int, size: int, of: str) -> None:
        """Raises if the file has no room for `count` entries of at least `size` bytes."""
        if count * size > len(self.data) - self.position:
            raise CheckpointError(f"{self.path}: truncated, or damaged: {of} has {count} entries, the file ends before")


def _read(header: _Header) -> GgufFile:
    path = header.path
    header.position = len(MAGIC)
    version = header.number("I", "the version")
    if version not in _VERSIONS:
        if not version & 0xFFFF:
            raise CheckpointError(
                f"{path}: a big-endian GGUF file; `gguf-convert-endian {path} little` of gguf turns it"
            )
        raise CheckpointError(f"{path}: GGUF version {version}; known are {_VERSIONS[0]} and {_VERSIONS[1]}")
    tensors, entries = header.number("Q", "the count of tensors"), header.number("Q", "the count of entries")
    header.require_room(entries, 8 + 4, "the metadata")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = header.string("a key")
        if key in metadata:
            raise header.error(f"{brief(key)} is there twice")
        metadata[key] = header.value(header.number("I", brief(key)), brief(key))
    header.require_room(tensors, 8 + 4 + 4 + 8, "the list of tensors")
    listed: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(tensors):
        name = header.string("a tensor's name")
        if name in listed:
            raise header.error(f"{brief(name)} is there twice")
        axes = header.number("I", brief(name))
        if not 1 <= axes <= _MAX_AXES:
            raise header.error(f"{brief(name)} has {axes} axes")
        shape = tuple(header.number("Q", brief(name)) for _ in range(axes))[::-1]
        if 0 in shape:
            raise header.error(f"{brief(name)} has the shape {list(shape)}")
        listed[name] = header.number("I", brief(name)), shape, header.number("Q", brief(name))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & alignment - 1:
        raise header.error(f"general.alignment is {brief(alignment)}, no power of two")
    start = -(-header.position // alignment) * alignment
    arrays = {name: GgufArray(path, name, *found[:2], start + found[2]) for name, found in listed.items()}
    for name, array in arrays.items():
        if array.packed.offset + math.prod(array.packed.shape) > len(header.data):
            raise CheckpointError(f"{path}: truncated: the file ends inside {name}, or before it")
    return GgufFile(path, metadata, arrays)
