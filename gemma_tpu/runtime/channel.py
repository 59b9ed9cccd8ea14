"""What process 0 tells the others over TCP, and how each side notices that another is gone.

Messages are pickled, so a connection is taken only from who knows the key that process 0 leaves in the key-value store
of `jax.distributed`. Ports of both belong on a private network.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

import jax
from jax._src.distributed import global_state  # the key-value store of jax.distributed has no public name

_ENTRY = "gemma_tpu/channel"  # in the key-value store: how to reach process 0
_CONNECT = 60  # seconds for every process to reach process 0, once jax.distributed has them all
_SILENCE = 15  # seconds without a sign of life from a host's kernel after which it is taken for dead
VERDICT = 2  # seconds to learn that a program failed because another process is lost, where that is why
_LAST_CALL = 5  # seconds that process 0, when it ends, waits for a call that is being sent


class Peer:
    """A connection to another process."""

    def __init__(self, link: socket.socket, name: str = "") -> None:
        self.name = name
        for option, value in (
            ("TCP_NODELAY", 1),  # messages are small, and each is waited for
            ("TCP_KEEPIDLE", 5),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", (_SILENCE - 5) // 5),
            ("TCP_USER_TIMEOUT", _SILENCE * 1000),
        ):
            if hasattr(socket, option):  # most are Linux's
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link.setblocking(True)
        self._link = link
        self.connection = Connection(os.dup(link.fileno()))

    def send(self, message: Any) -> None:
        self.connection.send_bytes(pack(message))

    def receive(self) -> Any:
        """The next message. EOFError or OSError when the other has gone."""
        return _Unpickler(io.BytesIO(self.connection.recv_bytes())).load()

    def cut(self) -> None:
        """Ends the connection for both sides; whoever is sending or receiving now gets an error."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)


class _Pickler(pickle.Pickler):
    """Devices of JAX, in meshes, go by their ids."""

    def persistent_id(self, obj: Any) -> int | None:
        return obj.id if isinstance(obj, jax.Device) else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: int) -> jax.Device:
        return next(device for device in jax.devices() if device.id == pid)


def pack(message: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()


def _store() -> Any:
    return global_state.client


def gather() -> list[Peer]:
    """In process 0: connections to all others, in their order."""
    key = secrets.token_bytes(32)
    host = str(global_state.coordinator_address).rsplit(":", 1)[0].strip("[]")
    with _listen(host) as listener:
        entry = f"{host} {listener.getsockname()[1]} {key.hex()}"
        _store().key_value_set(_ENTRY, entry)
        found: dict[int, Peer] = {}
        until = time.monotonic() + _CONNECT
        while len(found) < jax.process_count() - 1:
            try:
                listener.settimeout(max(until - time.monotonic(), 0.01))
                peer = Peer(listener.accept()[0])
            except TimeoutError:
                missing = sorted({*range(1, jax.process_count())} - found.keys())
                raise RuntimeError(f"no connection from processes {missing} within {_CONNECT} s") from None
            try:
                deliver_challenge(peer.connection, key)
                answer_challenge(peer.connection, key)
                index, name = peer.receive()
            except (AuthenticationError, EOFError, OSError):  # a stranger
                peer.cut()
                continue
            peer.name = f"process {index} on {name}"
            found[index] = peer
    return [found[index] for index in sorted(found)]


def _listen(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, 0), family=family)
    except OSError:  # an address that leads to this host but is not its own
        return socket.create_server(("", 0), family=family)


def connect() -> Peer:
    """In any other process: the connection to process 0."""
    host, port, key = _store().blocking_key_value_get(_ENTRY, _CONNECT * 1000).split()
    peer = Peer(socket.create_connection((host, int(port)), timeout=_CONNECT))
    answer_challenge(peer.connection, bytes.fromhex(key))
    deliver_challenge(peer.connection, bytes.fromhex(key))
    peer.send((jax.process_index(), socket.gethostname()))
    return peer


class Group:
    """Process 0's side: it tells the others what to do, and knows when one of them is lost."""

    def __init__(self, peers: list[Peer]) -> None:
        self._peers = peers
        self._order = threading.RLock()  # held while a call is sent and then made here: all make it in the same order
        self._lock = threading.Lock()
        self._watchers: dict[int, Callable[[BaseException], None]] = {}
        self._replies: queue.SimpleQueue[tuple[Peer, str | None] | None] = queue.SimpleQueue()
        self._failure: str | None = None
        self._failed = threading.Event()
        self._ended = False
        for peer in peers:
            threading.Thread(target=self._listen, args=(peer,), name="gemma-peer", daemon=True).start()

    @contextlib.contextmanager
    def together(self, *message: Any) -> Iterator[None]:
        """Sends a message to all; what it stands for is then done here, before any other message is sent."""
        with self._order:
            self._check()
            packed = pack(message)
            for peer in self._peers:
                try:
                    peer.connection.send_bytes(packed)
                except OSError as error:
                    self.fail(f"{peer.name} is lost ({error.strerror}): restart all processes")
                    self._check()
            try:
                yield
            except BaseException as error:
                if isinstance(error, jax.errors.JaxRuntimeError):
                    self.loss()
                self.fail(f"{message[0]} failed in process 0, and the others may wait for it for ever: {error}")
                raise

    def replies(self) -> list[str]:
        """Waits for everybody's; returns the errors that they tell of. Within `together`."""
        errors = []
        for _ in self._peers:
            reply = self._replies.get()
            if reply is None:
                self._check()
            elif reply[1] is not None:
                errors.append(f"{reply[0].name}: {reply[1]}")
        return errors

    def watch(self, key: int, on_failure: Callable[[BaseException], None]) -> None:
        """Has `on_failure` called, from another thread, when a process is lost."""
        with self._lock:
            self._watchers[key] = on_failure
        if self._failure:
            on_failure(RuntimeError(self._failure))

    def forget(self, key: int) -> None:
        with self._lock:
            self._watchers.pop(key, None)

    def fail(self, message: str) -> None:
        """Ends all: requests here with an error, the other processes because they are cut off."""
        with self._lock:
            if self._failure or self._ended:
                return
            self._failure = message
            self._failed.set()
            watchers = list(self._watchers.values())
        for peer in self._peers:
            peer.cut()
            self._replies.put(None)
        for on_failure in watchers:
            on_failure(RuntimeError(message))

    def loss(self) -> RuntimeError | None:
        """Why all has ended, if it has or is about to: a program fails before the loss of another process is known."""
        self._failed.wait(VERDICT)
        return RuntimeError(self._failure) if self._failure else None

    def end(self) -> None:
        """At the end of process 0: the others end too."""
        if self._failure is None and self._order.acquire(timeout=_LAST_CALL):
            with self._lock:
                self._ended = True
            for peer in self._peers:
                with contextlib.suppress(OSError):
                    peer.send(("end",))
            self._order.release()
        else:
            # The runtime would wait for processes that are gone, and for programs that will never end.
            print(f"gemma_tpu: ended at once, for {self._failure or 'a call is stuck'}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    def _check(self) -> None:
        if self._failure or self._ended:
            raise RuntimeError(self._failure or "this process is about to end")

    def _listen(self, peer: Peer) -> None:
        try:
            while True:
                kind, text = peer.receive()
                if kind == "failed":
                    self.fail(f"{peer.name} failed: {text}")
                self._replies.put((peer, text))
        except (EOFError, OSError) as error:
            reason = getattr(error, "strerror", None) or "it has ended"
            self.fail(f"{peer.name} is lost ({reason}): restart all processes")
