"""Errors of model hubs: retries while a hub is busy, and messages that say what to do."""

from __future__ import annotations

import datetime
import email.utils
import errno
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

_LOG = logging.getLogger(__name__)
_BUSY = (408, 429, 500, 502, 503, 504)
_WAITS = (1.0, 4.0, 16.0)  # seconds before each retry, unless the hub asks for more
_MAX_WAIT = 60.0  # seconds; a longer wait is left to the user

T = TypeVar("T")


class Unavailable(Exception):
    """A source cannot provide a model to this user now. The message says what to do."""


def retry_while_busy(attempt: Callable[[], T], hub: str) -> T:
    """Calls `attempt`, with up to three retries while `hub` responds that it is busy.

    Waits as long as the response asks (Retry-After, or Hugging Face's RateLimit), up to a minute.
    """
    for wait in _WAITS:
        try:
            return attempt()
        except Exception as error:
            status, headers = _http_response(error)
            if status not in _BUSY:
                raise
            wait = max(wait, asked) if (asked := _retry_after(headers)) else wait
            if wait > _MAX_WAIT:
                raise
            _LOG.warning("%s is busy (HTTP %d): asking again in %.0f s", hub, status, wait)
            time.sleep(wait)
    return attempt()


def explain(error: Exception, page: str, login: str | None = None) -> Unavailable:
    """Translates an error of a hub's client into what the user can do. `login`: how to log in, if that helps.

    Prefers the HTTP status to the exception type, which changes between client versions: huggingface_hub 2 turns a 429
    or 5xx of its first request into LocalEntryNotFoundError, with the response in its cause.
    """
    status, headers = _http_response(error)
    names = [type(cause).__name__ for cause in _causes(error)]

    def named(*parts: str) -> bool:
        return any(part in name for part in parts for name in names)

    if status == 429:
        more = f"; those who log in may ask more often: {login}" if login else ""
        return Unavailable(f"limits how often it is asked (HTTP 429): {_later(headers)}{more}")
    if status in _BUSY:
        return Unavailable(f"is busy or in trouble (HTTP {status}): {_later(headers)}")
    if named("RevisionNotFound"):
        return Unavailable(f"has it, but not in this revision: see {page}")
    # Hugging Face also responds 401 for a repository that does not exist.
    if not named("Gated") and (status == 404 or named("RepositoryNotFound") or names[0] == "NotFoundError"):
        return Unavailable(f"does not have it, or does not show it to you: see {page}; to log in: {login}")
    if status in (401, 403) or named("Gated", "Credential", "Unauthenticated"):
        return Unavailable(f"accept the licence at {page}, then say who you are with {login}")
    if named("OfflineMode"):
        return Unavailable("HF_HUB_OFFLINE is set: unset it to download. Or is there no network?")
    if isinstance(error, ConnectionError | TimeoutError) or named("Connect", "Timeout", "LocalEntry"):
        return Unavailable("cannot be reached: is there a network?")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Unavailable("no space left on the disk of its cache: make room, or move it with GEMMA_TPU_CACHE")
    lines = str(error).strip().splitlines() or [""]
    return Unavailable(f"{names[0]}: {lines[0]}")


def _later(headers: dict[str, str]) -> str:
    wait = _retry_after(headers)
    if wait is None:
        return "run it again in a few minutes"
    return f"it asks to wait {wait:.0f} s; then run it again"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__


def _http_response(error: BaseException) -> tuple[int | None, dict[str, str]]:
    """Status and lower-case headers of the HTTP response behind an error of urllib, requests or httpx."""
    for cause in _causes(error):
        response: Any = getattr(cause, "response", None)
        codes = getattr(response, "status_code", None), getattr(cause, "code", None), getattr(cause, "error_code", None)
        if isinstance(status := next(filter(None, codes), None), int):
            headers: Any = getattr(cause if response is None else response, "headers", None) or {}
            return status, {name.lower(): value for name, value in headers.items()}
    return None, {}


def _retry_after(headers: dict[str, str]) -> float | None:
    """Seconds from Retry-After (a number or a date) or Hugging Face's `RateLimit: "api";r=0;t=55`."""
    if asked := headers.get("retry-after"):
        if asked.strip().isdigit():
            return float(asked)
        try:
            until = email.utils.parsedate_to_datetime(asked)
        except ValueError:
            return None
        return max(0.0, (until - datetime.datetime.now(until.tzinfo)).total_seconds())
    if match := re.search(r"r=0\b.*\bt=(\d+)", headers.get("ratelimit") or ""):
        return float(match[1])
    return None
