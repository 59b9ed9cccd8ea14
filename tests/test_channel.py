"""A connection between two processes: messages arrive, and silence is not taken for quiet."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from gemma_tpu.distributed import channel
from gemma_tpu.distributed.channel import Peer

BOUND = 60  # seconds, far more than any of these takes


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_HEARTBEAT", 0.05)
    monkeypatch.setattr(channel, "_TIMEOUT", 2)


@contextlib.contextmanager
def connected() -> Iterator[tuple[Peer, socket.socket]]:
    """A peer, and the other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near = Peer(server.accept()[0], "the other")
    with far:
        far.settimeout(BOUND)
        stop = threading.Timer(BOUND, near._link.shutdown, [socket.SHUT_RDWR])  # who waits for ever fails then
        stop.start()
        try:
            yield near, far
        finally:
            stop.cancel()
    with contextlib.suppress(ConnectionError):
        while True:
            near.receive()


def test_messages_of_any_length() -> None:
    with connected() as (near, far):
        other = Peer(far.dup(), "this one")
        messages = [b"a", bytes(range(256)) * 50_000, b"b"]
        sending = threading.Thread(target=lambda: [other.send(message) for message in messages])
        sending.start()
        assert [near.receive() for _ in messages] == messages
        sending.join()
        other.close(b"last words")
        assert near.receive() == b"last words"
        with pytest.raises(ConnectionError, match="it has ended"):
            near.receive()
        near.close(b"")
        with contextlib.suppress(ConnectionError):
            while True:
                other.receive()


def test_a_heartbeat_that_is_being_sent_does_not_cost_the_last_message() -> None:
    with connected() as (near, far):
        other = Peer(far.dup(), "this one")
        other._send_lock.acquire()
        threading.Timer(0.2, other._send_lock.release).start()
        other.close(b"last words")
        assert near.receive() == b"last words"
        near.close(b"")


def test_signs_of_life_are_enough() -> None:
    with connected() as (near, far):
        other = Peer(far.dup(), "this one")  # says nothing for longer than silence may last
        threading.Timer(3, other.send, [b"at last"]).start()
        assert near.receive() == b"at last"
        near.close(b"")
        with pytest.raises(ConnectionError):
            other.receive()


@pytest.mark.parametrize("said", [b"", channel._LENGTH.pack(10) + b"half"])
def test_a_process_that_is_silent_is_lost(said: bytes) -> None:
    """Between messages and amid one."""
    with connected() as (near, far):
        far.sendall(said)
        with pytest.raises(ConnectionError, match="no sign of life"):
            near.receive()


def test_who_sends_does_not_wait_for_a_frozen_process_either() -> None:
    with connected() as (near, _), pytest.raises(ConnectionError, match="no sign of life"):
        near.send(bytes(1 << 26))


def test_last_words_take_no_time_if_nobody_reads() -> None:
    with connected() as (near, far):
        sending = threading.Thread(target=_send_much, args=[near])
        sending.start()
        begin = time.monotonic()
        near.close(b"last words")
        assert time.monotonic() - begin < BOUND
        sending.join(BOUND)
        assert not sending.is_alive()
        while far.recv(1 << 20):
            pass


def _send_much(peer: Peer) -> None:
    with contextlib.suppress(ConnectionError):
        peer.send(bytes(1 << 26))
