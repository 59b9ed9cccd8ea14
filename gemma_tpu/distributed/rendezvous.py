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
import selectors
import socket
import threading
import time
from collections.abc import Mapping

from gemma_tpu.distributed.channel import Peer
from gemma_tpu.distributed.cluster import Cluster, parse_address
from gemma_tpu.distributed.fingerprint import differences

_GREETING = b"gemma_tpu 1\n"  # with the version of the protocol
_GREETING_TIMEOUT = 10  # seconds for process 0 to send the greeting
_DNS_TIMEOUT = 60  # seconds for a host name to resolve; a new pod's takes a while
_GRACE = 5  # seconds for the other processes to join and receive an error
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
    server = _Rendezvous(listener, cluster, timeout)
    server.start()
    try:
        # Process 0 connects too: the address may lead to another process 0.
        link, _ = _connect(cluster, hello, timeout)
    except BaseException as error:  # Ctrl-C too
        server.stop(f"process 0 on {hello.host} gives up: {error or type(error).__name__}")
        raise
    link.close()
    server.join()
    return [Peer(client.link, client.name) for client in server.joined() if client.hello.process_id > 0], bind


@dataclasses.dataclass(frozen=True)
class _Hello:
    num_processes: int
    process_id: int
    host: str
    facts: dict[str, str]


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
    received = b""
    with contextlib.suppress(OSError):  # silent or closed: judge what was received
        while len(received) < len(_GREETING) and _GREETING.startswith(received) and (byte := link.recv(1)):
            received += byte
    if received != _GREETING:
        raise _OtherProgram(
            f"{cluster.address} takes no further process of this version of gemma_tpu: all have joined, or another "
            "program has the port, as process 0 reports"
        )


def _read_line(link: socket.socket) -> bytes:
    """Reads one line and nothing beyond it, which belongs to the channel."""
    line = b""
    while not line.endswith(b"\n"):
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
    if host:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


class _Client:
    """An accepted connection. `hello` is set once a process of the group has introduced itself."""

    hello: _Hello

    def __init__(self, link: socket.socket) -> None:
        self.link, self.joined, self._received = link, False, b""
        link.settimeout(_GRACE)

    @property
    def name(self) -> str:
        return f"process {self.hello.process_id} on {self.hello.host}"

    def read(self) -> bool:
        """Reads what has arrived. False if the other side is another program or has closed; it may reconnect."""
        data = self.link.recv(_MAX_LINE)
        if not data or self.joined:
            return False
        self._received += data
        if self._received.endswith(b"\n"):
            self.hello = _Hello(**json.loads(self._received))
            self.joined = True
        return len(self._received) < _MAX_LINE


class _Rendezvous(threading.Thread):
    """Accepts connections until all processes have joined or an error occurs, then tells all of them."""

    def __init__(self, listener: socket.socket, cluster: Cluster, timeout: float) -> None:
        super().__init__(name="gemma-rendezvous", daemon=True)
        self._listener, self._cluster, self._timeout = listener, cluster, timeout
        self._clients: list[_Client] = []
        self._stopped: str | None = None

    def stop(self, why: str) -> None:
        self._stopped = why
        self.join()

    def joined(self) -> list[_Client]:
        """The connections whose process has joined, by process id."""
        return sorted((client for client in self._clients if client.joined), key=lambda client: client.hello.process_id)

    def run(self) -> None:
        error = self._gather()
        self._listener.close()  # before the verdict, so that JAX can bind the port
        verdict = json.dumps({"error": error, "host": socket.gethostname()}).encode() + b"\n"
        for client in self._clients:
            if client.joined:
                with contextlib.suppress(OSError):  # just closed; the channel reports it
                    client.link.sendall(verdict)
            if error or not client.joined:
                client.link.close()

    def _gather(self) -> str | None:
        """An error message, or None once all have joined."""
        error, deadline = None, time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0 and not self._stopped:
                for key, _ in selector.select(min(left, _RETRY_INTERVAL)):
                    self._handle(selector, key.data)
                joined = self.joined()
                if not error and (error := _mismatch(joined)):
                    deadline = min(deadline, time.monotonic() + _GRACE)
                if len(joined) >= max(
                    (self._cluster.num_processes, *(client.hello.num_processes for client in joined))
                ):
                    return error
        return error or self._stopped or self._missing()

    def _handle(self, selector: selectors.BaseSelector, client: _Client | None) -> None:
        if client is None:
            with contextlib.suppress(OSError):  # closed before it was accepted
                client = _Client(self._listener.accept()[0])
                client.link.sendall(_GREETING)
                selector.register(client.link, selectors.EVENT_READ, client)
                self._clients.append(client)
            return
        try:
            keep = client.read()
        except (OSError, ValueError, TypeError):  # reset, or another program
            keep = False
        if not keep:
            selector.unregister(client.link)
            self._clients.remove(client)
            client.link.close()

    def _missing(self) -> str:
        ids = sorted({*range(self._cluster.num_processes)} - {client.hello.process_id for client in self.joined()})
        who = f"process{'es' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"
        address, seconds = self._cluster.address, f"{self._timeout:g} s"
        return f"{who} did not connect to {address} within {seconds}: start the command on every host"


def _mismatch(clients: list[_Client]) -> str | None:
    """Why the joined processes do not match, or None."""
    for a, b in itertools.pairwise(clients):
        if a.hello.process_id == b.hello.process_id:
            hosts = f"on {a.hello.host} and on {b.hello.host}"
            return f"two processes have the id {a.hello.process_id}, {hosts}: give each its own"
    if len({client.hello.num_processes for client in clients}) > 1:
        numbers = ", ".join(f"{client.name} says {client.hello.num_processes}" for client in clients)
        return f"the processes differ in the number of processes ({numbers}): give all the same number"
    if different := differences({client.name: client.hello.facts for client in clients}):
        listed = "; ".join(f"{name} is {a} in {one} and {b} in {two}" for name, (one, a), (two, b) in different)
        return f"the processes would not run the same programs ({listed}): make them equal on all hosts"
    return None
