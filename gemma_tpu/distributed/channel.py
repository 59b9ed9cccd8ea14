"""What process 0 tells the others and what they answer, over TCP, and how each side notices that the other is gone.

Process 0's messages are pickled, and obeyed; answers are JSON. Ports belong on a private network.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import select
import socket
import struct
import threading
from typing import Any

import jax

_BEAT = 3  # seconds between two signs of life
_SILENCE = 15  # seconds without one after which a process is taken for lost
_LENGTH = struct.Struct("<Q")  # before each message, in bytes; 0 is a sign of life


class Peer:
    """A connection to another process. Both sides send signs of life, from a thread that needs nothing but time.

    A method raises ConnectionError saying why if the other process is lost: it has ended, has been silent for too long
    (frozen, or cut off), or the connection was cut here.
    """

    def __init__(self, link: socket.socket, name: str) -> None:
        self.name = name
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # messages are small, and each is waited for
        link.settimeout(_SILENCE)
        self._link = link
        self._sending = threading.Lock()
        self._cut = threading.Event()
        threading.Thread(target=self._live, name="gemma-life", daemon=True).start()

    def send(self, message: bytes) -> None:
        with self._sending, _told():
            rest = memoryview(_LENGTH.pack(len(message)) + message)
            while rest:
                rest = rest[self._link.send(rest) :]

    def receive(self) -> bytes:
        """The next message, as soon as there is one. After an error there is no connection any more."""
        try:
            with _told():
                while not (length := _LENGTH.unpack(self._read(_LENGTH.size))[0]):
                    pass
                return self._read(length)
        except ConnectionError:
            self._cut.set()
            self._link.close()
            raise

    def part(self, last: bytes) -> None:
        """Sends a last message, unless that takes time, and ends the connection: the other is told, or finds out."""
        if self._sending.acquire(blocking=False):
            with contextlib.suppress(OSError, ValueError):  # it need not be there any more
                if select.select([], [self._link], [], 0)[1]:
                    self._link.send(_LENGTH.pack(len(last)) + last)
            self._sending.release()
        self._cut.set()
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)

    def _read(self, count: int) -> bytes:
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            if not (got := self._link.recv_into(rest)):
                raise EOFError
            rest = rest[got:]
        return bytes(data)

    def _live(self) -> None:
        with contextlib.suppress(ConnectionError):  # as whoever receives is told
            while not self._cut.wait(_BEAT):
                self.send(b"")


@contextlib.contextmanager
def _told():
    try:
        yield
    except TimeoutError as error:
        raise ConnectionError(f"it has given no sign of life for {_SILENCE} s") from error
    except EOFError as error:
        raise ConnectionError("it has ended") from error
    except OSError as error:
        raise ConnectionError(error.strerror or str(error)) from error


class _Pickler(pickle.Pickler):
    """Devices of JAX, in meshes, go by their ids."""

    def persistent_id(self, obj: Any) -> int | None:
        return obj.id if isinstance(obj, jax.Device) else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: int) -> jax.Device:
        return next(device for device in jax.devices() if device.id == pid)


def pack(*message: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()


def unpack(packed: bytes) -> tuple[Any, ...]:
    return _Unpickler(io.BytesIO(packed)).load()


def pack_answer(**answer: Any) -> bytes:
    return json.dumps(answer).encode()


def unpack_answer(packed: bytes) -> dict[str, Any]:
    return json.loads(packed)
