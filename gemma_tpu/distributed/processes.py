"""Several processes, one model: process 0 has the requests, and every process makes the calls that they lead to.

`jax.distributed` makes one mesh of all hosts' devices, whose programs every process has to run in the same order.
Process 0 therefore sends each call on a device (gemma_tpu.engine.device), with its arguments, to the others before it
makes the call itself; the others do nothing but follow. When one is lost all end: none can go on alone.
"""

from __future__ import annotations

import atexit
import itertools
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # the key-value store of jax.distributed has no public name
from jax.sharding import Mesh

from gemma_tpu.deployment import Deployment
from gemma_tpu.distributed import rendezvous
from gemma_tpu.distributed.fingerprint import common_digests, differences, software
from gemma_tpu.distributed.follower import Follower
from gemma_tpu.distributed.group import Group
from gemma_tpu.distributed.place import Place, locate, parse_address
from gemma_tpu.distributed.shared_device import LeadingDevice, OnFailure
from gemma_tpu.engine.device import Device
from gemma_tpu.environment import quiet_libtpu
from gemma_tpu.model import Params

_PORT = "gemma_tpu/port"  # in the key-value store: where process 0 listens, if JAX has the coordinator's port already
_JAX_STARTS = 60  # seconds for JAX to connect processes that are all there
_JAX_ENDS = 30  # seconds for JAX to let them go
_NEVER = 1_000_000  # seconds: JAX's heartbeat kills without a word, so it must not come before our own

_SHOWN = 3  # differences that an error names
_JOINING = -1  # what watches the group until JAX has started

_called = False
_group: Group | None = None
_keys = itertools.count()  # by which processes know what they hold in common


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300,
) -> None:
    """Joins the processes of several hosts. To be called before anything that uses devices.

    In process 0 it returns, and all is then as with a single process, on a mesh of all processes' devices. In the
    others it does not: they load what process 0 loads and run what it runs until it ends, and then exit with code 0. A
    script that is started on every host thus goes on in one place. A path must name the same checkpoint on every host.

    Args:
      coordinator_address: host:port of process 0. Found out by itself on a TPU, like the two below.
      num_processes: how many there are.
      process_id: which one this is.
      timeout: seconds for all processes to come.

    ValueError for an argument that cannot be right. RuntimeError, in every process that has come, if not all come or
    they do not go together: two with one id, different numbers of processes, other versions or settings of XLA.

    When a process is lost later, or has given no sign of life for 15 s, requests in process 0 raise RuntimeError, and
    no process exits with code 0.
    """
    global _called, _group
    if _called:
        raise RuntimeError("gemma_tpu.initialize was called before")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"timeout must be a number of seconds, got {timeout!r}")
    quiet_libtpu()
    if jax.distributed.is_initialized():
        place = _place_beside_jax()
    else:
        place = locate(coordinator_address, num_processes, process_id)
    peers, bind = rendezvous.join(place, software(), timeout)
    _called = True
    if place.process > 0:
        follower = Follower(peers[0], place.process)
        try:
            _start_jax(place, bind)
        except Exception as error:
            follower.give_up(error)
        follower.run()
    group = Group(peers)
    # From here on the loss of a process is noticed. JAX would wait for it, and then kill this one.
    group.watch(_JOINING, _give_up)
    atexit.register(group.end)
    try:
        _start_jax(place, bind)
    except Exception as error:
        group.forget(_JOINING)
        group.fail(f"JAX did not start in process 0: {error}", raised=True)
        raise
    group.forget(_JOINING)
    if peers:
        _group = group


def _place_beside_jax() -> Place:
    """Where to meet if the script has called `jax.distributed.initialize`: at a port that process 0 chooses."""
    host, _ = parse_address("coordinator", global_state.coordinator_address)
    store: Any = global_state.client
    if global_state.process_id == 0:
        with socket.create_server(("", 0)) as listener:
            port = listener.getsockname()[1]
        store.key_value_set(_PORT, str(port))
    else:
        port = int(store.blocking_key_value_get(_PORT, _JAX_STARTS * 1000))
    return Place(host, port, global_state.num_processes, global_state.process_id)


def _start_jax(place: Place, bind: str | None) -> None:
    """And finds its devices, for which every process waits."""
    if not jax.distributed.is_initialized():
        # It would take SIGTERM for itself, and a server could not be stopped by it any more.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            place.address,
            place.processes,
            place.process,
            initialization_timeout=_JAX_STARTS,
            heartbeat_timeout_seconds=_NEVER,
            shutdown_timeout_seconds=_JAX_ENDS,
            coordinator_bind_address=bind,
        )
    if jax.process_count() != place.processes:
        found = f"JAX has devices of {jax.process_count()} processes on {jax.default_backend()}"
        raise RuntimeError(f"{found}, and {place.processes} have come: their devices must be of one kind")


def _give_up(error: BaseException) -> NoReturn:
    print(f"gemma_tpu: process 0 gives up: {error}", file=sys.stderr, flush=True)
    os._exit(1)


class _Shared(dict[str, jax.Array]):
    """Parameters that all processes hold."""

    key: int


def require_same(
    here: Callable[[], Mapping[str, str]], mesh: Mesh, function: Callable[..., Mapping[str, str]], *args: Any
) -> None:
    """RuntimeError, and the end of all processes, if digests of one thing differ between the processes of a mesh.

    This process calls `here`, the others `function(*args)`. Errors of all are raised here.
    """
    if _group is None or _is_local(mesh):
        return
    with _group.together("compare", next(_keys), function, args):
        found, error = _digests_of_all(_group, here)
    _raise_any(found, error)
    _end_if_different(_group, found)


def everywhere(here: Callable[[], Params], mesh: Mesh, function: Callable[..., Params], *args: Any) -> Params:
    """Parameters on a mesh, made by every process that has a part in it.

    This process calls `here`, the others `function(*args)`, which has to do the same. Errors of all are raised here.
    RuntimeError, and the end of all processes, if parts that several of them hold differ.
    """
    if _group is None or _is_local(mesh):
        return here()
    made = _Shared()
    made.key = next(_keys)

    def make() -> Mapping[str, str]:
        made.update(here())
        return common_digests(made)

    with _group.together("make", made.key, function, args):
        found, error = _digests_of_all(_group, make)
    try:
        _raise_any(found, error)
    except Exception:
        with _group.together("drop", made.key):
            made.clear()
        raise
    _end_if_different(_group, found)
    return made


_Answers = dict[str, dict[str, Any]]  # by process: "digests", or an "error"


def _digests_of_all(group: Group, here: Callable[[], Mapping[str, str]]) -> tuple[_Answers, Exception | None]:
    """Within `together`; with the error of this process, if there is one."""
    try:
        own, failed = {"digests": here()}, None
    except Exception as error:
        own, failed = {}, error
    return {"process 0": own, **group.answers()}, failed


def _raise_any(found: _Answers, own: Exception | None) -> None:
    if own is not None:
        raise own
    if errors := [f"{who}: {answer['error']}" for who, answer in found.items() if "error" in answer]:
        raise RuntimeError("; ".join(errors))


def _end_if_different(group: Group, found: _Answers) -> None:
    different = differences({who: answer["digests"] for who, answer in found.items()})
    if not different:
        return
    shown = ", ".join(f"{name} of {two} is not that of {one}" for name, (one, _), (two, _) in different[:_SHOWN])
    more = f", nor are {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
    why = f"the weights are not the same on all hosts: {shown}{more}: give every host the same files"
    group.fail(why, raised=True)
    raise RuntimeError(why)


def open_device(params: Params, on_failure: OnFailure, deployment: Deployment, **options: Any) -> Device:
    """A device for an engine; shared with the other processes if the mesh has devices of theirs.

    `on_failure` is called, from another thread, when a process has been lost and calls may never end.
    """
    mesh = deployment.mesh
    if _is_local(mesh):
        return Device(params, deployment, **options)
    if _group is None:
        raise RuntimeError("a mesh of several processes: call gemma_tpu.initialize() in each of them first")
    if not isinstance(params, _Shared):
        raise ValueError("parameters on a mesh of several processes must be made by all of them: use load()")
    if len({device.process_index for device in mesh.devices.flat}) != jax.process_count():
        raise ValueError("a mesh needs devices of every process, or of process 0 alone")
    return LeadingDevice(_group, params.key, params, on_failure, deployment=deployment, **options)


def _is_local(mesh: Mesh) -> bool:
    return all(device.process_index == jax.process_index() for device in mesh.devices.flat)
