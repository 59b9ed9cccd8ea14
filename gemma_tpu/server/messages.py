"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import JSONResponse
from starlette.responses import Response

from gemma_tpu.options import Completion
from gemma_tpu.server.answers import Answers
from gemma_tpu.server.endpoint import EventStream, Exchange
from gemma_tpu.server.errors import APIError, refused
from gemma_tpu.server.images import read_messages
from gemma_tpu.server.info import prompt_tokens
from gemma_tpu.server.messages_schema import CountRequest, MessagesRequest

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
_KINDS |= {429: "rate_limit_error", 500: "api_error", 503: "overloaded_error", 504: "timeout_error"}
_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def error_body(error: APIError, request_id: str) -> dict[str, Any]:
    """The error in Anthropic's shape."""
    told = {"type": _KINDS.get(error.status, "invalid_request_error"), "message": error.message}
    return {"type": "error", "error": told, "request_id": request_id}


async def messages(exchange: Exchange) -> Response:
    service, body = exchange.service, await exchange.read(MessagesRequest)
    model = service.model(body.model)
    exchange.stack.enter_context(service.admit(model, 1))
    options = body.options() | {"max_new_tokens": service.max_new_tokens(model, body.max_tokens)}
    conversation, crops = await _conversation(exchange, body)
    options |= {"pan_and_scan": crops, "continue_final": body.continues}
    answers = Answers(model, [conversation], options, service.metrics)
    await exchange.begin(answers, "messages", before=bool(body.system_text))
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
    head["model"] = body.model or service.settings.model_names[0]
    if body.stream:
        return EventStream(exchange, _events(head, answers), named=True)
    (completion,) = await answers.finish()
    content = [{"type": "text", "text": completion.text}]
    return JSONResponse({**head, "content": content, **_ending(answers, completion), "usage": _usage(completion)})


async def count_tokens(exchange: Exchange) -> Response:
    body = await exchange.read(CountRequest)
    model = exchange.service.model(body.model)
    conversation, crops = await _conversation(exchange, body)
    try:
        tokens = await asyncio.to_thread(prompt_tokens, model, conversation, crops, body.continues)
    except ValueError as error:
        raise refused(error, "messages", before=bool(body.system_text)) from error
    return JSONResponse({"input_tokens": len(tokens)})


async def _conversation(exchange: Exchange, body: CountRequest) -> tuple[list[Mapping[str, Any]], bool]:
    converted, crops = await read_messages(exchange.service, body.as_openai(), "messages[{}].content[{}].source")
    system = [{"role": "system", "content": body.system_text}] if body.system_text else []
    return [*system, *converted], crops


def _usage(completion: Completion) -> dict[str, int]:
    """Tokens of the prompt that were not in the cache, and those that were."""
    usage = completion.usage
    new = usage.prompt_tokens - usage.cached_tokens
    cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": usage.cached_tokens}
    return {"input_tokens": new, **cached, "output_tokens": usage.completion_tokens}


def _ending(answers: Answers, completion: Completion) -> dict[str, str | None]:
    stop = answers.stop_string
    reason = "stop_sequence" if stop else _REASONS.get(completion.finish_reason, completion.finish_reason)
    return {"stop_reason": reason, "stop_sequence": stop}


async def _events(head: dict[str, Any], answers: Answers) -> AsyncGenerator[dict[str, Any]]:
    begun = {**head, "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": {**begun, "usage": _usage(answers.completions[0])}}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    async with aclosing(answers.pieces()) as pieces:
        async for _, piece in pieces:
            if piece is not None:
                yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
    (completion,) = answers.completions
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": _ending(answers, completion), "usage": _usage(completion)}
    yield {"type": "message_stop"}
