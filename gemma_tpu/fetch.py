"""Images from the web, where the caller allows it: with limits of time and size, over http and https alone."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request

MAX_BYTES = 64 << 20
SECONDS = 30

_STEP = 10  # seconds without a byte
_BLOCK = 1 << 16
_SCHEMES = ("http", "https")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows an address to http and https only, not to ftp as Python would."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_url(source: str) -> bool:
    """Whether `source` is an http(s) address."""
    return source[:8].lower().startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def fetch(url: str, *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """What is at an http(s) address, following its redirects.

    ValueError, naming the URL, for an answer other than 200, a web page, more than `max_bytes`, more than `seconds`,
    and a host that cannot be reached.
    """
    # Not urllib's default opener, which knows file: and ftp: as well.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    try:
        _check_scheme(url)
        address = urllib.parse.quote(
            url, safe="%/:?#[]@!$&'()*+,;=~"
        )  # spaces and letters beyond ASCII, as people paste
        request = urllib.request.Request(address, headers={"User-Agent": "gemma_tpu", "Accept": "image/*"})
        return _read(opener, request, max_bytes, time.monotonic() + seconds)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url}: the server answered {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise ValueError(f"{url}: took more than {seconds:g} seconds") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise ValueError(f"{url}: took more than {seconds:g} seconds") from error
        raise ValueError(f"{url}: cannot be reached ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{url}: the connection broke ({error or type(error).__name__})") from error
    except ValueError as error:  # of this module, and of urllib for an address that is none
        raise ValueError(f"{url}: {error}") from error


def _check_scheme(url: str) -> None:
    if not is_url(url):
        raise ValueError(f"leads to {url[:100]}, and only http and https addresses are fetched")


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
