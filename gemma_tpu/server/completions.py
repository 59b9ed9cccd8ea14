"""POST /v1/completions: prompts taken as they are."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi.responses import JSONResponse
from starlette.responses import Response

from gemma_tpu.server.answers import Answers
from gemma_tpu.server.endpoint import EventStream, Exchange
from gemma_tpu.server.logprobs import completion_logprobs
from gemma_tpu.server.schema import CompletionRequest


async def completions(exchange: Exchange) -> Response:
    service, body = exchange.service, await exchange.read(CompletionRequest)
    model, n, prompts = service.model(body.model), body.n or 1, body.prompts
    exchange.stack.enter_context(service.admit(model, n * len(prompts), "prompt" if len(prompts) > 1 else "n"))
    options = body.options(model) | {"max_new_tokens": service.max_new_tokens(model, body.max_new_tokens), "raw": True}
    answers = Answers(model, prompts, options, service.metrics, n=n, seed=body.seed, client=exchange.client)
    await exchange.begin(answers, "prompt", held_by=body.held_by)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model or service.settings.model_names[0],
    }
    if body.stream:
        return EventStream(exchange, _chunks(head, answers, body.include_usage))
    done = await answers.finish()
    choices = []
    for i, completion in enumerate(done):
        logprobs = None if body.logprobs is None else completion_logprobs(answers.tokenizer, completion.logprobs)
        choices.append(_choice(i, completion.text, logprobs, completion.finish_reason))
    return JSONResponse({**head, "choices": choices, "usage": answers.usage})


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


async def _chunks(head: dict[str, Any], answers: Answers, include_usage: bool) -> AsyncGenerator[dict[str, Any]]:
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    offsets: dict[int, int] = {}  # characters of each answer's tokens, if their log-probabilities are asked for
    async with aclosing(answers.pieces()) as pieces:
        async for index, piece in pieces:
            reason = answers.completions[index].finish_reason if piece is None else None
            logprobs = None
            if tokens := answers.take_logprobs(index):
                logprobs = completion_logprobs(answers.tokenizer, tokens, offsets.get(index, 0))
                offsets[index] = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
            choice = _choice(index, piece if isinstance(piece, str) else "", logprobs, reason)
            yield {**head, "choices": [choice], **usage}
    if include_usage:
        yield {**head, "choices": [], "usage": answers.usage}
