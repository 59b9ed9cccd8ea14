"""Images from the web and from a folder, where that is allowed."""

from __future__ import annotations

import contextlib
import http.server
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_site import (
    Site,
    make_model,
    noise,
    serve,
)

import gemma_tpu
from gemma_tpu import fetch
from gemma_tpu.server import Settings


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


class Pictures(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        moved = self.path.startswith("/to/")
        self.send_response(302 if moved else 200)
        if moved:
            self.send_header("Location", f"http://{self.path.removeprefix('/to/')}/red.png")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(b"" if moved else PNG)

    def log_message(self, *_: Any) -> None:
        pass


PNG = (lambda file: (noise(50, 30).save(file, "png"), file.getvalue())[1])(io.BytesIO())


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a web server. For names that end in .test, look-ups give 127.0.0.2, which counts as public."""
    look_up, judge = socket.getaddrinfo, fetch.is_public
    hosts = {"public.test": ["127.0.0.2"], "private.test": ["127.0.0.1"], "both.test": ["127.0.0.2", "127.0.0.1"]}
    hosts["rebinding.test"] = ["127.0.0.2"]

    def resolve(host: str, *args: Any, **options: Any) -> Any:
        if host not in hosts:
            return look_up(host, *args, **options)
        found = [entry for name in hosts[host] for entry in look_up(name, *args, **options)]
        if host == "rebinding.test":
            hosts[host] = ["127.0.0.1"]
        return found

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetch, "is_public", lambda host: host == "127.0.0.2" or judge(host))
    with http.server.ThreadingHTTPServer(("127.0.0.2", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def picture(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_images_from_the_web(model: gemma_tpu.Model, web: int) -> None:
    prompt = [{"role": "user", "content": [{"type": "image", "image": noise(50, 30)}]}]
    wanted = model.generate(prompt, max_new_tokens=8)
    with serve(model, Settings(allow_image_urls=True)) as site:
        for url in (f"http://public.test:{web}/red.png", f"http://public.test:{web}/to/public.test:{web}"):
            assert site.ask(messages=picture(url)).json()["choices"][0]["message"]["content"] == wanted.text
        first = site.ask(messages=picture(f"http://rebinding.test:{web}/red.png"))
        assert first.status_code == 200, "the address that was checked is the one it connects to"
        for host in ("private.test", "both.test", "rebinding.test", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
            for url in (f"http://{host}:{web}/red.png", f"http://public.test:{web}/to/{host}:{web}"):
                error = site.refused(400, messages=picture(url))
                assert "private address" in error["message"], url
        assert site.refused(400, messages=picture(f"http://public.test:{web}/to/a@b"))["code"] == "invalid_image"


def test_images_from_a_folder(model: gemma_tpu.Model, tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    folder.mkdir()
    for path in (folder / "a b.png", tmp_path / "secret.png"):
        path.write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with serve(model, Settings(image_folder=str(folder))) as site:
        for url in (f"file://{folder}/a%20b.png", "file:a%20b.png", f"file://localhost{folder}/a%20b.png"):
            assert site.ask(messages=picture(url)).status_code == 200
        for url in (f"file://{tmp_path}/secret.png", "file:../secret.png", "file:link.png", "file:/etc/passwd"):
            assert "outside the folder" in site.refused(400, messages=picture(url))["message"]
        for url in ("file://elsewhere/a.png", "file:none.png", "file:", "a%20b.png", str(folder / "a b.png")):
            assert site.refused(400, messages=picture(url))["code"] == "invalid_image"
