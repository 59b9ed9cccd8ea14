"""Runs an app of `build_app` on a socket until it is told to stop, and lets running answers finish."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import signal
import socket
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, cast

import uvicorn

from gemma_tpu import signals

if TYPE_CHECKING:  # importing jax takes seconds, and a port in use is reported before that
    import fastapi

    from gemma_tpu.loader import Loader
    from gemma_tpu.server.service import Service

_LAST_WORD = 0.5  # seconds for a page to show the end of an answer, which it looks for now and then
_CLOSING = 2  # seconds for connections to close once the server has stopped


def listen(host: str, port: int) -> socket.socket:
    """Binds the port before slow work, so that a port in use is reported at once. OSError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {host}:{port}: {reason}; choose another with --port") from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. A name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def closing(loader: Loader) -> Iterator[None]:
    """Closes it at the end, and waits for the program that is being compiled.

    XLA aborts a process that ends amid one of its calls, as KeyboardInterrupt would have it end. So a signal that the
    server does not handle, before it runs or after, ends the process at once, with status 0 as one that it does.
    """
    with signals.exit_at_once(0):
        try:
            yield
        finally:
            loader.close()
            if "jax" in sys.modules:  # else nothing is compiled, and importing it takes seconds
                from gemma_tpu.engine import ahead

                ahead.finish()


class Server(uvicorn.Server):
    """Ends after SIGTERM when nobody is being answered, on the page too, or when `drain_timeout` is over.

    Until then /ready and new requests get 503. SIGINT and a second signal end it at once, and so does a model that
    failed to load, unless somebody can load it again (`reloads`).
    """

    def __init__(self, app: fastapi.FastAPI, *, reloads: bool = False) -> None:
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=_CLOSING)
        super().__init__(config)
        self._app, self._service = app, cast("Service", app.state.service)
        self._reloads, self._last_call, self._last_word = reloads, math.inf, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT or self._service.draining:
            self.should_exit = True
        self._service.draining = True
        self._last_call = time.monotonic() + self._service.settings.drain_timeout

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for route in self._app.router.routes:
            event = getattr(getattr(route, "app", None), "stop_event", None)  # Gradio's: ends the streams of its pages
            if event is not None:
                event.set()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if self._service.busy:
            self._last_word = time.monotonic() + _LAST_WORD
        drained = self._service.draining and time.monotonic() >= self._last_word
        failed = self._service.status.phase == "failed" and not self._reloads
        if drained or failed or time.monotonic() >= self._last_call:
            self.should_exit = True
        return await super().on_tick(counter)
