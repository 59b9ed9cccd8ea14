"""What the tests of the server need: a small model, and a server on it on loopback."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
from PIL import Image
from test_api import make_model as make_model

import gemma_tpu
from gemma_tpu.server import Server, Settings, build_app, listen
from gemma_tpu.server.page import add_page
from gemma_tpu.server.service import LoaderLike, Service

WAIT = 60  # seconds, on a machine that may be busy
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONG: dict[str, Any] = {"max_tokens": 150}
HELLO = [{"role": "user", "content": "Hello"}]
SETTINGS = Settings(model_names=("tiny", "another-name"))


def data_url(image: Image.Image | None = None, kind: str = "png") -> str:
    file = io.BytesIO()
    (image or Image.new("RGB", (40, 30), (200, 30, 30))).save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


class Site:
    """A running server. `http` is a client of it."""

    def __init__(self, server: Server, service: Service, url: str) -> None:
        self.server, self.service, self.url = server, service, url
        self.http = httpx.Client(base_url=url, timeout=WAIT, trust_env=False)

    def ask(self, path: str = CHAT, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        body = {"messages": HELLO, "max_tokens": 8} | body if path == CHAT else body
        return self.http.post(path, json=body, headers=headers)

    def refused(self, status: int, path: str = CHAT, **body: Any) -> dict[str, Any]:
        """The error that comes of a request, whose shape is OpenAI's."""
        return error_of(self.ask(path, **body), status)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"]
    return body["error"]


@contextlib.contextmanager
def serve(
    model: gemma_tpu.Model | LoaderLike,
    settings: Settings = SETTINGS,
    *,
    buffer: int | None = None,
    page: bool = False,
) -> Iterator[Site]:
    """`buffer`: bytes that the kernel keeps of what is sent. `page`: the demo's is there too, of a `Loader`."""
    app = build_app(model, settings)
    if page:
        assert isinstance(model, gemma_tpu.Loader)
        app = add_page(app, model)
    with listen("127.0.0.1", 0) as listener:
        if buffer is not None:  # of the connections too
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        server = Server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        site = Site(server, app.state.service, f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield site
        finally:
            site.http.close()
            server.should_exit = True
            thread.join(WAIT)
            assert not thread.is_alive()


def wait_for(condition) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@contextlib.contextmanager
def held(model: gemma_tpu.Model) -> Iterator[threading.Event]:
    """No call of the device begins before the event is set, or the context left."""
    gate, run = threading.Event(), model.engine._runner.run

    def waits(step):
        gate.wait()
        return run(step)

    model.engine._runner.run = waits
    try:
        yield gate
    finally:
        gate.set()
        model.engine._runner.run = run


def idle(model: gemma_tpu.Model) -> bool:
    return model.engine.occupancy()[:2] == (0, 0) and not model.engine._loop.has_work


def events(lines: Iterator[str]) -> Iterator[Any]:
    """The data of server-sent events, up to [DONE], which must come."""
    for line in lines:
        if not line or line.startswith(":"):  # a comment
            continue
        assert line.startswith("data: "), line
        if line == "data: [DONE]":
            return
        yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended without [DONE]")


@contextlib.contextmanager
def streaming(site: Site, **body: Any) -> Iterator[Iterator[str]]:
    """The lines of an answer that is being written. Leaving closes the connection."""
    asked = {"messages": HELLO, "stream": True, **LONG, **body}
    transport = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)])
    with (
        httpx.Client(transport=transport, timeout=WAIT) as client,
        client.stream("POST", site.url + CHAT, json=asked) as r,
    ):
        assert r.status_code == 200
        yield r.iter_lines()
