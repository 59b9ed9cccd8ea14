"""POST /v1/responses: OpenAI's Responses API, for texts and images. Nothing is stored."""

from __future__ import annotations

import itertools
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
from gemma_tpu.server.responses_schema import ResponsesRequest


async def responses(exchange: Exchange) -> Response:
    service, body = exchange.service, await exchange.read(ResponsesRequest)
    model = service.model(body.model)
    exchange.stack.enter_context(service.admit(model, 1))
    limit = service.max_new_tokens(model, body.max_output_tokens, "max_output_tokens")
    converted, crops = await read_messages(service, body.as_messages(), _place)
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    options = body.options() | {"max_new_tokens": limit, "pan_and_scan": crops}
    conversation = [*system, *converted]
    answers = Answers(model, [conversation], options, service.metrics, seed=body.seed, client=exchange.client)
    await exchange.begin(answers, "input", [*[None] * len(system), *range(len(converted))], held_by="text")
    answer = _Answer(body, body.model or service.settings.model_names[0])
    if body.stream:
        return EventStream(exchange, _events(answer, answers), named=True)
    (completion,) = await answers.finish()
    return JSONResponse(answer.response(completion))


def _place(message: int, part: int) -> str:
    return f"input[{message}].content[{part}].image_url"


class _Answer:
    """The response as it stands at the time: begun, or whole."""

    def __init__(self, body: ResponsesRequest, model: str) -> None:
        self.item_id = f"msg_{uuid.uuid4().hex}"
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": bool(body.parallel_tool_calls),
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": body.format.as_sent()},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": body.truncation or "disabled",
            "user": body.user,
        }

    def response(self, completion: Completion | None) -> dict[str, Any]:
        if completion is None:
            begun = {"status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
            return {**self._head, **begun}
        cut = completion.finish_reason == "length"
        return {
            **self._head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self.item(completion)],
            "usage": _usage(completion),
        }

    def item(self, completion: Completion | None) -> dict[str, Any]:
        head = {"id": self.item_id, "type": "message", "role": "assistant"}
        if completion is None:
            return {**head, "status": "in_progress", "content": []}
        status = "incomplete" if completion.finish_reason == "length" else "completed"
        return {**head, "status": status, "content": [_part(completion.text)]}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


async def _events(answer: _Answer, answers: Answers) -> AsyncGenerator[dict[str, Any]]:
    numbers = itertools.count()
    item: dict[str, Any] = {"output_index": 0}
    part: dict[str, Any] = {**item, "item_id": answer.item_id, "content_index": 0}

    def event(name: str, **values: Any) -> dict[str, Any]:
        return {"type": f"response.{name}", "sequence_number": next(numbers), **values}

    yield event("created", response=answer.response(None))
    yield event("in_progress", response=answer.response(None))
    yield event("output_item.added", item=answer.item(None), **item)
    yield event("content_part.added", part=_part(""), **part)
    async with aclosing(answers.pieces()) as pieces:
        async for _, piece in pieces:
            if isinstance(piece, str):
                yield event("output_text.delta", delta=piece, logprobs=[], **part)
    (completion,) = answers.completions
    yield event("output_text.done", text=completion.text, logprobs=[], **part)
    yield event("content_part.done", part=_part(completion.text), **part)
    yield event("output_item.done", item=answer.item(completion), **item)
    whole = answer.response(completion)
    yield event(whole["status"], response=whole)
