"""The Chat page as an app, to be mounted beside the endpoints of `gemma_tpu.server.build_app`.

GET  /             the page
GET  /status       what is loaded, and how busy it is
POST /load         starts loading, what the page was started with or another checkpoint of those it may load
POST /unload       frees the model, or gives up its loading
POST /plan         what `gemma-tpu plan` predicts for a TPU slice
POST /seen         the pictures as the model sees them
POST /attention    where in the pictures the model looked for a token
POST /api/…        the server's own endpoint at that path, for this page
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import fastapi
import pydantic
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.chat_page.attention import AttentionRequest, attention
from demo.chat_page.plan import SLICES, PlanRequest, predict
from demo.chat_page.seen import SeenRequest, seen
from demo.chat_page.status import status
from demo.chat_page.texts import CHAT_TEXTS
from demo.checkpoints import Checkpoints
from demo.texts import LANGUAGES, explain
from gemma_tpu import Loader, Model

_STATIC = Path(__file__).parent / "static"
_EXAMPLES = Path(__file__).parent.parent / "examples"
_ICON = Path(__file__).parent.parent / "static" / "favicon.png"
_HEADER = "x-gemma-chat"  # pages of other sites cannot send it: a browser would ask this server first
_MAX_BODY = 96 << 20  # bytes
_FORWARDED = ("v1/chat/completions", "v1/completions", "tokenize")
# Temml sets styles on elements; pictures are blobs; pdf.js runs in a worker.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "worker-src 'self' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)


class LoadRequest(pydantic.BaseModel):
    checkpoint: str | None = None


def build_chat(server: ASGIApp, loader: Loader, checkpoints: Checkpoints | None = None) -> ASGIApp:
    """`server` answers the page's requests (`gemma_tpu.server.build_app`), with the model of `loader`.

    With `checkpoints`, which have that loader, visitors may load another, unload it, and ask for plans.
    """
    app = fastapi.FastAPI(title="gemma_tpu chat", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(page_html(), headers={"cache-control": "no-cache"})

    @app.get("/favicon.png")
    async def icon() -> FileResponse:
        return FileResponse(_ICON)

    choices = {"checkpoints": checkpoints.names, "slices": SLICES} if checkpoints else {}

    @app.get("/status")
    async def now(request: fastapi.Request) -> dict[str, Any]:
        user = request.scope.get("user")  # with accounts: demo/auth.py
        return {**status(loader), **choices, "account": user and user.display_name}

    @app.post("/load")
    async def load(wanted: LoadRequest, request: fastapi.Request) -> dict[str, Any]:
        if wanted.checkpoint is None:
            loader.start()
        elif checkpoints:
            await asyncio.to_thread(checkpoints.choose, wanted.checkpoint)
        else:
            raise ValueError("this server keeps its checkpoint")
        return await now(request)

    @app.post("/unload")
    async def unload(request: fastapi.Request) -> dict[str, Any]:
        if not checkpoints:
            raise ValueError("this server keeps its checkpoint")
        await asyncio.to_thread(checkpoints.unload)
        return await now(request)

    @app.post("/plan")
    async def plan(request: PlanRequest) -> dict[str, Any]:
        if not checkpoints:
            raise ValueError("this server makes no plans")
        return await predict(loader.name, request.topology, _ready(loader).deployment.context)

    @app.post("/seen")
    async def view(request: SeenRequest) -> dict[str, Any]:
        return await asyncio.to_thread(seen, _ready(loader), request)

    one_at_a_time = asyncio.Lock()  # each takes the memory of a whole forward pass

    @app.post("/attention")
    async def look(request: AttentionRequest) -> dict[str, Any]:
        async with one_at_a_time:
            return await asyncio.to_thread(attention, _ready(loader), request)

    @app.exception_handler(ValueError)
    async def refuse(_: fastapi.Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"error": explain(error)}, 400)

    for path in _FORWARDED:
        app.router.routes.append(Route(f"/api/{path}", _Forward(server, f"/{path}")))
    app.router.routes.append(Mount("/static", StaticFiles(directory=_STATIC)))
    app.router.routes.append(Mount("/examples", StaticFiles(directory=_EXAMPLES)))
    return _Guard(app)


def _ready(loader: Loader) -> Model:
    if loader.model is None:
        raise ValueError("the model is not loaded")
    return loader.model


def page_html() -> str:
    encoded = json.dumps(page_data(), ensure_ascii=False).replace("<", "\\u003c")
    return (_STATIC / "index.html").read_text().replace("{{data}}", encoded)


def page_data() -> dict[str, Any]:
    """What the page's scripts read."""
    examples = json.loads((_EXAMPLES / "examples.json").read_text())
    return {"languages": LANGUAGES, "texts": CHAT_TEXTS, "examples": examples}


class _Forward:
    """Passes a request of this page on to the server.

    Its checks of who asks are for other programs: a proxy may have changed Host, unlike Origin. Keys it still checks.
    """

    def __init__(self, server: ASGIApp, path: str) -> None:
        self._server, self._path = server, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"host", b"origin")]
        forwarded: Scope = {
            name: scope[name] for name in ("type", "asgi", "http_version", "method", "scheme", "client")
        }
        forwarded |= {"path": self._path, "raw_path": self._path.encode(), "query_string": b"", "root_path": ""}
        forwarded |= {"headers": [*headers, (b"host", b"localhost")], "server": scope.get("server"), "state": {}}
        await self._server(forwarded, receive, send)


class _Guard:
    """Adds the content security policy, and refuses requests to change something that are not this page's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = _POLICY
                headers.setdefault("cache-control", "no-cache")  # an upgraded server has other scripts
            await send(message)

        refusal = _refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_with_policy)


def _refusal(method: str, headers: Headers) -> ASGIApp | None:
    if method in ("GET", "HEAD"):
        return None
    if _HEADER not in headers:
        return PlainTextResponse(f"requests to change something need the header {_HEADER}", 403)
    length = headers.get("content-length", "")
    if not length.isdecimal():
        return JSONResponse({"error": "a request has to say how long it is: content-length"}, 411)
    if int(length) > _MAX_BODY:
        size = f"{int(length) / (1 << 20):.0f} of at most {_MAX_BODY >> 20} MiB"
        return JSONResponse({"error": f"too much for one request, {size}: ask with fewer or smaller pictures"}, 413)
    return None
