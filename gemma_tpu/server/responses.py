"""POST /v1/responses: OpenAI's Responses API, for texts, images and functions. Nothing is stored."""

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
from gemma_tpu.server.logprobs import chat_logprobs
from gemma_tpu.server.responses_schema import ResponsesRequest
from gemma_tpu.server.tools import ToolCall

Event = dict[str, Any]


async def responses(exchange: Exchange) -> Response:
    service, body = exchange.service, await exchange.read(ResponsesRequest)
    model = service.model(body.model)
    exchange.stack.enter_context(service.admit(model, 1))
    limit = service.max_new_tokens(model, body.max_output_tokens, "max_output_tokens")
    messages, places, parts = body.as_messages()

    def place(message: int, part: int) -> str:
        return f"{parts[message][part]}.image_url"

    converted, crops = await read_messages(service, messages, place)
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    options = body.options() | {"max_new_tokens": limit, "pan_and_scan": crops}
    asked = {"seed": body.seed, "use": body.tool_use, "client": exchange.client}
    answers = Answers(model, [[*system, *converted]], options, service.metrics, **asked)
    held_by = "text" if body.format.grammar else None
    await exchange.begin(answers, "input", [*[None] * len(system), *places], held_by=held_by)
    events = _events(body, body.model or service.settings.model_names[0], answers)
    if body.stream:
        return EventStream(exchange, events, named=True)
    async with aclosing(events):
        last = [event async for event in events][-1]
    return JSONResponse(last["response"])


def _head(body: ResponsesRequest, model: str) -> dict[str, Any]:
    choice = body.tool_choice or "auto"
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "error": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": body.temperature,
        "text": {"format": body.format.as_sent()},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [{"type": "function", **tool.told, "strict": bool(tool.strict)} for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


class _Output:
    """The items of an answer, and the events that tell of them. A text is one item, and each call is one."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._numbers = itertools.count()
        self._part: dict[str, Any] | None = None  # the text that is being written

    def event(self, name: str, **values: Any) -> Event:
        return {"type": f"response.{name}", "sequence_number": next(self._numbers), **values}

    def _of_item(self, name: str, **values: Any) -> Event:
        return self.event(name, item_id=self.items[-1]["id"], output_index=len(self.items) - 1, **values)

    def _begin(self, item: dict[str, Any]) -> Event:
        self.items.append(item)
        return self.event("output_item.added", item={**item}, output_index=len(self.items) - 1)

    def _end(self, **values: Any) -> Event:
        self.items[-1] |= values
        return self.event("output_item.done", item=self.items[-1], output_index=len(self.items) - 1)

    def text(self, piece: str, logprobs: list[Any]) -> list[Event]:
        events = []
        if self._part is None:
            message = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
            events.append(self._begin({**message, "status": "in_progress", "content": []}))
            self._part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            events.append(self._of_item("content_part.added", content_index=0, part={**self._part, "logprobs": []}))
        self._part["text"] += piece
        self._part["logprobs"] += logprobs
        if piece:
            events.append(self._of_item("output_text.delta", content_index=0, delta=piece, logprobs=logprobs))
        return events

    def end_text(self, status: str = "completed") -> list[Event]:
        if self._part is None:
            return []
        part, self._part = self._part, None
        told = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            self._of_item("output_text.done", content_index=0, **told),
            self._of_item("content_part.done", content_index=0, part=part),
            self._end(status=status, content=[part]),
        ]

    def call(self, call: ToolCall) -> list[Event]:
        item = {"id": f"fc_{call.id}", "type": "function_call", "call_id": f"call_{call.id}", "name": call.name}
        return [
            *self.end_text(),
            self._begin({**item, "arguments": "", "status": "in_progress"}),
            self._of_item("function_call_arguments.delta", delta=call.arguments),
            self._of_item("function_call_arguments.done", arguments=call.arguments),
            self._end(arguments=call.arguments, status="completed"),
        ]


async def _events(body: ResponsesRequest, model: str, answers: Answers) -> AsyncGenerator[Event]:
    """The last has the whole response."""
    output, head = _Output(), _head(body, model)
    begun = {**head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    yield output.event("created", response=begun)
    yield output.event("in_progress", response=begun)
    rest: list[Any] = []  # of the last tokens, which may end without text
    async with aclosing(answers.pieces()) as pieces:
        async for _, piece in pieces:
            logprobs = chat_logprobs(answers.tokenizer, answers.take_logprobs(0))["content"]
            if isinstance(piece, str):
                events = output.text(piece, logprobs)
            else:
                events, rest = (output.call(piece), []) if piece else ([], logprobs)
            for event in events:
                yield event
    (completion,) = answers.completions
    cut = completion.finish_reason == "length"
    status = "incomplete" if cut else "completed"
    if rest or not output.items:
        for event in output.text("", rest):
            yield event
    for event in output.end_text(status):
        yield event
    whole = {"status": status, "incomplete_details": {"reason": "max_output_tokens"} if cut else None}
    yield output.event(status, response={**head, **whole, "output": output.items, "usage": _usage(completion)})


def _usage(completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
