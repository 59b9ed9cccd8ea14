"""What every endpoint has around it: an id, a log line, keys, limits, deadlines, errors, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
import pydantic
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from gemma_tpu.engine.errors import ModelClosedError
from gemma_tpu.grammar import GrammarError
from gemma_tpu.server.answers import Answers
from gemma_tpu.server.body import parse
from gemma_tpu.server.errors import APIError, openai_body, refused
from gemma_tpu.server.service import Service

_LOG = logging.getLogger(__name__)
_REQUESTS = logging.getLogger("gemma_tpu.server.requests")  # a line of JSON for each
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_PARSED_INLINE = 1 << 16  # bytes of a body that take no noticeable time
_LAST_WORD = 1  # seconds that a client has to read why its stream ends
_LOOK = 1  # seconds between two looks at the place of a request in the queue
_SILENCE = 15  # seconds without a byte: proxies close connections after 30 or 60
RequestT = TypeVar("RequestT", bound=pydantic.BaseModel)


ErrorBody = Callable[[APIError, str], dict[str, Any]]  # an error and the request's id → JSON


class Exchange:
    """A request, and what its log line will say. `stack` is closed when the response has been sent."""

    def __init__(self, service: Service, scope: Scope, error_body: ErrorBody) -> None:
        self.service, self.request, self.error_body = service, Request(scope), error_body
        given = self.request.headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        self.deadline = asyncio.get_running_loop().time() + service.settings.request_timeout
        self.body, self.begun, self.status = b"", time.perf_counter(), 0
        self.stack = contextlib.ExitStack()
        self.noted: dict[str, Any] = {}  # for the log; never what was said
        self.answers: Answers | None = None  # once they are begun
        self._held_by = "tools"  # the field that holds the answers to a grammar

    @property
    def client(self) -> Hashable:
        """See `Service.client`."""
        return self.service.client(self.request)

    async def read(self, kind: type[RequestT]) -> RequestT:
        """The checked body. APIError for one that is wrong."""
        if self.request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Which a page of another site can send only if CORS lets it.
            raise APIError(415, "the Content-Type must be application/json", code="unsupported_media_type")
        lenient = self.service.settings.lenient
        if len(self.body) <= _PARSED_INLINE:
            return parse(self.body, kind, lenient=lenient)
        return await asyncio.to_thread(parse, self.body, kind, lenient=lenient)

    def refusal(self, error: Exception) -> Response:
        """The response in place of an answer."""
        problem = self.problem(error)
        return JSONResponse(self.error_body(problem, self.id), problem.status, problem.headers)

    def problem(self, error: Exception) -> APIError:
        """What the client is told of an error. One that is nobody's fault but ours is logged, without its message."""
        if isinstance(error, GrammarError):  # which may come after the first tokens
            error = APIError(400, f"{self._held_by}: {error}", param=self._held_by, code="invalid_value")
        if isinstance(error, TimeoutError):
            error = APIError(504, "the answer took longer than this server allows", code="deadline_exceeded")
        if isinstance(error, ModelClosedError):
            error = APIError(503, "the model was unloaded before the answer was whole", code="unloaded")
        if not isinstance(error, APIError):
            place = "".join(traceback.format_tb(error.__traceback__))
            _LOG.error("request %s: %s (its message may repeat the prompt)\n%s", self.id, type(error).__name__, place)
            error = APIError(500, f"internal error; the server's log has it under {self.id}", code="internal_error")
        self.noted["error"] = error.code
        return error

    async def begin(
        self,
        answers: Answers,
        field: str,
        places: Sequence[int | None] | None = None,
        held_by: str | None = None,
    ) -> None:
        """Submits them; the log line will say how they ended. APIError for a prompt that is wrong, see `refused`.

        `held_by`: the field that holds them to a grammar, for errors of it; without one it is `tools`.
        """
        self._held_by = held_by or self._held_by
        try:
            await answers.start()
        except GrammarError:
            raise
        except ValueError as error:
            raise refused(error, field, places) from error
        self.answers = answers
        self.stack.callback(self._note, answers)

    def _note(self, answers: Answers) -> None:
        usage, reasons = answers.usage, [completion.finish_reason for completion in answers.completions]
        tokens = {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
        self.noted |= {**tokens, "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]}
        self.noted["finish_reasons"] = reasons

    def log(self) -> None:
        seconds = round(time.perf_counter() - self.begun, 6)
        request = {"method": self.request.method, "path": self.request.scope["path"], "status": self.status}
        _REQUESTS.info(
            json.dumps({"time": time.time(), "request_id": self.id, **request, "seconds": seconds, **self.noted})
        )


Handler = Callable[[Exchange], Awaitable[Response]]


class Endpoint:
    """An ASGI app. `everyone`: asks for no key, and does not keep the server from ending; for probes, unlogged."""

    def __init__(
        self,
        service: Service,
        handler: Handler,
        method: str | None,
        *,
        everyone: bool = False,
        error_body: ErrorBody = openai_body,
    ) -> None:
        self._service, self._handler, self._method, self._everyone = service, handler, method, everyone
        self._error_body = error_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self._service, scope, self._error_body)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = exchange.id
            await send(message)

        counts = not self._everyone
        self._service.requests += counts
        try:
            with exchange.stack:
                await self._serve(exchange, receive, send_with_id)
        finally:
            if counts:
                exchange.log()
            self._service.requests -= counts

    async def _serve(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        answering = leaving = None
        try:
            if await self._check(exchange, receive, send):
                answering = asyncio.create_task(self._answer(exchange, receive, send))
                leaving = asyncio.create_task(_left(receive))
                await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    exchange.noted["error"] = "client_left"
        finally:
            for task in (answering, leaving):
                if task:
                    task.cancel()
            if answering:
                await asyncio.gather(answering, return_exceptions=True)
        if answering and not answering.cancelled() and (error := answering.exception()):
            raise error

    async def _check(self, exchange: Exchange, receive: Receive, send: Send) -> bool:
        """Whether to go on: the client may ask this, and its whole body is here. Else it has been told why not."""
        try:
            async with asyncio.timeout_at(exchange.deadline):
                if self._method not in (None, exchange.request.method):
                    raise APIError(405, f"this is for {self._method}", code="method_not_allowed")
                if not self._everyone:
                    self._service.check_client(exchange.request)
                exchange.body = await _read_body(exchange.request, receive, self._service.settings.max_body_bytes)
        except _Left:
            exchange.noted["error"] = "client_left"
            return False
        except Exception as error:
            await exchange.refusal(error)(exchange.request.scope, receive, send)
            return False
        return True

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(exchange.deadline):
                response = await self._handler(exchange)
        except Exception as error:
            response = exchange.refusal(error)
        await response(exchange.request.scope, receive, send)


class EventStream(Response):
    """Server-sent events as they come. An error ends them as an event of its own.

    `named`: each event has the name that is its "type", and the last is as the others; else the last is [DONE].

    Until an answer has its first token, comments, which clients pass over, say how many others are given a batch row
    before it (": waiting 3") and keep proxies from closing the connection.
    """

    def __init__(self, exchange: Exchange, events: AsyncGenerator[dict[str, Any]], *, named: bool = False) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._exchange, self._events, self._named = exchange, events, named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            # Waits here for a client that reads slowly. The engine waits for nobody.
            async with (
                asyncio.timeout_at(self._exchange.deadline),
                aclosing(self._events) as events,
                aclosing(self._noting(events, send)) as noted,
            ):
                async for event in noted:
                    await send(self._message(event))
                if not self._named:
                    await send(_body(b"data: [DONE]\n\n"))
        except Exception as error:
            problem = self._exchange.problem(error)
            try:
                async with asyncio.timeout(_LAST_WORD):
                    await send(self._message(self._exchange.error_body(problem, self._exchange.id)))
            except TimeoutError:  # it reads nothing: the connection is closed
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _noting(self, events: AsyncGenerator[dict[str, Any]], send: Send) -> AsyncGenerator[dict[str, Any]]:
        """`events`, with comments to the client before the first token."""
        answers = self._exchange.answers
        while answers and not answers.written:
            coming = asyncio.ensure_future(anext(events, None))
            told, sent = None, time.monotonic()
            try:
                while not (await asyncio.wait({coming}, timeout=_LOOK))[0]:
                    place, silent = answers.waiting_before, time.monotonic() - sent >= _SILENCE
                    if place != told or silent:
                        told, sent = place, time.monotonic()
                        await send(_body(b":\n\n" if place is None else b": waiting %d\n\n" % place))
            finally:
                coming.cancel()
                await asyncio.wait({coming})
            if (event := coming.result()) is None:
                return
            yield event
        async for event in events:
            yield event

    def _message(self, event: dict[str, Any]) -> Message:
        name = f"event: {event.get('type', 'error')}\n" if self._named else ""
        return _body(b"%bdata: %b\n\n" % (name.encode(), orjson.dumps(event)))


def _body(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


class _Left(Exception):
    """The client has closed the connection."""


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, receive: Receive, limit: int) -> bytes:
    too_large = APIError(413, f"the body has more than {limit:,} bytes", code="body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large
        more = message.get("more_body", False)
    return bytes(body)
