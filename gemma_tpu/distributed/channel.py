"""Messages between process 0 and the others over TCP, with heartbeats that detect a lost process.

Process 0's messages are pickles, which its peers trust; answers are JSON. The ports belong on a private network.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import select
import socket
import struct
import threading
from typing import Any

import jax

_HEARTBEAT = 3  # seconds between heartbeats
_TIMEOUT = 15  # seconds of silence after which a process counts as lost
_CLOSING = 3  # seconds that a last message waits for one that is being sent
_LENGTH = struct.Struct("<Q")  # precedes each message, in bytes; 0 is a heartbeat


class Peer:
    """A connection to another process; both sides send heartbeats from a thread.

    Methods raise ConnectionError with the reason if the other process is lost: it exited, was silent for too long
    (frozen or disconnected), or this side closed the connection.
    """

    def __init__(self, link: socket.socket, name: str) -> None:
        self.name = name
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # messages are small and latency matters
        link.settimeout(_TIMEOUT)
        self._link, self._received = link, link.makefile("rb")
        self._send_lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._send_heartbeats, name="gemma-heartbeat", daemon=True).start()

    def send(self, message: bytes) -> None:
        with self._send_lock, _as_connection_error():
            self._link.sendall(_LENGTH.pack(len(message)) + message)

    def receive(self) -> bytes:
        """Blocks until the next message. An error closes the connection."""
        try:
            with _as_connection_error():
                while not (length := _LENGTH.unpack(self._read(_LENGTH.size))[0]):
                    pass
                return self._read(length)
        except ConnectionError:
            self._closed.set()
            self._received.close()
            self._link.close()
            raise

    def close(self, last: bytes) -> None:
        """Sends a last message, unless that would block for long, and closes the connection."""
        if self._send_lock.acquire(timeout=_CLOSING):  # a heartbeat that is being sent takes less
            with contextlib.suppress(OSError, ValueError):  # the other side may be gone
                if select.select([], [self._link], [], 0)[1]:
                    self._link.send(_LENGTH.pack(len(last)) + last)
            self._send_lock.release()
        self._closed.set()
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)

    def _read(self, count: int) -> bytes:
        if len(data := self._received.read(count)) < count:
            raise ConnectionError("it has ended")
        return data

    def _send_heartbeats(self) -> None:
        with contextlib.suppress(ConnectionError):  # `receive` reports it
            while not self._closed.wait(_HEARTBEAT):
                self.send(b"")


@contextlib.contextmanager
def _as_connection_error():
    try:
        yield
    except TimeoutError as error:
        raise ConnectionError(f"it has given no sign of life for {_TIMEOUT} s") from error
    except (OSError, ValueError) as error:  # ValueError: closed on this side
        raise ConnectionError(getattr(error, "strerror", None) or str(error)) from error


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """JAX devices, as in meshes, by id."""
        return (_device, (obj.id,)) if isinstance(obj, jax.Device) else NotImplemented


def _device(id: int) -> jax.Device:
    return next(device for device in jax.devices() if device.id == id)


def pack(*message: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()


def unpack(packed: bytes) -> tuple[Any, ...]:
    return pickle.loads(packed)
