"""`jax.jit` for a program with loops and branches, compiled as its devices want it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# By default XLA for GPUs has the host decide at each turn of a loop and at each branch what comes next, for which it
# waits until the device gets there: so nothing is queued while the device works. As parts of a CUDA graph they are
# decided on the device. The others are what XLA has in graphs by default; where the driver knows no conditional nodes,
# XLA leaves these out.
_IN_GRAPHS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
}
# Without any, kernels are launched one by one, which takes the host less time than to change the addresses in a graph.
_NO_GRAPHS = {"xla_gpu_graph_min_graph_size": 1_000_000}
# By default XLA for CPUs begins early what waits for nothing, such as converting parts of all layers' weights, and
# keeps it: 3.6 GiB of temporaries instead of 0.2 for a prompt to 4B in bfloat16. Weights in float32 are not converted.
_IN_ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class DeviceProgram:
    """A jitted function that takes a `deployment`: the platform of its mesh says how it is compiled.

    `loops`: whether it has loops or branches with this deployment.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        static: Sequence[str],
        donated: Sequence[str],
        loops: Callable[[Any], bool] = lambda _: True,
    ) -> None:
        functools.update_wrapper(self, function)
        jit = functools.partial(jax.jit, function, static_argnames=static, donate_argnames=donated)
        self._usual, self._in_order, self._in_graphs, self._no_graphs = (
            jit(compiler_options=options) for options in (None, _IN_ORDER, _IN_GRAPHS, _NO_GRAPHS)
        )
        self._loops = loops

    def __call__(self, *args: Any, deployment: Any, **others: Any) -> Any:
        return self._for(deployment)(*args, deployment=deployment, **others)

    def lower(self, *args: Any, deployment: Any, **others: Any) -> Any:
        """As of a jitted function."""
        return self._for(deployment).lower(*args, deployment=deployment, **others)

    def _for(self, deployment: Any) -> Any:
        if deployment.platform == "cpu" and (deployment.quantization or deployment.dtype != jnp.float32):
            return self._in_order
        if deployment.platform != "gpu":
            return self._usual
        return self._in_graphs if self._loops(deployment) else self._no_graphs


def device_program(
    *, static: Sequence[str], donated: Sequence[str], **options: Any
) -> Callable[[Callable[..., Any]], DeviceProgram]:
    """A decorator: names of the arguments that are static, and of those whose buffers are given up. `options` as of
    `DeviceProgram`.
    """
    return functools.partial(DeviceProgram, static=static, donated=donated, **options)
