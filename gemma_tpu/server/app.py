"""The app: every address with its handler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fastapi
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from gemma_tpu.api import Model
from gemma_tpu.loader import LoadStatus
from gemma_tpu.server import info, messages
from gemma_tpu.server.chat import chat_completions
from gemma_tpu.server.completions import completions
from gemma_tpu.server.endpoint import Endpoint, Handler
from gemma_tpu.server.responses import responses
from gemma_tpu.server.service import LoaderLike, Service
from gemma_tpu.server.settings import Settings

_ENDPOINTS: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/responses", responses),
    ("GET", "/v1/models", info.models),
    ("GET", "/v1/models/{name:path}", info.model),
    ("POST", "/tokenize", info.tokenize),
    ("POST", "/detokenize", info.detokenize),
    ("GET", "/metrics", info.metrics),
)
_ANTHROPIC: tuple[tuple[str, Handler], ...] = (
    ("/v1/messages", messages.messages),
    ("/v1/messages/count_tokens", messages.count_tokens),
)


class _Loaded:
    """A model that was loaded before."""

    def __init__(self, model: Model) -> None:
        self.model, self.status = model, LoadStatus("ready")


def build_app(model: Model | LoaderLike, settings: Settings = Settings()) -> fastapi.FastAPI:
    """A server on a model, or on what a `Loader` will load. Other apps may be mounted on it, behind its addresses.

    `app.state.service` is what its endpoints share (`Service`). The model stays its owner's, who closes it.
    """
    service = Service(_Loaded(model) if isinstance(model, Model) else model, settings)

    @asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # Without FastAPI's documentation pages, which load scripts from a CDN.
    app = fastapi.FastAPI(title="gemma_tpu", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.service = service
    for method, path, handler in _ENDPOINTS:
        app.router.routes.append(Route(path, _with_cors(Endpoint(service, handler, method), settings)))
    for path, handler in _ANTHROPIC:
        endpoint = Endpoint(service, handler, "POST", error_body=messages.error_body)
        app.router.routes.append(Route(path, _with_cors(endpoint, settings)))
    for path, handler in (("/health", info.health), ("/ready", info.ready)):
        app.router.routes.append(Route(path, Endpoint(service, handler, "GET", everyone=True)))
    app.router.default = unknown = Endpoint(service, info.unknown, None)
    app.router.routes.append(Route("/v1/{_:path}", _with_cors(unknown, settings)))  # not of an app that is mounted
    return app


def _with_cors(endpoint: ASGIApp, settings: Settings) -> ASGIApp:
    if not settings.allow_origins:
        return endpoint
    return CORSMiddleware(
        endpoint,
        allow_origins=settings.allow_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id"],
    )
