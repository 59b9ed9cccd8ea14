"""The device of an engine (gemma_tpu.engine.device) where several processes share it: each call is made by all."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np

from gemma_tpu.distributed.group import Group
from gemma_tpu.engine.device import Device
from gemma_tpu.model import Params

_Method = TypeVar("_Method", bound=Callable[..., Any])
OnFailure = Callable[[BaseException], None]


class SharedDevice(Device):
    """What each process has of a device that they share."""

    _whole_logits = True


def _by_all(method: _Method) -> _Method:
    @functools.wraps(method)
    def call(self: LeadingDevice, *args: Any, **kwargs: Any) -> Any:
        with self._group.together("call", self._key, method.__name__, args, kwargs):
            return method(self, *args, **kwargs)

    return cast(_Method, call)


class LeadingDevice(SharedDevice):
    """Process 0's. What is for a caller lies on one device of this process.

    `on_failure` is called, from another thread, when a process has been lost and calls may never end.
    """

    def __init__(self, group: Group, key: int, params: Params, on_failure: OnFailure, **options: Any) -> None:
        self._group, self._key, self._program_failed = group, key, False
        with group.together("open", key, options):
            super().__init__(params, **options)
        group.watch(key, on_failure)

    def reset(self) -> None:
        if self._program_failed:  # it may be running elsewhere, waiting for this process
            self._group.fail("a program failed, and several processes cannot start afresh: restart them all")
        self._reset()

    def explained(self, error: Exception) -> Exception:
        if not isinstance(error, jax.errors.JaxRuntimeError):
            return super().explained(error)
        self._program_failed = True
        return self._group.loss() or super().explained(error)

    def logits(
        self, tokens: np.ndarray, lengths: np.ndarray, kept: np.ndarray, images: Sequence[bytes]
    ) -> tuple[jax.Array, jax.Array]:
        logits, good = self._logits(tokens, lengths, kept, images)
        return logits.addressable_data(0), good.addressable_data(0)

    def compile_logits(self, rows: int, tokens: int, kept: int, images: int) -> None:
        with self._group.together("call", self._key, "compile_logits", (rows, tokens, kept, images), {}):
            pass  # the others begin now; XLA for GPUs shares what it tries out between the processes that compile
        super().compile_logits(rows, tokens, kept, images)

    def soft_tokens(self, digests: Sequence[bytes]) -> list[jax.Array]:
        return [array.addressable_data(0) for array in super().soft_tokens(digests)]

    def close(self) -> None:
        self._group.forget(self._key)
        with contextlib.suppress(RuntimeError), self._group.together("drop", self._key):
            super().close()

    _reset = _by_all(SharedDevice.reset)
    _logits = _by_all(SharedDevice.logits)
    encode = _by_all(SharedDevice.encode)
    forget = _by_all(SharedDevice.forget)
    prefill = _by_all(SharedDevice.prefill)
    admit = _by_all(SharedDevice.admit)
    release = _by_all(SharedDevice.release)
    clear = _by_all(SharedDevice.clear)
    decode = _by_all(SharedDevice.decode)
