"""`jax.jit` for a program with loops and branches, compiled as its devices want it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

# By default XLA for GPUs has the host decide at each turn of a loop and at each branch what comes next, for which it
# waits until the device gets there: so nothing is queued while the device works. As parts of a CUDA graph they are
# decided on the device. The others are what XLA has in graphs by default; where the driver knows no conditional nodes,
# XLA leaves these out.
_IN_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
_OPTIONS: dict[str, dict[str, bool | str]] = {"gpu": {"xla_gpu_enable_command_buffer": _IN_GRAPHS}}


class DeviceProgram:
    """A jitted function that takes a `deployment`: the platform of its mesh says how it is compiled."""

    def __init__(self, function: Callable[..., Any], static: Sequence[str], donated: Sequence[str]) -> None:
        functools.update_wrapper(self, function)
        jit = functools.partial(jax.jit, function, static_argnames=static, donate_argnames=donated)
        self._usual, self._on = jit(), {name: jit(compiler_options=options) for name, options in _OPTIONS.items()}

    def __call__(self, *args: Any, deployment: Any, **others: Any) -> Any:
        return self._for(deployment)(*args, deployment=deployment, **others)

    def lower(self, *args: Any, deployment: Any, **others: Any) -> Any:
        """As of a jitted function."""
        return self._for(deployment).lower(*args, deployment=deployment, **others)

    def _for(self, deployment: Any) -> Any:
        return self._on.get(deployment.platform, self._usual)


def device_program(*, static: Sequence[str], donated: Sequence[str]) -> Callable[[Callable[..., Any]], DeviceProgram]:
    """A decorator: names of the arguments that are static, and of those whose buffers are given up."""
    return functools.partial(DeviceProgram, static=static, donated=donated)
