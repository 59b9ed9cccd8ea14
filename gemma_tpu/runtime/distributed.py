"""Several processes, one model: process 0 has the requests, and every process makes the calls that they lead to.

`jax.distributed` makes one mesh of all hosts' devices, whose programs every process has to run in the same order.
Process 0 therefore sends each call on a device (gemma_tpu.runtime.device), with its arguments, to the others before it
makes the call itself; the others do nothing but follow. When one is lost all end: none can go on alone.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh

from gemma_tpu.environment import quiet_libtpu
from gemma_tpu.model import Params
from gemma_tpu.runtime.channel import VERDICT, Group, Peer, connect, gather
from gemma_tpu.runtime.device import Device

_Method = TypeVar("_Method", bound=Callable[..., Any])
_OnFailure = Callable[[BaseException], None]

_group: Group | None = None
_keys = itertools.count()  # by which processes know what they hold in common


def initialize(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of several hosts. To be called before anything that uses devices.

    In process 0 it returns, and all is then as with a single process, on a mesh of all processes' devices. In the
    others it does not: they load what process 0 loads and run what it runs until it ends, and then exit with code 0. A
    script that is started on every host thus goes on in one place. A path must name the same checkpoint on every host.

    Args:
      coordinator_address: host:port of process 0. Found out by itself on a TPU, like the two below.
      num_processes: how many there are.
      process_id: which one this is.

    When a process is lost, requests in process 0 raise RuntimeError, and no process exits with code 0.
    """
    global _group
    if _group is not None:
        raise RuntimeError("gemma_tpu.initialize was called before")
    quiet_libtpu()
    if not jax.distributed.is_initialized():
        # It would take SIGTERM for itself, and a server could not be stopped by it any more.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(coordinator_address, num_processes, process_id)
        except ValueError as error:
            wanted = "coordinator, number of processes and process id are to be given where no TPU slice tells them"
            raise ValueError(f"{wanted}: {error}") from error
    if jax.process_count() == 1:
        return
    if jax.process_index() > 0:
        _follow(connect())
    _group = Group(gather())
    atexit.register(_group.end)


class _Shared(dict[str, jax.Array]):
    """Parameters that all processes hold."""

    key: int


def everywhere(here: Callable[[], Params], mesh: Mesh, function: Callable[..., Params], *args: Any) -> Params:
    """Parameters on a mesh, made by every process that has a part in it.

    This process calls `here`, the others `function(*args)`, which has to do the same. Errors of all are raised here.
    """
    if _group is None or _is_local(mesh):
        return here()
    key = next(_keys)
    with _group.together("make", key, function, args):
        made, error = _Shared(), None
        try:
            made.update(here())
        except Exception as failed:
            error = failed
        errors = _group.replies()
    made.key = key
    if error is None and not errors:
        return made
    with _group.together("drop", key):
        made.clear()
    if error is not None:
        raise error
    raise RuntimeError("; ".join(errors))


def open_device(params: Params, on_failure: _OnFailure, *, mesh: Mesh, **options: Any) -> Device:
    """A device for an engine; shared with the other processes if the mesh has devices of theirs.

    `on_failure` is called, from another thread, when a process has been lost and calls may never end.
    """
    if _is_local(mesh):
        return Device(params, mesh=mesh, **options)
    if _group is None:
        raise RuntimeError("a mesh of several processes: call gemma_tpu.initialize() in each of them first")
    if not isinstance(params, _Shared):
        raise ValueError("parameters on a mesh of several processes must be made by all of them: use load()")
    if len({device.process_index for device in mesh.devices.flat}) != jax.process_count():
        raise ValueError("a mesh needs devices of every process, or of process 0 alone")
    return LeadingDevice(_group, params, on_failure, mesh=mesh, **options)


def _is_local(mesh: Mesh) -> bool:
    return all(device.process_index == jax.process_index() for device in mesh.devices.flat)


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
    """Process 0's: each call is made by all processes. What is for a caller lies on one device of this process."""

    def __init__(self, group: Group, params: _Shared, on_failure: _OnFailure, **options: Any) -> None:
        self._group, self._key, self._used = group, params.key, False
        with group.together("open", self._key, options):
            super().__init__(params, **options)
        group.watch(self._key, on_failure)

    def reset(self) -> None:
        if self._used:  # a program that failed here may be running elsewhere, waiting for this process
            self._group.fail("a program failed, and several processes cannot start afresh: restart them all")
        self._used = True
        self._reset()

    def explained(self, error: Exception) -> Exception:
        loss = self._group.loss() if isinstance(error, jax.errors.JaxRuntimeError) else None
        return loss or super().explained(error)

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


def _follow(leader: Peer) -> NoReturn:
    """Does what process 0 says until it ends. A process that cannot go on exits at once: programs may be stuck."""
    for name in (signal.SIGINT, signal.SIGTERM):  # process 0's to handle: it may need its followers a while longer
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(name, signal.SIG_IGN)
    messages: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def listen() -> None:
        while True:
            try:
                message = leader.receive()
            except (EOFError, OSError):
                _exit("process 0 has ended or lost another process")
            messages.put(message)
            if message[0] == "end":
                return

    # A thread of its own: the main thread may be waiting for programs of processes that are gone.
    threading.Thread(target=listen, name="gemma-leader", daemon=True).start()
    held: dict[int, Any] = {}  # parameters, then the device made of them, by key
    while True:
        kind, *rest = messages.get()
        if kind == "end":
            for one in held.values():
                if isinstance(one, Device):
                    one.wait()  # process 0 may need this process to finish a program
            sys.exit(0)
        try:
            _obey(kind, rest, held, leader)
        except BaseException as error:
            if isinstance(error, jax.errors.JaxRuntimeError):
                time.sleep(VERDICT)  # if it is because another process is lost, process 0 ends this one meanwhile
            with contextlib.suppress(OSError):
                leader.send(("failed", _one_line(error)))
            _exit(_one_line(error))


def _obey(kind: str, rest: list[Any], held: dict[int, Any], leader: Peer) -> None:
    key, *args = rest
    if kind == "make":
        function, arguments = args
        try:
            held[key] = function(*arguments)
        except Exception as error:  # process 0 may want something else then
            leader.send(("made", _one_line(error)))
        else:
            leader.send(("made", None))
    elif kind == "open":
        held[key] = SharedDevice(held[key], **args[0])
    elif kind == "call":
        name, arguments, keywords = args
        getattr(held[key], name)(*arguments, **keywords)
    else:
        held.pop(key, None)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _exit(why: str) -> NoReturn:
    print(f"gemma_tpu: process {jax.process_index()} gives up: {why}", file=sys.stderr, flush=True)
    os._exit(1)
