"""HTTP basic authentication for the whole server: page, files, events and API."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from pathlib import Path

from starlette.authentication import SimpleUser
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_CHALLENGE = {"www-authenticate": 'Basic realm="gemma_tpu", charset="UTF-8"'}


class BasicAuth:
    """Middleware that admits only `accounts`, each USER:PASSWORD (RFC 7617).

    Browsers send the credentials with every request, so there is no session that a restart could end. A request that
    is admitted has the account's name as its `user`.
    """

    def __init__(self, app: ASGIApp, accounts: Sequence[str]) -> None:
        self._app, self._accounts = app, [account.encode() for account in accounts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = None if scope["type"] == "lifespan" else self._user(scope)
        if user:
            scope["user"] = SimpleUser(user)
        if user or scope["type"] == "lifespan" or _is_preflight(scope):
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})  # policy violation
        # The page polls the server (static/session_storage.js). A challenge in those responses would make the browser
        # ask for the password repeatedly; the page reloads instead, which asks once.
        challenge = {} if "x-requested-with" in Headers(scope=scope) else _CHALLENGE
        await PlainTextResponse("a name and a password are needed", 401, challenge)(scope, receive, send)

    def _user(self, scope: Scope) -> str | None:
        """Whose account was given; never empty."""
        kind, _, value = Headers(scope=scope).get("authorization", "").partition(" ")
        try:
            credentials = base64.b64decode(value, validate=True) if kind.lower() == "basic" else b""
        except binascii.Error:
            return None
        # Compares all accounts, for constant time.
        known = any([secrets.compare_digest(credentials, account) for account in self._accounts])
        return credentials.decode().partition(":")[0] if known else None


def _is_preflight(scope: Scope) -> bool:
    """Of CORS, which has no credentials."""
    return scope.get("method") == "OPTIONS" and "access-control-request-method" in Headers(scope=scope)


def read_accounts(path: str) -> list[str]:
    """The accounts in a file with one USER:PASSWORD a line. ValueError if it has none, OSError if unreadable."""
    try:
        lines = [line for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file in UTF-8") from None
    if not lines:
        raise ValueError(f"{path}: empty; it needs a line USER:PASSWORD")
    for number, line in enumerate(lines, 1):
        if not is_account(line):  # not quoted: it may contain a password
            raise ValueError(f"{path}: entry {number} is not of the form USER:PASSWORD")
    return lines


def is_account(value: str) -> bool:
    user, colon, password = value.partition(":")
    return bool(user and colon and password)
