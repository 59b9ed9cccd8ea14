"""Host memory for parameters on their way to the devices: bounded, aligned, and used again where it can be."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import numpy as np

# XLA's CPU backend adopts a host buffer without a copy if it is aligned to this many bytes.
ALIGNMENT = 64


class MemoryBudget:
    """Bounds the host memory in use; a reservation larger than the budget gets all of it, alone."""

    def __init__(self, size: int):
        self._size, self._used, self._changed = size, 0, threading.Condition()

    @contextlib.contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._size)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


class Buffers:
    """Aligned buffers that are lent and come back, since the first write to new memory costs more than the read.

    Keeps at most `size` bytes that are not lent, and none if `size` is 0.
    """

    def __init__(self, size: int):
        self._size, self._free, self._lock = size, list[np.ndarray](), threading.Lock()

    @contextlib.contextmanager
    def lend(self, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
        """An array with any content, of which nothing may be left to read once the context ends."""
        count = math.prod(shape) * dtype.itemsize
        with self._lock:
            fitting = [index for index, buffer in enumerate(self._free) if buffer.nbytes >= count]
            smallest = min(fitting, key=lambda index: self._free[index].nbytes, default=None)
            buffer = None if smallest is None else self._free.pop(smallest)
        if buffer is None:
            buffer = _aligned(count)
        try:
            yield buffer[:count].view(dtype).reshape(shape)
        finally:
            with self._lock:
                if sum(other.nbytes for other in self._free) + buffer.nbytes <= self._size:
                    self._free.append(buffer)


def _aligned(size: int) -> np.ndarray:
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size]
