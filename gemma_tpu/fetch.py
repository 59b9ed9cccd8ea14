"""Images from the web, where the caller allows it: with limits of time and size, over http and https alone."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import Future

MAX_BYTES = 64 << 20
SECONDS = 30

_STEP = 10  # seconds without a byte
_BLOCK = 1 << 16
_SCHEMES = ("http", "https")
_CREDENTIALS = re.compile(r"([a-z][a-z0-9+.-]*://)[^/?#\s]*@", re.IGNORECASE)  # of an address


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows an address to http and https only, not to ftp as Python would."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_url(source: str) -> bool:
    """Whether `source` is an http(s) address."""
    return source[:8].lower().startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def without_credentials(url: str) -> str:
    """`url` without the user name and password that may be in it, for a message."""
    return _CREDENTIALS.sub(r"\1…@", url)


def fetch(url: str, *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """What is at an http(s) address, following its redirects.

    ValueError, naming the URL, for an answer other than 200, a web page, more than `max_bytes`, more than `seconds`
    from here to the last byte, a host that cannot be reached, and an address with a password in it.
    """
    name = without_credentials(url)
    sockets: list[socket.socket] = []
    done: Future[bytes] = Future()

    def work() -> None:
        try:
            done.set_result(_fetch(url, max_bytes, time.monotonic() + seconds, sockets))
        except BaseException as error:
            done.set_exception(error)

    # On a thread of its own: neither looking a name up nor a server that sends its headers letter by letter can be
    # given a limit in all.
    threading.Thread(target=work, name="fetch", daemon=True).start()
    try:
        return done.result(seconds)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{name}: the server answered {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise ValueError(f"{name}: took more than {seconds:g} seconds") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise ValueError(f"{name}: took more than {seconds:g} seconds") from error
        raise ValueError(f"{name}: cannot be reached ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{name}: the connection broke ({error or type(error).__name__})") from error
    except ValueError as error:  # of this module, and of urllib for an address that is none
        raise ValueError(f"{name}: {without_credentials(str(error))}") from error
    finally:
        for held in sockets:
            with contextlib.suppress(OSError):  # it has ended by itself
                held.shutdown(socket.SHUT_RDWR)
            held.close()


def _fetch(url: str, max_bytes: int, end: float, sockets: list[socket.socket]) -> bytes:
    """`sockets` gets one for each connection, by which another thread can end it."""

    def watch(connected: socket.socket) -> None:
        _timeout(end)
        sockets.append(socket.socket(fileno=os.dup(connected.fileno())))  # another one of the same connection

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watch(self.sock)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            watch(self.sock)

    class OpenPlain(urllib.request.HTTPHandler):
        def http_open(self, req):
            return self.do_open(Plain, req)

    class OpenSecure(urllib.request.HTTPSHandler):
        def https_open(self, req):
            return self.do_open(Secure, req)

    # Not urllib's default opener, which knows file: and ftp: as well.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        OpenPlain(),
        OpenSecure(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    _check(url)
    address = urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~")  # spaces and letters beyond ASCII, as people paste
    request = urllib.request.Request(address, headers={"User-Agent": "gemma_tpu", "Accept": "image/*"})
    return _read(opener, request, max_bytes, end)


def _check(url: str) -> None:
    if not is_url(url):
        raise ValueError(f"leads to {url[:100]}, and only http and https addresses are fetched")
    if _CREDENTIALS.match(url):
        raise ValueError(f"leads to {url[:100]}, with a user name or a password in it, which are not sent: download it")


def _read(opener: urllib.request.OpenerDirector, request, max_bytes: int, end: float) -> bytes:
    with opener.open(request, timeout=_timeout(end)) as response:
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise ValueError("is a web page, not an image; take the address of the image itself")
        blocks, size = [], 0
        while block := response.read1(_BLOCK):
            blocks.append(block)
            size += len(block)
            if size > max_bytes:
                raise ValueError(f"has more than {max_bytes >> 20} MiB")
            _timeout(end)
        if response.length:
            raise ValueError(f"the connection broke {response.length} bytes before the end")
        return b"".join(blocks)


def _timeout(end: float) -> float:
    """Seconds to wait for a byte; TimeoutError if the time is up."""
    if (left := end - time.monotonic()) <= 0:
        raise TimeoutError
    return min(left, _STEP)
