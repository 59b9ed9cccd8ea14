"""Names and passwords, for everything that the server has: the page, its files and events, the API."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_ASK = {"www-authenticate": 'Basic realm="gemma_tpu", charset="UTF-8"'}


class BasicAuth:
    """Middleware that lets nobody in but `accounts`, each USER:PASSWORD (RFC 7617).

    Browsers ask for it once and send it with every request of the page. There is no session that a restart could end.
    """

    def __init__(self, app: ASGIApp, accounts: Sequence[str]) -> None:
        self._app, self._accounts = app, [account.encode() for account in accounts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._lets_in(scope):
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})  # refused by policy
        # The page looks by itself whether the server is there (static/keep.js). A browser that asked for the password
        # at each of these looks would do so over and over; the page is loaded anew instead, which asks once.
        ask = {} if "x-requested-with" in Headers(scope=scope) else _ASK
        await PlainTextResponse("a name and a password are needed", 401, ask)(scope, receive, send)

    def _lets_in(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        if scope.get("method") == "OPTIONS" and "access-control-request-method" in headers:
            return True  # a browser's question before it sends what another page asks it to, without credentials
        kind, _, value = headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(value, validate=True) if kind.lower() == "basic" else b""
        except binascii.Error:
            return False
        # All are compared, so that how long it takes says nothing.
        return any([secrets.compare_digest(given, account) for account in self._accounts])


def read_accounts(path: str) -> list[str]:
    """The accounts in a file that has one USER:PASSWORD a line. ValueError or OSError if it has none, or is no file."""
    try:
        lines = [line for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file in UTF-8") from None
    if not lines:
        raise ValueError(f"{path}: empty; it needs a line USER:PASSWORD")
    for number, line in enumerate(lines, 1):
        if not is_account(line):  # which may hold a password, and is not shown
            raise ValueError(f"{path}: entry {number} is not of the form USER:PASSWORD")
    return lines


def is_account(value: str) -> bool:
    user, colon, password = value.partition(":")
    return bool(user and colon and password)
