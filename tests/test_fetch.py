"""Images from the web, from a server on this machine."""

from __future__ import annotations

import contextlib
import http.server
import io
import itertools
import threading
import time
from collections.abc import Iterator

import pytest
from PIL import Image

from gemma_tpu import load_image
from gemma_tpu.fetch import fetch, is_public, without_credentials


class Site(http.server.BaseHTTPRequestHandler):
    """Answers by the path."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/red.png":
            self._answer(200, "image/png", RED)
        elif path == "/untyped":
            self._answer(200, "application/octet-stream", RED)
        elif path == "/login":
            self._answer(200, "text/html; charset=utf-8", b"<html>Please sign in</html>")
        elif path == "/notes":
            self._answer(200, "text/plain", b"no picture here")
        elif path == "/large":
            self._answer(200, "image/png", bytes(3 << 20))
        elif path == "/endless":  # says no length
            self._head(200, "image/png")
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(1 << 16))
        elif path == "/slow":
            self._head(200, "image/png")
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        elif path == "/letter-by-letter":
            with contextlib.suppress(OSError):
                for letter in itertools.chain(b"HTTP/1.1 200 OK\r\nX-Long: ", itertools.repeat(ord("x"))):
                    self.wfile.write(bytes([letter]))
                    time.sleep(0.02)
        elif path == "/to-a-password":
            self._head(302, "text/plain", Location="http://somebody:s3cret@127.0.0.1/red.png")
        elif path == "/broken":
            self._answer(200, "image/png", RED[:50], length=len(RED))
        elif path.startswith("/to/"):
            self._head(302, "text/plain", Location=path.removeprefix("/to/").replace("!", ":/"))
        else:
            self._answer(404, "text/html", b"<html>gone</html>")

    def _head(self, status: int, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, kind: str, body: bytes, length: int | None = None) -> None:
        self._head(status, kind, **{"Content-Length": str(len(body) if length is None else length)})
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (255, 0, 0)).save(file, "PNG")
    return file.getvalue()


RED = _png()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["/red.png", "/red.png?size=3&x=a b", "/untyped", "/to//red.png", "/to//to//red.png"])
def test_an_image_is_fetched(site: str, path: str) -> None:
    assert load_image(site + path, allow_urls=True).getpixel((3, 3)) == (255, 0, 0)


def test_nothing_is_fetched_unless_that_is_allowed(site: str) -> None:
    with pytest.raises(ValueError, match=r"red.png: images are fetched from the web only where that is allowed"):
        load_image(f"{site}/red.png")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/gone.png", "the server answered 404 Not Found"),
        ("/login", "is a web page, not an image"),
        ("/notes", "a text file, not an image"),
        ("/broken", "the connection broke .* before the end"),
        ("/to/ftp!/127.0.0.1/red.png", "leads to ftp://127.0.0.1/red.png, and only http and https"),
        ("/to/file!//etc/passwd", "file:///etc/passwd.* not allowed"),
        ("/to//to//to//to//to//to//to//to//to//to//to//to//red.png", "redirect"),
    ],
)
def test_what_is_no_image_is_named(site: str, path: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load_image(site + path, allow_urls=True)
    assert str(caught.value).startswith((site + path)[:60])


def test_limits_of_size_and_time(site: str) -> None:
    for path in ("/large", "/endless"):
        with pytest.raises(ValueError, match=rf"{path}: has more than 2 MiB"):
            fetch(site + path, max_bytes=2 << 20)
    assert len(fetch(f"{site}/large", max_bytes=3 << 20)) == 3 << 20
    with pytest.raises(ValueError, match=r"/slow: took more than 0.3 seconds"):
        fetch(f"{site}/slow", seconds=0.3)


def test_a_server_that_sends_its_headers_letter_by_letter(site: str) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match=r"/letter-by-letter: took more than 0.4 seconds"):
        fetch(f"{site}/letter-by-letter", seconds=0.4)
    end = time.monotonic() + 60  # the server's thread and ours end with the connection, and only with it
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("path", ["/gone.png", "/to//gone.png", "", "/a@b.png"])
def test_no_password_is_repeated(site: str, path: str) -> None:
    for load in (fetch, load_image):
        address = site.replace("http://", "http://somebody:s3cr@t@") + path
        with pytest.raises(ValueError, match=r"^http://…@127.0.0.1") as caught:
            load(address)
        assert "s3cr" not in str(caught.value)
        assert "somebody" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^ftp://…@host/x.png: images are not read from ftp"):
        load_image("ftp://somebody:s3cret@host/x.png")


def test_no_password_of_a_redirection_is_repeated(site: str) -> None:
    with pytest.raises(ValueError, match="a user name or a password in it") as caught:
        fetch(f"{site}/to-a-password")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9/x.png", "cannot be reached"),  # nothing listens there
        ("http://no-such-host.invalid/x.png", "cannot be reached"),
        ("http:///x.png", "http:///x.png: "),
        ("file:///etc/passwd", "only http and https addresses are fetched"),
    ],
)
def test_addresses_that_lead_nowhere(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fetch(url)


@pytest.mark.parametrize(
    ("hosts", "public"),
    [
        ("8.8.8.8 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808", True),
        (
            "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255",
            False,
        ),
        ("::1 :: fe80::1%eth0 fc00::1 fd00:ec2::254 ::ffff:127.0.0.1 ff02::1 2001:db8::1 64:ff9b::7f00:1", False),
        ("::127.0.0.1 64:ff9b:1::1 2002:7f00:1:: 2001:0:808:808::1", False),
    ],
)
def test_addresses_of_the_public_internet(hosts: str, public: bool) -> None:
    assert {host: is_public(host) for host in hosts.split()} == dict.fromkeys(hosts.split(), public)


def test_a_long_name_takes_no_time() -> None:
    """Not the square of its length, which would be an hour here."""
    assert without_credentials("a" * (1 << 21) + "://b:c@d") == "a" * (1 << 21) + "://…@d"
