"""The demo's page on the server's app, for those who may ask the server."""

from __future__ import annotations

from collections.abc import Sequence

import fastapi
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from gemma_tpu.loader import Loader
from gemma_tpu.server.errors import APIError
from gemma_tpu.server.service import Service

_CHALLENGE = {"www-authenticate": 'Basic realm="gemma_tpu", charset="UTF-8"'}
_VIOLATION = 1008  # close code of a WebSocket, RFC 6455


def add_page(app: fastapi.FastAPI, loader: Loader) -> fastapi.FastAPI:
    """Mounts the page on an app of `build_app`, at every address that is not the app's own.

    A browser asks for the API key as a password, with any name. Enter `demo.uploads.own_upload_folder` before.
    """
    from demo.app import mount  # imports Gradio, which takes seconds

    app.add_middleware(_Guard, service=app.state.service, routes=tuple(app.router.routes))
    return mount(app, loader)


class _Guard:
    """Middleware that checks who asks, wherever no route of `routes` does."""

    def __init__(self, app: ASGIApp, service: Service, routes: Sequence[BaseRoute]) -> None:
        self._app, self._service, self._routes = app, service, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or any(route.matches(scope)[0] is Match.FULL for route in self._routes):
            return await self._app(scope, receive, send)
        connection = HTTPConnection(scope)
        try:
            self._service.check_client(connection)
        except APIError as error:
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": _VIOLATION})
            # The page asks again and again by itself; a challenge there would ask the visitor as often.
            asks = error.status == 401 and "x-requested-with" not in connection.headers
            return await PlainTextResponse(error.message, error.status, _CHALLENGE if asks else {})(
                scope, receive, send
            )
        await self._app(scope, receive, send)
