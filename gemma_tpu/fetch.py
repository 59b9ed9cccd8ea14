"""Downloads images over http(s) only, with limits on time and size."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import Future
from typing import Any

MAX_BYTES = 64 << 20
SECONDS = 30

_READ_TIMEOUT = 10  # seconds without a byte
_CHUNK = 1 << 16
_SCHEMES = ("http", "https")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # RFC 4291
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits
_CREDENTIALS = re.compile(r"://[^/?#\s]*@")  # begins with what is rare, so it takes linear time, in a data URL too


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only; urllib would follow ftp too."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_url(source: str) -> bool:
    """Whether `source` is an http(s) address."""
    return source[:8].lower().startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def without_credentials(url: str) -> str:
    """`url` without user name and password, for messages."""
    return _CREDENTIALS.sub("://…@", url)


def fetch(url: str, *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS, public: bool = False) -> bytes:
    """The content at an http(s) URL, following redirects.

    With `public`, it connects to addresses of the public internet alone, after a redirect too, and uses no proxy. A
    name is looked up once for each connection, which then goes to the address that was checked.

    ValueError, naming the URL, for a status other than 200, a web page, more than `max_bytes`, more than `seconds` in
    all, an unreachable host, and a URL with credentials.
    """
    name = without_credentials(url)
    sockets: list[socket.socket] = []
    done: Future[bytes] = Future()

    def work() -> None:
        try:
            done.set_result(_fetch(url, max_bytes, time.monotonic() + seconds, sockets, public))
        except BaseException as error:
            done.set_exception(error)

    # On its own thread: a socket timeout bounds neither name resolution nor headers that arrive byte by byte.
    threading.Thread(target=work, name="fetch", daemon=True).start()
    try:
        return done.result(seconds)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{name}: the server answered {error.code} {error.reason}") from error
    except (TimeoutError, urllib.error.URLError) as error:
        if isinstance(reason := getattr(error, "reason", error), TimeoutError):
            raise ValueError(f"{name}: took more than {seconds:g} seconds") from error
        raise ValueError(f"{name}: cannot be reached ({reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{name}: the connection broke ({error or type(error).__name__})") from error
    except ValueError as error:  # from this module, or from urllib for a malformed URL
        raise ValueError(f"{name}: {without_credentials(str(error))}") from error
    finally:
        for duplicate in sockets:
            with contextlib.suppress(OSError):  # already closed
                duplicate.shutdown(socket.SHUT_RDWR)
            duplicate.close()


def _fetch(url: str, max_bytes: int, deadline: float, sockets: list[socket.socket], public: bool) -> bytes:
    """Appends a duplicate of each connection's socket to `sockets`, so that another thread can shut it down."""

    def track(connected: socket.socket) -> None:
        _remaining(deadline)
        sockets.append(socket.socket(fileno=os.dup(connected.fileno())))

    create_connection = _connect_to_public if public else socket.create_connection

    def tracked(connection: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        def connect(self: Any) -> None:
            self._create_connection = create_connection
            connection.connect(self)
            track(self.sock)

        return type(connection.__name__, (connection,), {"connect": connect})

    class Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        def http_open(self, req):
            return self.do_open(tracked(http.client.HTTPConnection), req)

        def https_open(self, req):
            return self.do_open(tracked(http.client.HTTPSConnection), req)

    # urllib's default opener would also accept file: and ftp:.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if public else None),  # a proxy would look names up itself
        Handler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    _check_url(url)
    address = urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~")  # quotes spaces and non-ASCII characters
    request = urllib.request.Request(address, headers={"User-Agent": "gemma_tpu", "Accept": "image/*"})
    return _read(opener, request, max_bytes, deadline)


def _connect_to_public(address: tuple[str, int], *options: Any) -> socket.socket:
    """`socket.create_connection`, with ValueError for a host of which an address is not public."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    hosts = [str(sockaddr[0]) for *_, sockaddr in found]
    if not all(map(is_public, hosts)):
        raise ValueError("leads to a private address, and only public ones are fetched")
    for host in hosts[:-1]:
        with contextlib.suppress(OSError):  # the next may answer
            return socket.create_connection((host, address[1]), *options)
    return socket.create_connection((hosts[-1], address[1]), *options)


def is_public(host: str) -> bool:
    """Whether an IP address is one of the public internet."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or address in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
        tunnel = address.sixtofour or address.teredo  # obsolete, and may lead to any IPv4 address
        return address in _GLOBAL_UNICAST and address.is_global and not tunnel
    return address.is_global and not address.is_multicast


def _check_url(url: str) -> None:
    if not is_url(url):
        raise ValueError(f"leads to {url[:100]}, and only http and https addresses are fetched")
    if _CREDENTIALS.match(url, url.index("://")):
        raise ValueError(f"leads to {url[:100]}, with a user name or a password in it, which are not sent: download it")


def _read(opener: urllib.request.OpenerDirector, request, max_bytes: int, deadline: float) -> bytes:
    with opener.open(request, timeout=_remaining(deadline)) as response:
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise ValueError("is a web page, not an image; take the address of the image itself")
        chunks, size = [], 0
        while chunk := response.read1(_CHUNK):
            chunks.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                raise ValueError(f"has more than {max_bytes >> 20} MiB")
            _remaining(deadline)
        if response.length:
            raise ValueError(f"the connection broke {response.length} bytes before the end")
        return b"".join(chunks)


def _remaining(deadline: float) -> float:
    """Seconds to wait for the next byte. TimeoutError past the deadline."""
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return min(left, _READ_TIMEOUT)
