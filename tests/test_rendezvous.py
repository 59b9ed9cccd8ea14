"""Processes find each other, or each of them is told why not. Here they are threads: no JAX is started."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from ports import free_port

from gemma_tpu.distributed import rendezvous
from gemma_tpu.distributed.channel import Peer
from gemma_tpu.distributed.cluster import Cluster

BOUND = 60  # seconds, far more than any of these takes


@pytest.fixture(autouse=True)
def _ended_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[Peer] = []

    def peer(link: socket.socket, name: str) -> Peer:
        made.append(Peer(link, name))
        return made[-1]

    monkeypatch.setattr(rendezvous, "Peer", peer)
    yield
    for one in made:
        one.close(b"")
    for one in made:
        with contextlib.suppress(ConnectionError):
            while True:
                one.receive()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that wait until these have passed."""
    for name in ("_GREETING_TIMEOUT", "_GRACE"):
        monkeypatch.setattr(rendezvous, name, 2)


def meet(
    *clusters: Cluster, timeout: float = BOUND, facts: list[dict[str, str]] | None = None
) -> list[list[Peer] | str]:
    """What each process gets: its peers, or the words of an error."""
    with ThreadPoolExecutor(len(clusters)) as pool:
        runs: list[Future] = [
            pool.submit(rendezvous.join, cluster, facts[i] if facts else {}, timeout)
            for i, cluster in enumerate(clusters)
        ]
        errors = [run.exception(2 * BOUND) for run in runs]
    assert all(error is None or isinstance(error, RuntimeError) for error in errors), errors
    return [run.result()[0] if error is None else str(error) for run, error in zip(runs, errors, strict=True)]


def group(ids: list[int], processes: int | list[int], host: str = "127.0.0.1") -> list[Cluster]:
    port = free_port()
    counts = processes if isinstance(processes, list) else [processes] * len(ids)
    return [Cluster(host, port, count, process) for count, process in zip(counts, ids, strict=True)]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_all_come_in_any_order(host: str) -> None:
    two, zero, one = meet(*group([2, 0, 1], 3, host))
    assert [peer.name.split()[1] for peer in zero] == ["1", "2"]
    assert one[0].name.startswith("process 0 on ")
    zero[1].send(b"to the second")
    assert two[0].receive() == b"to the second"
    one[0].send(b"from the first")
    assert zero[0].receive() == b"from the first"


def test_jax_can_have_the_port_afterwards() -> None:
    clusters = group([0, 1], 2)
    meet(*clusters)
    with socket.create_server(("127.0.0.1", clusters[0].port)):
        pass


def test_a_process_alone() -> None:
    assert meet(*group([0], 1)) == [[]]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ids", [[0, 1, 1], [0, 0]])
def test_two_with_one_id(ids: list[int]) -> None:
    for said in meet(*group(ids, 3)):
        assert f"two processes have the id {ids[-1]}" in said


@pytest.mark.usefixtures("impatient")
def test_different_numbers_of_processes() -> None:
    for said in meet(*group([0, 1], [2, 3])):
        assert "process 0 on " in said
        assert "says 2, process 1 on " in said
        assert "says 3" in said


def test_what_differs_is_named() -> None:
    facts = [{"jax": "1", "XLA_FLAGS": "none"}, {"jax": "2", "XLA_FLAGS": "none"}]
    for said in meet(*group([0, 1], 2), facts=facts):
        assert "jax is 1 in process 0 on " in said
        assert "and 2 in process 1 on " in said
        assert "XLA_FLAGS" not in said


def test_one_that_never_comes() -> None:
    for said in meet(*group([0, 2], 4), timeout=3):
        assert "processes 1, 3 did not connect" in said


def test_process_0_never_comes() -> None:
    (said,) = meet(*group([1], 2), timeout=1)
    assert "could not reach process 0" in said


@pytest.mark.parametrize("process", [0, 1])
def test_a_name_that_means_nothing(process: int) -> None:
    (said,) = meet(*group([process], 2, "no-such-host.invalid"), timeout=1)
    assert "no-such-host.invalid" in said


def test_an_address_of_another_host() -> None:
    (said,) = meet(*group([0], 2, "192.0.2.1"), timeout=1)  # for documentation, RFC 5737
    assert "192.0.2.1" in said


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
def test_another_program_has_the_port(answer: bytes | None) -> None:
    """It says something, ends the connection, or is silent."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        held = []

        def serve() -> None:
            while True:
                try:
                    link = other.accept()[0]
                except OSError:
                    return
                held.append(link)
                if answer is not None:
                    with contextlib.suppress(OSError):  # who called may have gone
                        link.sendall(answer)
                        link.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=serve, daemon=True).start()
        port = other.getsockname()[1]
        zero, one = meet(Cluster("127.0.0.1", port, 2, 0), Cluster("127.0.0.1", port, 2, 1))
        other.shutdown(socket.SHUT_RDWR)
    assert "in use by another program" in zero
    assert "another program has the port" in one


def test_strangers_and_those_who_come_again_are_no_trouble() -> None:
    zero, one = group([0, 1], 2)
    with ThreadPoolExecutor(2) as pool:
        lead = pool.submit(rendezvous.join, zero, {}, BOUND)
        until = time.monotonic() + BOUND
        strangers = []
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"[]\n", b"", None):
            while time.monotonic() < until:
                try:
                    stranger = socket.create_connection(("127.0.0.1", zero.port))
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            strangers.append(stranger)
            if said is None:
                continue  # stays, and says nothing
            stranger.sendall(said)
            if not said:
                stranger.close()
        follow = pool.submit(rendezvous.join, one, {}, BOUND)
        assert len(lead.result(2 * BOUND)[0]) == len(follow.result(2 * BOUND)[0]) == 1
        for stranger in strangers:
            stranger.close()


def test_one_that_has_gone_has_not_come() -> None:
    """As one that is stopped while it waits, and started again."""
    zero, one, two = group([0, 1, 2], 3)
    with ThreadPoolExecutor(3) as pool:
        lead = pool.submit(rendezvous.join, zero, {}, BOUND)
        with rendezvous._open_connection(one, BOUND) as link:
            rendezvous._expect_greeting(link, one)
            link.sendall(b'{"num_processes": 3, "process_id": 1, "host": "a", "facts": {}}\n')
        others = [pool.submit(rendezvous.join, cluster, {}, BOUND) for cluster in (one, two)]
        assert len(lead.result(2 * BOUND)[0]) == 2
        assert [len(other.result(2 * BOUND)[0]) for other in others] == [1, 1]
