"""A small HTTP API for pages that the demo does not serve itself: static/webui_demo.html. Off unless origins are named.

GET  status  the header (`demo.facts.Head`) by language
POST load    the same, once loading has begun
POST answer  takes `Asked`; gives lines of JSON while the answer is written: {"id", "forgotten"} first, {"waiting"} by
             language while others come before it, then {"piece"} after {"piece"}, and {"statistics", "error"} by
             language last (`error` is null if all went well)
POST stop    takes {"id"}: that answer soon ends

What is refused has {"error"} by language and a status of 400 or above (422, with FastAPI's own words, if malformed).
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

from demo.chat import Answer, Exchange, Readers, in_line, submit
from demo.facts import Facts, head, unfit, unready
from demo.settings import options
from demo.state import Loader, explain
from demo.texts import LANGUAGES, text

_LOOK_EVERY = 0.05  # seconds between two looks at an answer that is being written
_MAX_BODY = 96 * 2**20  # bytes: pictures of 64 MiB, in base64

_checked_options = pydantic.validate_call(config=pydantic.ConfigDict(allow_inf_nan=False))(options)

# Anything else would be read as a path on this machine.
Picture = Annotated[str, pydantic.StringConstraints(pattern=r"^data:image/")]


class Turn(pydantic.BaseModel):
    """An earlier question with the pictures shown in it, and its answer."""

    question: str
    pictures: tuple[Picture, ...] = ()
    answer: str


class Asked(pydantic.BaseModel):
    """A question after `turns`, about `pictures` (data URLs); `settings` are named as in `demo.settings.options`."""

    turns: list[Turn] = []
    question: str
    pictures: list[Picture] = []
    settings: dict[str, Any]


class Stop(pydantic.BaseModel):
    id: str


def build_api(loader: Loader, origins: Sequence[str]) -> fastapi.FastAPI:
    """The API, for pages of `origins` alone. Programs, which send no origin, may use it too."""
    api = fastapi.FastAPI(title="gemma_tpu demo", docs_url=None, redoc_url=None, openapi_url=None)
    api.add_middleware(_Gate, origins=origins)
    api.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
    )
    readers = Readers()

    @api.get("/status")
    async def status() -> dict[str, Any]:
        facts = Facts.of(loader.model) if loader.model else None
        return _by_language(lambda lang: head(loader.name, facts, loader.status, lang))

    @api.post("/load")
    async def load() -> dict[str, Any]:
        loader.start()
        return await status()

    @api.post("/answer")
    async def answer(asked: Asked) -> fastapi.Response:
        model = loader.model
        if model is None:
            return _refusal(503, lambda lang: unready(loader.status, lang))
        if unfit(model, "en"):
            return _refusal(400, lambda lang: unfit(model, lang))
        told = [Exchange(turn.question, turn.pictures, turn.answer) for turn in asked.turns]
        try:
            chosen = _checked_options(**asked.settings)
            # Reading and resizing pictures takes a while, which others should not notice.
            stream, _, forgotten = await asyncio.to_thread(submit, model, told, asked.question, asked.pictures, chosen)
        except (ValueError, RuntimeError) as error:
            message = explain(error)
            return _refusal(400, lambda lang: text("refused", lang, error=message))
        lines = _write(Answer(stream, chosen, model.waiting_before, forgotten=forgotten), readers)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    @api.post("/stop")
    async def stop(asked: Stop) -> None:
        readers.leave(asked.id)

    return api


async def _write(answer: Answer, readers: Readers) -> AsyncIterator[str]:
    """The lines of an answer. It is stopped if nobody waits for them any more."""
    name, sent, before = secrets.token_urlsafe(), 0, None
    with readers.reading(name, answer):
        yield _line(id=name, forgotten=answer.forgotten)
        while True:
            told, before = before, answer.waiting_for
            if before is not None and before != told:
                yield _line(waiting=_by_language(functools.partial(in_line, before)))
            done, written = answer.done, answer.text  # in this order, or the last piece could be missed
            if len(written) > sent:
                yield _line(piece=written[sent:])
                sent = len(written)
            if done:
                break
            await asyncio.sleep(_LOOK_EVERY)
    error = answer.error and explain(answer.error)
    yield _line(
        statistics=_by_language(answer.statistics),
        error=error and _by_language(lambda lang: text("broke", lang, error=error)),
    )


def _line(**values: Any) -> str:
    return json.dumps(values) + "\n"


def _by_language(say: Callable[[str], Any]) -> dict[str, Any]:
    return {lang: say(lang) for lang in LANGUAGES}


def _refusal(code: int, say: Callable[[str], str]) -> JSONResponse:
    return JSONResponse({"error": _by_language(say)}, code)


class _Gate:
    """Turns away pages of other origins, which could make the model work though they cannot read what it says."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        source = headers.get("origin")
        if source is not None and source not in self._origins:
            refusal = PlainTextResponse(f"start the demo with --allow-origin {source}", 403)
        elif "transfer-encoding" in headers or int(headers.get("content-length", 0)) > _MAX_BODY:
            refusal = PlainTextResponse(f"a request has at most {_MAX_BODY:,} bytes, and says how many", 413)
        else:
            return await self._app(scope, receive, send)
        await refusal(scope, receive, send)
