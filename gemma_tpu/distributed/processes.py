"""Several processes, one model: process 0 has the requests and plans, and every process runs the same steps.

`jax.distributed` makes one mesh of all hosts' devices, whose programs every process has to run in the same order.
Process 0 therefore sends each step (gemma_tpu.engine.step) to the others before it runs it; the others do nothing but
follow. When one is lost all end: none can go on alone.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax._src.distributed import global_state  # the key-value store of jax.distributed has no public name
from jax.sharding import Mesh

from gemma_tpu.deployment import Deployment
from gemma_tpu.distributed import rendezvous
from gemma_tpu.distributed.cluster import Cluster, find_cluster, parse_address
from gemma_tpu.distributed.fingerprint import common_digests, differences, software
from gemma_tpu.distributed.group import Follower, Group, Held, OnFailure, give_up
from gemma_tpu.distributed.shared_runner import LeadingRunner
from gemma_tpu.engine.errors import ProcessesLostError
from gemma_tpu.engine.runner import Runner
from gemma_tpu.environment import quiet_libtpu
from gemma_tpu.model import Params
from gemma_tpu.model.linear import Weight

_PORT = "gemma_tpu/port"  # in the key-value store: where process 0 listens, if JAX has the coordinator's port already
_JAX_STARTS = 60  # seconds for JAX to connect processes that are all there
_JAX_ENDS = 30  # seconds for JAX to let them go
_NEVER = 1_000_000  # seconds: JAX's heartbeat kills without a word, so it must not come before our own

_SHOWN = 3  # differences that an error names

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
        cluster = _cluster_of_jax()
    else:
        cluster = find_cluster(coordinator_address, num_processes, process_id)
    peers, bind = rendezvous.join(cluster, software(), timeout)
    _called = True
    if cluster.process_id > 0:
        follower = Follower(peers[0], cluster.process_id)
        try:
            _start_jax(cluster, bind)
        except Exception as error:
            follower.give_up(error)
        follower.run()
    group = Group(peers)
    # From here on the loss of a process is noticed. JAX would wait for it, and then kill this one.
    lost = functools.partial(give_up, 0)
    group.watch(lost)
    atexit.register(group.end)
    try:
        _start_jax(cluster, bind)
    except Exception as error:
        group.forget(lost)
        group.fail(f"JAX did not start in process 0: {error}")
        raise
    group.forget(lost)
    if peers:
        _group = group


def _cluster_of_jax() -> Cluster:
    """Where to meet if the script has called `jax.distributed.initialize`: at a port that process 0 chooses."""
    host, _ = parse_address("coordinator", global_state.coordinator_address)
    store: Any = global_state.client
    if global_state.process_id == 0:
        with socket.create_server(("", 0)) as listener:
            port = listener.getsockname()[1]
        store.key_value_set(_PORT, str(port))
    else:
        port = int(store.blocking_key_value_get(_PORT, _JAX_STARTS * 1000))
    return Cluster(host, port, global_state.num_processes, global_state.process_id)


def _start_jax(cluster: Cluster, bind: str | None) -> None:
    """And finds its devices, for which every process waits."""
    if not jax.distributed.is_initialized():
        # It would take SIGTERM for itself, and a server could not be stopped by it any more.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            cluster.address,
            cluster.num_processes,
            cluster.process_id,
            initialization_timeout=_JAX_STARTS,
            heartbeat_timeout_seconds=_NEVER,
            shutdown_timeout_seconds=_JAX_ENDS,
            coordinator_bind_address=bind,
        )
    if jax.process_count() != cluster.num_processes:
        found = f"JAX has devices of {jax.process_count()} processes on {jax.default_backend()}"
        raise RuntimeError(f"{found}, and {cluster.num_processes} have come: their devices must be of one kind")


class _Shared(dict[str, Weight]):
    """Parameters that all processes hold."""

    key: int


def require_same(
    here: Callable[[], Mapping[str, str]], mesh: Mesh, function: Callable[..., Mapping[str, str]], *args: Any
) -> None:
    """RuntimeError, and the end of all processes, if digests of one thing differ between the processes of a mesh.

    This process calls `here`, the others `function(*args)`. Errors of all are raised here.
    """
    if _group is not None and not _is_local(mesh):
        _compare(_group, here, _digests, function, args)


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

    try:
        _compare(_group, make, _make, made.key, function, args)
    except Exception:
        with contextlib.suppress(ProcessesLostError), _group.together("tell", dict.pop, made.key, None):
            made.clear()
        raise
    return made


# What another process does meanwhile.


def _digests(_: Held, function: Callable[..., Mapping[str, str]], args: Sequence[Any]) -> Mapping[str, str]:
    return function(*args)


def _make(held: Held, key: int, function: Callable[..., Params], args: Sequence[Any]) -> Mapping[str, str]:
    held[key] = made = function(*args)
    return common_digests(made)


def _compare(group: Group, here: Callable[[], Mapping[str, str]], function: Callable[..., Any], *args: Any) -> None:
    """Ends all processes if their digests differ; raises the error of any that has none."""
    with group.together("ask", function, *args):
        try:
            own, failed = {"digests": here()}, None
        except Exception as error:
            own, failed = {}, error
        found = {"process 0": own, **group.answers()}
    if failed is not None:
        raise failed
    if errors := [f"{who}: {answer['error']}" for who, answer in found.items() if "error" in answer]:
        raise RuntimeError("; ".join(errors))
    if different := differences({who: answer["digests"] for who, answer in found.items()}):
        shown = ", ".join(f"{name} of {two} is not that of {one}" for name, (one, _), (two, _) in different[:_SHOWN])
        more = f", nor are {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        why = f"the weights are not the same on all hosts: {shown}{more}: give every host the same files"
        group.fail(why)
        raise RuntimeError(why)


def open_runner(deployment: Deployment, params: Params, on_failure: OnFailure, **options: Any) -> Runner:
    """A runner for an engine; shared with the other processes if the mesh has devices of theirs.

    `on_failure` is called, from another thread, when a process has been lost and calls may never end.
    """
    if _is_local(mesh := deployment.mesh):
        return Runner(deployment, params, **options)
    if _group is None:
        raise RuntimeError("a mesh of several processes: call gemma_tpu.initialize() in each of them first")
    if not isinstance(params, _Shared):
        raise ValueError("parameters on a mesh of several processes must be made by all of them: use load()")
    if len({device.process_index for device in mesh.devices.flat}) != jax.process_count():
        raise ValueError("a mesh needs devices of every process, or of process 0 alone")
    return LeadingRunner(_group, params.key, deployment, params, on_failure, **options)


def _is_local(mesh: Mesh) -> bool:
    return all(device.process_index == jax.process_index() for device in mesh.devices.flat)
