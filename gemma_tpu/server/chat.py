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
from gemma_tpu.server.logprobs import chat_logprobs, prompt_logprobs
from gemma_tpu.server.schema import ChatRequest
from gemma_tpu.server.tools import ToolCall


async def chat_completions(exchange: Exchange) -> Response:
    service, body = exchange.service, await exchange.read(ChatRequest)
    model, n = service.model(body.model), body.n or 1
    exchange.stack.enter_context(service.admit(model, n))
    options = body.options(model) | {"max_new_tokens": service.max_new_tokens(model, body.max_new_tokens)}
    messages, options["pan_and_scan"] = await read_messages(service, body.messages)
    asked = {"n": n, "seed": body.seed, "use": body.tool_use, "client": exchange.client}
    answers = Answers(model, [messages], options, service.metrics, **asked)
    await exchange.begin(answers, "messages", held_by=body.held_by)
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk" if body.stream else "chat.completion",
        "created": int(time.time()),
        "model": body.model or service.settings.model_names[0],
    }
    if body.stream:
        return EventStream(exchange, _chunks(head, answers, n, body))
    completions = await answers.finish()
    choices = [_choice(i, completion, answers, body) for i, completion in enumerate(completions)]
    of_prompt: dict[str, Any] = {"prompt_token_ids": answers.prompt_tokens(0)} if body.return_token_ids else {}
    if body.prompt_logprobs is not None:
        of_prompt["prompt_logprobs"] = prompt_logprobs(answers.tokenizer, answers.prompt(0))
    return JSONResponse({**head, "choices": choices, "usage": answers.usage, **of_prompt})


def _choice(index: int, completion: Completion, answers: Answers, body: ChatRequest) -> dict[str, Any]:
    calls, text = answers.parts[index].calls, answers.parts[index].text
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
    message |= {"tool_calls": [_call(call) for call in calls]} if calls else {}
    message |= _thinking(completion)
    logprobs = chat_logprobs(answers.tokenizer, completion.logprobs) if body.logprobs else None
    tokens = {"token_ids": completion.tokens} if body.return_token_ids else {}
    reason = answers.finish_reason(index)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason, **tokens}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": f"call_{call.id}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _thinking(completion: Completion) -> dict[str, str]:
    return {"reasoning_content": completion.thinking} if completion.thinking else {}


async def _chunks(head: dict[str, Any], answers: Answers, n: int, body: ChatRequest) -> AsyncGenerator[dict[str, Any]]:
    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        tokens = answers.take_logprobs(index)
        logprobs = chat_logprobs(answers.tokenizer, tokens) if tokens else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        if body.return_token_ids:
            choice["token_ids"] = answers.take_tokens(index)
        return {**head, "choices": [choice], **answers.chunk_usage(body)}

    for i in range(n):
        prompt = {"prompt_token_ids": answers.prompt_tokens(0)} if body.return_token_ids and not i else {}
        yield chunk(i, {"role": "assistant", "content": ""}) | prompt
    async with aclosing(answers.pieces()) as pieces:
        async for index, piece in pieces:
            if piece is None:
                yield chunk(index, _thinking(answers.completions[index]), answers.finish_reason(index))
            elif isinstance(piece, ToolCall):
                number = answers.parts[index].calls.index(piece)
                yield chunk(index, {"tool_calls": [{"index": number, **_call(piece)}]})
            else:
                yield chunk(index, {"content": piece})
    if body.include_usage:
        yield {**head, "choices": [], "usage": answers.usage}
