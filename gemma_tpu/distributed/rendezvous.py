"""How the processes of several hosts find each other: all connect to the coordinator's port, before JAX takes it.

JAX kills a process that cannot join the others: because its port is in use, two processes have one id, one never comes.
Here each of these is an error that all processes hear of, in bounded time. What must be the same everywhere is compared
on the way, and the connections to process 0 remain: they are the channel (gemma_tpu.distributed.channel).

The port answers with a line that says what it is. A process then says who it is and what it has, and is told the
verdict when all have come: each in a line of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import itertools
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Mapping

from gemma_tpu.distributed.channel import Peer
from gemma_tpu.distributed.fingerprint import differences
from gemma_tpu.distributed.place import Place, parse_address

_GREETING = b"gemma_tpu 1\n"  # and the version of what is said after it
_ANSWER = 10  # seconds in which process 0's port sends the greeting
_NAMING = 60  # seconds for a name to be known, as that of a pod is a while after its start
_LINGER = 5  # seconds for the rest to come and hear what is wrong
_PAUSE = 0.2  # seconds between two attempts to connect
_LONGEST = 1 << 16  # bytes of a line


def join(place: Place, facts: Mapping[str, str], timeout: float) -> tuple[list[Peer], str | None]:
    """Waits until all processes have come to `place`. RuntimeError if they do not, or do not go together.

    `facts` must be the same in all. `timeout`: seconds for all to come.

    Returns connections, in process 0 to all others in their order, in the others to process 0; and the address that
    JAX's service is to listen at, None for its own choice.
    """
    hello = _Hello(place.processes, place.process, socket.gethostname(), secrets.token_hex(8), dict(facts))
    if place.process > 0:
        link, host = _attend(place, hello, timeout)
        return [Peer(link, f"process 0 on {host}")], None
    listener, bind = _listen(place, hello)
    meeting = _Meeting(listener, place, timeout)
    meeting.start()
    try:
        # As any other does: the address may lead to another process 0.
        link, _ = _attend(place, hello, timeout)
    except BaseException as error:  # Ctrl-C too
        meeting.stop(f"process 0 on {hello.host} gives up: {error or type(error).__name__}")
        raise
    link.close()
    meeting.join()
    return [Peer(guest.link, guest.name) for guest in meeting.come() if guest.hello.process > 0], bind


@dataclasses.dataclass(frozen=True)
class _Hello:
    processes: int
    process: int
    host: str
    mark: str  # tells two processes with one id apart
    facts: dict[str, str]


# In every process.


class _Stranger(RuntimeError):
    """Another program listens at the coordinator's port."""


def _attend(place: Place, hello: _Hello, timeout: float) -> tuple[socket.socket, str]:
    """The connection to process 0, and its host's name, when all have come."""
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(_dial(place, timeout))
        _expect_greeting(link, place)
        try:
            link.sendall(json.dumps(dataclasses.asdict(hello)).encode() + b"\n")
            # Process 0 may have started later than this one, and then waits longer.
            link.settimeout(timeout + _LINGER + _ANSWER)
            verdict = json.loads(_read_line(link))
        except TimeoutError:
            raise RuntimeError(f"process 0 at {place.address} is there, and does not go on: restart it") from None
        except OSError:
            raise RuntimeError(f"process 0 at {place.address} ended before all had come: see what it says") from None
        if verdict["error"] is not None:
            raise RuntimeError(verdict["error"])
        stack.pop_all()
        return link, verdict["host"]


def _dial(place: Place, timeout: float) -> socket.socket:
    """A connection to the coordinator's port, as soon as there is something to connect to."""
    begin, own = time.monotonic(), place.process == 0
    while True:
        patience = min(timeout, _NAMING) if own else timeout
        try:
            link = socket.create_connection((place.host, place.port), min(_ANSWER, timeout))
            # A port of this host at which nobody listens may be picked for the connection's own end, which answers.
            if link.getsockname() != link.getpeername():
                return link
            link.close()
            reason = os.strerror(errno.ECONNREFUSED)
        except socket.gaierror as error:
            reason, patience = error.strerror, min(timeout, _NAMING)
        except OSError as error:
            reason = error.strerror or str(error)
        if (waited := time.monotonic() - begin) >= patience:
            what, way = ("itself", "an address of this host that the others reach too") if own else ("process 0", "it")
            raise RuntimeError(
                f"process {place.process} could not reach {what} at {place.address} for {waited:.0f} s ({reason}): "
                + (f"the coordinator must be {way}" if own else "start it, or correct the coordinator's address")
            )
        time.sleep(_PAUSE)


def _expect_greeting(link: socket.socket, place: Place) -> None:
    link.settimeout(_ANSWER)
    said = b""
    with contextlib.suppress(OSError):  # silent or gone: what has been said until then tells
        while len(said) < len(_GREETING) and _GREETING.startswith(said) and (byte := link.recv(1)):
            said += byte
    if said != _GREETING:
        raise _Stranger(
            f"nobody waits at {place.address} for another process of this version of gemma_tpu: all have come already, "
            "or another program has the port, and process 0 says so"
        )


def _read_line(link: socket.socket) -> bytes:
    """Takes no more than the line: what follows is the channel's."""
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := link.recv(1)):
            raise ConnectionError
        line += byte
    return line


# In process 0.


def _listen(place: Place, hello: _Hello) -> tuple[socket.socket, str | None]:
    """A listener at the coordinator's port, and the address at which JAX's service is to take its place."""
    given = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")  # JAX heeds it too
    host, port = parse_address("JAX_COORDINATOR_BIND_ADDRESS", given) if given else (place.host, place.port)
    try:
        if _is_number(host):
            try:
                return _bind(host, port), None if given else place.address
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # it leads to this host, but is not its own
                    raise
        # A name may mean this host alone (127.0.1.1 in /etc/hosts): it does not say where to listen.
        return _bind("", port), None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        if error.errno == errno.EADDRINUSE:
            try:
                _attend(place, hello, _ANSWER)  # another process 0 says so
            except _Stranger:
                reason = f"{reason} by another program"
        raise RuntimeError(
            f"process 0 cannot listen at the coordinator's port {port}: {reason}: choose another, on all hosts"
        ) from error


def _is_number(host: str) -> bool:
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


class _Guest:
    """A connection that has been taken. `hello` is set once it is known to be a process of the group."""

    hello: _Hello

    def __init__(self, link: socket.socket) -> None:
        self.link, self.come, self._said = link, False, b""
        link.settimeout(_LINGER)

    @property
    def name(self) -> str:
        return f"process {self.hello.process} on {self.hello.host}"

    def read(self) -> bool:
        """Takes what has been sent. False for a stranger, and for one that has gone: it may come again."""
        new = self.link.recv(_LONGEST)
        if not new or self.come:
            return False
        self._said += new
        if self._said.endswith(b"\n"):
            self.hello = _Hello(**json.loads(self._said))
            self.come = True
        return len(self._said) < _LONGEST


class _Meeting(threading.Thread):
    """Takes connections until all processes have come, or something is wrong; then tells all of them."""

    def __init__(self, listener: socket.socket, place: Place, timeout: float) -> None:
        super().__init__(name="gemma-meeting", daemon=True)
        self._listener, self._place, self._timeout = listener, place, timeout
        self._guests: list[_Guest] = []
        self._stopped: str | None = None

    def stop(self, why: str) -> None:
        self._stopped = why
        self.join()

    def come(self) -> list[_Guest]:
        """Those who have, in the order of their ids."""
        return sorted((guest for guest in self._guests if guest.come), key=lambda guest: guest.hello.process)

    def run(self) -> None:
        wrong = self._take_all()
        self._listener.close()  # before anybody goes on: JAX is to have the port
        verdict = json.dumps({"error": wrong, "host": socket.gethostname()}).encode() + b"\n"
        for guest in self._guests:
            if guest.come:
                with contextlib.suppress(OSError):  # gone just now, as the channel will notice
                    guest.link.sendall(verdict)
            if wrong or not guest.come:
                guest.link.close()

    def _take_all(self) -> str | None:
        """What is wrong, if anything is."""
        wrong, until = None, time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while (left := until - time.monotonic()) > 0 and not self._stopped:
                for key, _ in selector.select(min(left, _PAUSE)):
                    self._take(selector, key.data)
                come = self.come()
                if not wrong and (wrong := _complaint(come)):
                    until = min(until, time.monotonic() + _LINGER)
                if len(come) >= max((self._place.processes, *(guest.hello.processes for guest in come))):
                    return wrong
        return wrong or self._stopped or self._missing()

    def _take(self, selector: selectors.BaseSelector, guest: _Guest | None) -> None:
        if guest is None:
            with contextlib.suppress(OSError):  # gone before it was taken
                guest = _Guest(self._listener.accept()[0])
                guest.link.sendall(_GREETING)
                selector.register(guest.link, selectors.EVENT_READ, guest)
                self._guests.append(guest)
            return
        try:
            stays = guest.read()
        except (OSError, ValueError, TypeError):  # ended by force, or no process of ours
            stays = False
        if not stays:
            selector.unregister(guest.link)
            self._guests.remove(guest)
            guest.link.close()

    def _missing(self) -> str:
        ids = sorted({*range(self._place.processes)} - {guest.hello.process for guest in self.come()})
        who = f"process {ids[0]} has" if len(ids) == 1 else f"processes {', '.join(map(str, ids))} have"
        return f"{who} not come to {self._place.address} within {self._timeout:g} s: start the command on every host"


def _complaint(guests: list[_Guest]) -> str | None:
    """What is wrong with those who have come, if anything is."""
    for one, two in itertools.pairwise(guests):
        if one.hello.process == two.hello.process:
            hosts = f"on {one.hello.host} and on {two.hello.host}"
            return f"two processes have the id {one.hello.process}, {hosts}: give each its own"
    if len({guest.hello.processes for guest in guests}) > 1:
        said = ", ".join(f"{guest.name} says {guest.hello.processes}" for guest in guests)
        return f"the processes differ in how many they are ({said}): give all the same number"
    if different := differences({guest.name: guest.hello.facts for guest in guests}):
        said = "; ".join(f"{name} is {a} in {one} and {b} in {two}" for name, (one, a), (two, b) in different)
        return f"the processes would not run the same programs ({said}): make that alike on all hosts"
    return None
