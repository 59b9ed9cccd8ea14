"""Connects the processes of several hosts through the coordinator's port, before JAX binds it.

JAX aborts a process that cannot join: its port is in use, two processes share an id, or one is missing. Here each of
these is an error that all processes report, in bounded time. The processes also compare what they must have in common.
The connections to process 0 remain open for messages (gemma_tpu.distributed.channel).

Process 0 sends a greeting line, each process its `_Hello`, and process 0 a verdict once all have joined, each a line of
JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import itertools
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait

from gemma_tpu.distributed.channel import Peer
from gemma_tpu.distributed.cluster import Cluster, parse_address
from gemma_tpu.distributed.fingerprint import differences

_GREETING = b"gemma_tpu 1\n"  # with the version of the protocol
_GREETING_TIMEOUT = 10  # seconds for process 0 to send the greeting
_DNS_TIMEOUT = 60  # seconds for a host name to resolve; a new pod's takes a while
_GRACE = 5  # seconds for a process to introduce itself, and for the others to join and receive an error
_RETRY_INTERVAL = 0.2  # seconds between connection attempts
_MAX_LINE = 1 << 16  # bytes


def join(cluster: Cluster, facts: Mapping[str, str], timeout: float) -> tuple[list[Peer], str | None]:
    """Waits until all processes of `cluster` have joined. RuntimeError if one is missing or they do not match.

    `facts` must be equal in all processes. `timeout`: seconds for all to join.

    Returns the connections (in process 0 to all others by id, elsewhere to process 0) and the address that JAX's
    coordinator service must bind, None for its default.
    """
    hello = _Hello(cluster.num_processes, cluster.process_id, socket.gethostname(), dict(facts))
    if cluster.process_id > 0:
        link, host = _connect(cluster, hello, timeout)
        return [Peer(link, f"process 0 on {host}")], None
    listener, bind = _listen(cluster, hello)
    stopped: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        gathering = pool.submit(_gather, listener, cluster, timeout, stopped)
        try:
            # Process 0 connects too: the address may lead to another process 0.
            _connect(cluster, hello, timeout)[0].close()
        except BaseException as error:  # Ctrl-C too
            stopped.append(f"process 0 on {hello.host} gives up: {error or type(error).__name__}")
            raise
    return [Peer(link, client.name) for link, client in gathering.result() if client.process_id > 0], bind


@dataclasses.dataclass(frozen=True)
class _Hello:
    num_processes: int
    process_id: int
    host: str
    facts: dict[str, str]

    @property
    def name(self) -> str:
        return f"process {self.process_id} on {self.host}"


# In every process.


class _OtherProgram(RuntimeError):
    """Another program listens on the coordinator's port."""


def _connect(cluster: Cluster, hello: _Hello, timeout: float) -> tuple[socket.socket, str]:
    """The connection to process 0 and its host name, once all processes have joined."""
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(_open_connection(cluster, timeout))
        _expect_greeting(link, cluster)
        try:
            link.sendall(json.dumps(dataclasses.asdict(hello)).encode() + b"\n")
            # Process 0 may have started later, and then waits longer.
            link.settimeout(timeout + _GRACE + _GREETING_TIMEOUT)
            verdict = json.loads(_read_line(link))
        except TimeoutError:
            raise RuntimeError(f"process 0 at {cluster.address} does not answer: restart it") from None
        except OSError:
            raise RuntimeError(f"process 0 at {cluster.address} ended before all had joined: see its output") from None
        if verdict["error"] is not None:
            raise RuntimeError(verdict["error"])
        stack.pop_all()
        return link, verdict["host"]


def _open_connection(cluster: Cluster, timeout: float) -> socket.socket:
    """A connection to the coordinator's port, retried until something listens."""
    start, own = time.monotonic(), cluster.process_id == 0
    while True:
        patience = min(timeout, _DNS_TIMEOUT) if own else timeout
        try:
            link = socket.create_connection((cluster.host, cluster.port), min(_GREETING_TIMEOUT, timeout))
            # A local connection to a free port may connect to itself (TCP simultaneous open).
            if link.getsockname() != link.getpeername():
                return link
            link.close()
            reason = os.strerror(errno.ECONNREFUSED)
        except socket.gaierror as error:
            reason, patience = error.strerror, min(timeout, _DNS_TIMEOUT)
        except OSError as error:
            reason = error.strerror or str(error)
        if (waited := time.monotonic() - start) >= patience:
            target = "itself" if own else "process 0"
            remedy = "the coordinator must be an address of this host that the others reach too"
            raise RuntimeError(
                f"process {cluster.process_id} could not reach {target} at {cluster.address} for {waited:.0f} s "
                f"({reason}): {remedy if own else 'start it, or correct the address of the coordinator'}"
            )
        time.sleep(_RETRY_INTERVAL)


def _expect_greeting(link: socket.socket, cluster: Cluster) -> None:
    link.settimeout(_GREETING_TIMEOUT)
    with contextlib.suppress(OSError):  # silent or closed
        if _read_line(link) == _GREETING:
            return
    raise _OtherProgram(
        f"{cluster.address} takes no further process of this version of gemma_tpu: all have joined, or another "
        "program has the port, as process 0 reports"
    )


def _read_line(link: socket.socket) -> bytes:
    """Reads one line and nothing beyond it, which belongs to the channel; cut off if it is very long."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_LINE:
        if not (byte := link.recv(1)):
            raise ConnectionError
        line += byte
    return line


# In process 0.


def _listen(cluster: Cluster, hello: _Hello) -> tuple[socket.socket, str | None]:
    """A listener on the coordinator's port, and the address that JAX's service must bind afterwards."""
    given = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")  # JAX reads it too
    host, port = parse_address("JAX_COORDINATOR_BIND_ADDRESS", given) if given else (cluster.host, cluster.port)
    try:
        if _is_ip_address(host):
            try:
                return _bind(host, port), None if given else cluster.address
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # the address is routed here but not local
                    raise
        # A name may resolve to a loopback address here (127.0.1.1 in /etc/hosts).
        return _bind("", port), None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        if error.errno == errno.EADDRINUSE:
            try:
                _connect(cluster, hello, _GREETING_TIMEOUT)  # another process 0 reports itself
            except _OtherProgram:
                reason = f"{reason} by another program"
        raise RuntimeError(
            f"process 0 cannot listen at the coordinator's port {port}: {reason}: choose another, on all hosts"
        ) from error


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bind(host: str, port: int) -> socket.socket:
    """A listener on all interfaces if `host` is empty."""
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, dualstack_ipv6=both)


def _gather(
    listener: socket.socket, cluster: Cluster, timeout: float, stopped: list[str]
) -> list[tuple[socket.socket, _Hello]]:
    """Accepts connections until all processes have joined or an error occurs, and tells all of them.

    Returns the connections by process id. A reason in `stopped`, from another thread, is an error too.
    """
    clients: dict[socket.socket, _Hello | None] = {}  # None: it has not introduced itself
    joined, wanted, error = [], cluster.num_processes, None
    deadline = time.monotonic() + timeout
    while len(joined) < wanted and (left := deadline - time.monotonic()) > 0 and not stopped:
        ready = wait([listener, *clients], min(left, _RETRY_INTERVAL))
        if listener in ready:
            with contextlib.suppress(OSError):  # closed before it was accepted
                link = listener.accept()[0]
                link.settimeout(_GRACE)
                link.sendall(_GREETING)
                clients[link] = None
        for link in [link for link in clients if link in ready]:
            if clients[link] or not (hello := _read_hello(link)):
                # Another program; or a process that has closed, as it says nothing more, and may reconnect.
                del clients[link]
                link.close()
            else:
                clients[link] = hello
        joined = sorted((hello for hello in clients.values() if hello), key=lambda hello: hello.process_id)
        wanted = max((cluster.num_processes, *(hello.num_processes for hello in joined)))
        if not error and (error := _mismatch(joined)):
            deadline = min(deadline, time.monotonic() + _GRACE)
    if len(joined) < wanted:
        error = error or "".join(stopped) or _missing(cluster, joined, timeout)
    listener.close()  # before the verdict, so that JAX can bind the port
    verdict = json.dumps({"error": error, "host": socket.gethostname()}).encode() + b"\n"
    for link, hello in clients.items():
        if hello:
            with contextlib.suppress(OSError):  # just closed; the channel reports it
                link.sendall(verdict)
        if error or not hello:
            link.close()
    return sorted(((link, hello) for link, hello in clients.items() if hello), key=lambda one: one[1].process_id)


def _read_hello(link: socket.socket) -> _Hello | None:
    """What a process says when it connects, in one piece; None if it is another program or has closed."""
    try:
        return _Hello(**json.loads(_read_line(link)))
    except (OSError, ValueError, TypeError):
        return None


def _missing(cluster: Cluster, joined: Sequence[_Hello], timeout: float) -> str:
    ids = sorted({*range(cluster.num_processes)} - {hello.process_id for hello in joined})
    who = f"process{'es' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"
    return f"{who} did not connect to {cluster.address} within {timeout:g} s: start the command on every host"


def _mismatch(hellos: Sequence[_Hello]) -> str | None:
    """Why the joined processes, sorted by id, do not match, or None."""
    for a, b in itertools.pairwise(hellos):
        if a.process_id == b.process_id:
            return f"two processes have the id {a.process_id}, on {a.host} and on {b.host}: give each its own"
    if len({hello.num_processes for hello in hellos}) > 1:
        numbers = ", ".join(f"{hello.name} says {hello.num_processes}" for hello in hellos)
        return f"the processes differ in the number of processes ({numbers}): give all the same number"
    if different := differences({hello.name: hello.facts for hello in hellos}):
        listed = "; ".join(f"{name} is {a} in {one} and {b} in {two}" for name, (one, a), (two, b) in different)
        return f"the processes would not run the same programs ({listed}): make them equal on all hosts"
    return None
