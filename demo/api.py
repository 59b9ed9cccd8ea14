"""A small HTTP API for pages of other origins: static/webui_demo.html. Off unless origins are named.

GET  status  the header (`demo.facts.HeaderTexts`) by language
POST load    starts loading; returns the status
POST answer  takes `AnswerRequest`, streams lines of JSON: {"id", "forgotten"}, {"waiting"} by language while queued,
             {"piece"} repeatedly, and {"statistics", "error"} by language (`error` is null on success)
POST stop    takes {"id"} and cancels that answer

Errors have {"error"} by language and a status of 400 or above (422, in FastAPI's format, for a malformed request).
"""

from __future__ import annotations

import asyncio
import functools
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

import fastapi
import pydantic
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from demo.chat import ActiveAnswers, Answer, Exchange, queue_text, submit
from demo.facts import Facts, header_texts, not_ready_text, unsupported_text
from demo.settings import sampling_params
from demo.texts import LANGUAGES, explain, text
from gemma_tpu import Loader

_POLL_INTERVAL = 0.05  # seconds between reads of an unfinished answer
_MAX_BODY = 96 * 2**20  # bytes: pictures of 64 MiB, in base64

_checked_params = pydantic.validate_call(config=pydantic.ConfigDict(allow_inf_nan=False))(sampling_params)

# Any other string would be read as a path on this machine.
Picture = Annotated[str, pydantic.StringConstraints(pattern=r"^data:image/")]


class Turn(pydantic.BaseModel):
    """An earlier question with its pictures, and its answer."""

    question: str
    pictures: tuple[Picture, ...] = ()
    answer: str


class AnswerRequest(pydantic.BaseModel):
    """A question after `turns`; `pictures`: data URLs; `settings`: arguments of `demo.settings.sampling_params`."""

    turns: list[Turn] = []
    question: str
    pictures: list[Picture] = []
    settings: dict[str, Any]


class StopRequest(pydantic.BaseModel):
    id: str


def build_api(loader: Loader, origins: Sequence[str]) -> fastapi.FastAPI:
    """The API, for pages of `origins` and for programs, which send no origin."""
    api = fastapi.FastAPI(title="gemma_tpu demo", docs_url=None, redoc_url=None, openapi_url=None)
    api.add_middleware(_OriginCheck, origins=origins)
    api.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
    )
    active = ActiveAnswers()

    @api.get("/status")
    async def status() -> dict[str, Any]:
        facts = Facts.of(loader.model) if loader.model else None
        return _by_language(lambda lang: header_texts(loader.name, facts, loader.status, lang))

    @api.post("/load")
    async def load() -> dict[str, Any]:
        loader.start()
        return await status()

    @api.post("/answer")
    async def answer(request: AnswerRequest, http: fastapi.Request) -> fastapi.Response:
        model = loader.model
        if model is None:
            return _refusal(503, lambda lang: not_ready_text(loader.status, lang))
        if unsupported_text(model, "en"):
            return _refusal(400, lambda lang: unsupported_text(model, lang))
        history = [Exchange(turn.question, turn.pictures, turn.answer) for turn in request.turns]
        try:
            params = {**_checked_params(**request.settings), "client": http.client and http.client.host}
            # On a thread: reading and resizing pictures would block other visitors.
            arguments = (model, history, request.question, request.pictures, params)
            stream, _, forgotten = await asyncio.to_thread(submit, *arguments)
        except (ValueError, RuntimeError) as error:
            message = explain(error)
            return _refusal(400, lambda lang: text("refused", lang, error=message))
        lines = _stream_lines(Answer(stream, params, model.waiting_before, forgotten=forgotten), active)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    @api.post("/stop")
    async def stop(request: StopRequest) -> None:
        active.stop(request.id)

    return api


async def _stream_lines(answer: Answer, active: ActiveAnswers) -> AsyncIterator[str]:
    """The lines of an answer, which stops if the client disconnects."""
    key, sent, ahead = secrets.token_urlsafe(), 0, None
    with active.track(key) as asked:
        asked.started(answer)
        yield _line(id=key, forgotten=answer.forgotten)
        while True:
            reported, ahead = ahead, answer.queue_position
            if ahead is not None and ahead != reported:
                yield _line(waiting=_by_language(functools.partial(queue_text, ahead)))
            done, content = answer.done, answer.text  # in this order, so that no piece is missed
            if len(content) > sent:
                yield _line(piece=content[sent:])
                sent = len(content)
            if done:
                break
            await asyncio.sleep(_POLL_INTERVAL)
    error = answer.error and explain(answer.error)
    yield _line(
        statistics=_by_language(answer.statistics),
        error=error and _by_language(lambda lang: text("broke", lang, error=error)),
    )


def _line(**values: Any) -> str:
    return json.dumps(values) + "\n"


def _by_language(render: Callable[[str], Any]) -> dict[str, Any]:
    return {lang: render(lang) for lang in LANGUAGES}


def _refusal(code: int, render: Callable[[str], str]) -> JSONResponse:
    return JSONResponse({"error": _by_language(render)}, code)


class _OriginCheck:
    """Rejects requests of other origins: CORS keeps them from reading answers, not from causing work."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins:
            refusal = PlainTextResponse(f"start the demo with --allow-origin {origin}", 403)
        elif "transfer-encoding" in headers or int(headers.get("content-length", 0)) > _MAX_BODY:
            refusal = PlainTextResponse(f"a request has at most {_MAX_BODY:,} bytes, and says how many", 413)
        else:
            return await self._app(scope, receive, send)
        await refusal(scope, receive, send)
