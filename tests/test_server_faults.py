"""Faults around a real server: clients that leave or read nothing, bombs, a full disk, kill -9, a frozen process.

A full queue, malformed bodies and an error of one request: test_server_service, test_server_errors,
test_server_endpoint.
"""

from __future__ import annotations

import base64
import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import xla_flags
from ports import free_port
from server_site import CHAT, HELLO, WAIT, Site, events, idle, make_model, serve, streaming, wait_for
from test_distributed import FROZEN, PATIENCE, checkpoint, environment, free_address, started  # noqa: F401 - fixtures

import gemma_tpu

QUESTION: dict[str, Any] = {"messages": HELLO, "max_tokens": 8, "temperature": 1, "seed": 5}


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


def test_a_client_that_leaves_costs_one_decode_call(site: Site, model: gemma_tpu.Model, monkeypatch) -> None:
    """The one that is on its way to the device."""
    may, run, decoded = threading.Semaphore(4), model.engine._runner.run, []

    def counted(step):
        may.acquire()
        decoded.append(step.decode is not None)
        return run(step)

    monkeypatch.setattr(model.engine._runner, "run", counted)
    with streaming(site, max_tokens=400) as lines:
        assert next(events(lines))["choices"]
        wait_for(lambda: len(decoded) == 4)
    wait_for(lambda: site.service.requests == 0)
    may.release(1000)
    wait_for(lambda: idle(model))
    assert sum(decoded[:4]) >= 1
    assert sum(decoded[4:]) <= 1


def test_what_a_slow_reader_is_sent_waits_in_no_buffer(model: gemma_tpu.Model) -> None:
    asked = {"n": 64, "max_tokens": 60, "temperature": 1.0, "seed": 1, "logprobs": True, "top_logprobs": 5}
    with serve(model, buffer=16384) as site, streaming(site, **asked) as lines:
        wait_for(lambda: idle(model))
        (connection,) = site.server.server_state.connections
        assert 0 < connection.transport.get_write_buffer_size() <= 1 << 17
        assert sum(map(len, lines)) > 1 << 19


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (1 << 20),
        b"\r\n" * 1000,
    ],
)
def test_what_is_no_http(site: Site, said: bytes) -> None:
    with (
        socket.create_connection(("127.0.0.1", httpx.URL(site.url).port), WAIT) as client,
        contextlib.suppress(OSError),  # it is closed while we talk
    ):
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1 << 16)[:10] in (b"", b"HTTP/1.1 4")
    wait_for(lambda: site.service.requests == 0)
    assert site.ask().status_code == 200


def png(side: int, *others: tuple[bytes, bytes]) -> bytes:
    """A black one of side × side pixels, one bit each, and other chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, rows = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), bytes((1 + side // 8) * side)
    chunks = [(b"IHDR", header), *others, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


@pytest.mark.parametrize("bomb", ["pixels", "text", "profile"])
def test_an_image_bomb(site: Site, bomb: str) -> None:
    """Small files with 900 million pixels, or a text or a colour profile of 256 MB: at most the picture is read."""
    many = zlib.compress(bytes(256 << 20), 1)
    file = {
        "pixels": lambda: png(30_000),
        "text": lambda: png(64, (b"zTXt", b"Comment\0\0" + many)),
        "profile": lambda: png(64, (b"iCCP", b"x\0\0" + many)),
    }[bomb]()
    assert len(file) < 4 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    response = site.ask(messages=[{"role": "user", "content": content}])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    assert response.status_code == 400 or bomb != "pixels"
    assert response.status_code in (200, 400), response.text
    assert site.ask().status_code == 200


@contextlib.contextmanager
def command(checkpoint: Path, port: int, folder: Path) -> Iterator[tuple[subprocess.Popen, httpx.Client]]:  # noqa: F811
    """A server with the page that is ready; its log is in `folder`, and its temporary files."""
    words = [
        "-m",
        "gemma_tpu",
        "serve",
        str(checkpoint),
        "--port",
        str(port),
        "--max-rows",
        "2",
        "--max-context",
        "400",
    ]
    folder.mkdir(exist_ok=True)
    given = os.environ | xla_flags.PROCESS | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)}
    given |= {"GRADIO_TEMP_DIR": ""}
    with (
        open(folder / "log", "a") as log,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT) as client,
        subprocess.Popen([sys.executable, *words], stderr=log, stdout=subprocess.DEVNULL, env=given) as process,
    ):

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return client.get("/ready").status_code == 200
            return False

        try:
            wait_for(ready)
            yield process, client
        finally:
            process.kill()


def test_a_full_disk_and_kill_9(checkpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    """Neither log lines nor uploads can be written; then it is killed at work and started again at the same port."""
    port, folder = free_port(), tmp_path / "temporary"

    def upload(size: int) -> int:
        """On a connection of its own: the server closes one on which it has not read all that was sent."""
        url = f"http://127.0.0.1:{port}/gradio_api/upload"
        return httpx.post(url, files={"files": ("a.bin", os.urandom(size))}, timeout=WAIT).status_code

    with command(checkpoint, port, folder) as (process, client):
        wanted = client.post(CHAT, json=QUESTION).json()["choices"]
        assert upload(1 << 16) == 200
        said = (folder / "log").read_text()
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        assert client.post(CHAT, json=QUESTION).json()["choices"] == wanted
        with contextlib.suppress(httpx.TransportError):  # it answers before it has read everything
            assert upload(4 << 20) >= 400
        assert client.post(CHAT, json=QUESTION).json()["choices"] == wanted
        assert (folder / "log").read_text() == said
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert upload(4 << 20) == 200
        (left,) = folder.glob("gemma-tpu-demo-*")
        with client.stream("POST", CHAT, json=QUESTION | {"stream": True, "max_tokens": 300}) as response:
            begun = events(response.iter_lines())
            assert next(begun)
            process.send_signal(signal.SIGKILL)
            with pytest.raises((httpx.TransportError, AssertionError)):
                list(begun)
    assert left.exists()
    with command(checkpoint, port, folder) as (process, client):
        assert not left.exists()
        assert client.post(CHAT, json=QUESTION).json()["choices"] == wanted
        process.terminate()
        assert process.wait(WAIT) == 0
    assert [path.name for path in folder.iterdir() if path.name.startswith("gemma-tpu")] == []


def test_a_frozen_process(checkpoint: Path, environment: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    """/health says that only a restart helps, and nobody waits for an answer for ever."""
    port = free_port()
    words = ["-m", "gemma_tpu", "serve", str(checkpoint), "--no-demo", "--max-rows", "2", "--max-context", "400"]
    words += ["--distributed", "--coordinator", free_address(), "--num-processes", "2", "--process-id"]
    commands = [[*words, "0", "--port", str(port)], [*words, "1", "--port", "0"]]
    with started(commands, tmp_path, environment) as (lead, worker):

        def status(path: str) -> int:
            assert lead.poll() is None, (tmp_path / "0.err").read_text()
            with contextlib.suppress(httpx.TransportError):
                return client.get(path).status_code
            return 0

        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=max(FROZEN, PATIENCE)) as client:
            wait_for(lambda: status("/ready") == 200)
            assert client.post(CHAT, json=QUESTION).status_code == 200
            worker.send_signal(signal.SIGSTOP)
            error = client.post(CHAT, json=QUESTION | {"max_tokens": 300})
            assert error.status_code >= 500
            assert status("/health") == 503
            refused = client.post(CHAT, json=QUESTION)
            assert refused.status_code == 503
            assert "process 1" in refused.json()["error"]["message"]
            assert client.get("/ready").json()["status"] == "failed"
