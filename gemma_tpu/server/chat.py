"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi.responses import JSONResponse
from starlette.responses import Response

from gemma_tpu.options import Completion
from gemma_tpu.server.answers import Answers
from gemma_tpu.server.endpoint import EventStream, Exchange
from gemma_tpu.server.images import read_messages
from gemma_tpu.server.schema import ChatRequest


async def chat_completions(exchange: Exchange) -> Response:
    service, body = exchange.service, await exchange.read(ChatRequest)
    model, n = service.model(body.model), body.n or 1
    exchange.stack.enter_context(service.admit(model, n))
    options = body.options() | {"max_new_tokens": service.max_new_tokens(model, body.max_new_tokens)}
    messages, options["pan_and_scan"] = await read_messages(service, body.messages)
    answers = Answers(model, [messages], options, service.metrics, n=n, seed=body.seed)
    await exchange.begin(answers, "messages")
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk" if body.stream else "chat.completion",
        "created": int(time.time()),
        "model": body.model or service.settings.model_names[0],
    }
    if body.stream:
        return EventStream(exchange, _chunks(head, answers, n, body.include_usage))
    completions = await answers.finish()
    choices = [_choice(i, completion) for i, completion in enumerate(completions)]
    return JSONResponse({**head, "choices": choices, "usage": answers.usage})


def _choice(index: int, completion: Completion) -> dict[str, Any]:
    message = {"role": "assistant", "content": completion.text, "refusal": None, **_thinking(completion)}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": completion.finish_reason}


def _thinking(completion: Completion) -> dict[str, str]:
    return {"reasoning_content": completion.thinking} if completion.thinking else {}


async def _chunks(
    head: dict[str, Any], answers: Answers, n: int, include_usage: bool
) -> AsyncGenerator[dict[str, Any]]:
    usage: dict[str, Any] = {"usage": None} if include_usage else {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**head, "choices": [choice], **usage}

    for i in range(n):
        yield chunk(i, {"role": "assistant", "content": ""})
    async with aclosing(answers.pieces()) as pieces:
        async for index, piece in pieces:
            if piece is None:
                completion = answers.completions[index]
                yield chunk(index, _thinking(completion), completion.finish_reason)
            else:
                yield chunk(index, {"content": piece})
    if include_usage:
        yield {**head, "choices": [], "usage": answers.usage}
