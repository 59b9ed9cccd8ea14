"""Why a hub did not give what it was asked for, and asking again while it is only busy."""

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
_WAITS = (1.0, 4.0, 16.0)  # seconds before each further attempt, if the hub does not say
_LONGEST_WAIT = 60.0  # seconds; who is told to wait longer is told so

T = TypeVar("T")


class Unavailable(Exception):
    """A source does not have a model, or not for this user, or not now; the message says what to do."""


def patiently(attempt: Callable[[], T], hub: str) -> T:
    """What `attempt` returns; tried again, three times at most, as long as `hub` answers that it is busy.

    Waits as long as the answer asks for (Retry-After, or Hugging Face's RateLimit), up to a minute.
    """
    for wait in _WAITS:
        try:
            return attempt()
        except Exception as error:
            status, headers = _answer(error)
            if status not in _BUSY:
                raise
            wait = max(wait, asked) if (asked := _asked_wait(headers)) else wait
            if wait > _LONGEST_WAIT:
                raise
            _LOG.warning("%s is busy (HTTP %d): asking again in %.0f s", hub, status, wait)
            time.sleep(wait)
    return attempt()


def explain(error: Exception, page: str, login: str | None = None) -> Unavailable:
    """What a user can do about an error of a hub's client. `login`: how to say who one is, where that helps.

    By status code where an answer has one, as the clients' exceptions come and go: huggingface_hub 2 turns a 429 or 5xx
    of its first request into LocalEntryNotFoundError, with the answer in its cause.
    """
    status, headers = _answer(error)
    names = [type(one).__name__ for one in _chain(error)]

    def named(*parts: str) -> bool:
        return any(part in name for part in parts for name in names)

    if status == 429:
        more = f"; those who log in may ask more often: {login}" if login else ""
        return Unavailable(f"limits how often it is asked (HTTP 429): {_later(headers)}{more}")
    if status in _BUSY:
        return Unavailable(f"is busy or in trouble (HTTP {status}): {_later(headers)}")
    if named("RevisionNotFound"):
        return Unavailable(f"has it, but not in this revision: see {page}")
    # Hugging Face answers 401 for a repository that does not exist too.
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
    wait = _asked_wait(headers)
    if wait is None:
        return "run it again in a few minutes"
    return f"it asks to wait {wait:.0f} s; then run it again"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _answer(error: BaseException) -> tuple[int | None, dict[str, str]]:
    """Status and headers (in lower case) of the HTTP answer behind an error of urllib, requests or httpx."""
    for one in _chain(error):
        answer: Any = getattr(one, "response", None)
        status = getattr(answer, "status_code", None) or getattr(one, "code", None) or getattr(one, "error_code", None)
        if isinstance(status, int):
            headers: Any = getattr(one if answer is None else answer, "headers", None) or {}
            return status, {name.lower(): value for name, value in headers.items()}
    return None, {}


def _asked_wait(headers: dict[str, str]) -> float | None:
    """Seconds: of Retry-After, a number or a date, or of Hugging Face's `RateLimit: "api";r=0;t=55`."""
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
