"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API."""

from __future__ import annotations

import asyncio
import json
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
from gemma_tpu.server.tools import ToolCall

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
_KINDS |= {429: "rate_limit_error", 500: "api_error", 503: "overloaded_error", 504: "timeout_error"}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def error_body(error: APIError, request_id: str) -> dict[str, Any]:
    """The error in Anthropic's shape."""
    told = {"type": _KINDS.get(error.status, "invalid_request_error"), "message": error.message}
    return {"type": "error", "error": told, "request_id": request_id}


async def messages(exchange: Exchange) -> Response:
    service, body = exchange.service, await exchange.read(MessagesRequest)
    model = service.model(body.model)
    exchange.stack.enter_context(service.admit(model, 1))
    options = body.options() | {"max_new_tokens": service.max_new_tokens(model, body.max_tokens)}
    conversation, places, crops = await _conversation(exchange, body)
    options |= {"pan_and_scan": crops, "continue_final": body.continues}
    answers = Answers(model, [conversation], options, service.metrics, use=body.tool_use, client=exchange.client)
    await exchange.begin(answers, "messages", places, held_by="output_config" if body.grammar else None)
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
    head["model"] = body.model or service.settings.model_names[0]
    if body.stream:
        return EventStream(exchange, _events(head, answers), named=True)
    (completion,) = await answers.finish()
    content = [_block(part) for part in answers.parts[0].parts or [""]]
    return JSONResponse({**head, "content": content, **_ending(answers), "usage": _usage(completion)})


async def count_tokens(exchange: Exchange) -> Response:
    body = await exchange.read(CountRequest)
    model = exchange.service.model(body.model)
    conversation, places, crops = await _conversation(exchange, body)
    try:
        tools = body.tool_use.tools
        tokens = await asyncio.to_thread(prompt_tokens, model, conversation, crops, body.continues, tools)
    except ValueError as error:
        raise refused(error, "messages", places) from error
    return JSONResponse({"input_tokens": len(tokens)})


async def _conversation(
    exchange: Exchange, body: CountRequest
) -> tuple[list[Mapping[str, Any]], list[int | None], bool]:
    """Messages for `Model.stream`, the turns that they are from, and whether crops of images are asked for."""
    given, turns, parts = body.as_openai()

    def place(message: int, part: int) -> str:
        return f"messages[{turns[message]}].{parts[message][part]}.source"

    converted, crops = await read_messages(exchange.service, given, place)
    system = [{"role": "system", "content": body.system_text}] if body.system_text else []
    return [*system, *converted], [*[None] * len(system), *turns], crops


def _usage(completion: Completion) -> dict[str, int]:
    """Tokens of the prompt that were not in the cache, and those that were."""
    usage = completion.usage
    new = usage.prompt_tokens - usage.cached_tokens
    cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": usage.cached_tokens}
    return {"input_tokens": new, **cached, "output_tokens": usage.completion_tokens}


def _ending(answers: Answers) -> dict[str, str | None]:
    reason, stop = answers.finish_reason(0), answers.stop_string
    if stop and reason != "tool_calls":
        reason = "stop_sequence"
    return {"stop_reason": _REASONS.get(reason, reason), "stop_sequence": stop}


def _block(part: str | ToolCall) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "tool_use", "id": f"toolu_{part.id}", "name": part.name, "input": json.loads(part.arguments)}


async def _events(head: dict[str, Any], answers: Answers) -> AsyncGenerator[dict[str, Any]]:
    """A block is begun by its first part: texts that follow each other are one, and so is an answer without any."""
    begun = {**head, "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": {**begun, "usage": _usage(answers.completions[0])}}
    index, is_open = 0, False
    async with aclosing(answers.pieces()) as pieces:
        async for _, piece in pieces:
            is_call = isinstance(piece, ToolCall)
            if is_open and is_call:
                yield {"type": "content_block_stop", "index": index}
                index, is_open = index + 1, False
            if not is_open and (piece is not None or index == 0):
                yield {"type": "content_block_start", "index": index, "content_block": _begun(piece or "")}
                is_open = True
            if piece is not None:
                yield {"type": "content_block_delta", "index": index, "delta": _delta(piece)}
            if is_open and (is_call or piece is None):
                yield {"type": "content_block_stop", "index": index}
                index, is_open = index + 1, False
    (completion,) = answers.completions
    yield {"type": "message_delta", "delta": _ending(answers), "usage": _usage(completion)}
    yield {"type": "message_stop"}


def _begun(part: str | ToolCall) -> dict[str, Any]:
    return _block(part) | ({"text": ""} if isinstance(part, str) else {"input": {}})


def _delta(part: str | ToolCall) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text_delta", "text": part}
    return {"type": "input_json_delta", "partial_json": part.arguments}
