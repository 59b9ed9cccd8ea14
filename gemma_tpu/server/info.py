"""Endpoints about the model and the server: names, tokens, health and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from gemma_tpu import prompts
from gemma_tpu.api import Model
from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.prompts import Message
from gemma_tpu.server.endpoint import Exchange
from gemma_tpu.server.errors import APIError, refused
from gemma_tpu.server.images import as_messages
from gemma_tpu.server.schema import DetokenizeRequest, TokenizeRequest
from gemma_tpu.server.service import NO_MODEL


async def models(exchange: Exchange) -> Response:
    names = exchange.service.settings.model_names
    return JSONResponse({"object": "list", "data": [_model(exchange, name) for name in names]})


async def model(exchange: Exchange) -> Response:
    name = exchange.request.path_params["name"]
    if name not in exchange.service.settings.model_names:
        raise APIError(404, "there is no model of this name", param="model", code=NO_MODEL)
    return JSONResponse(_model(exchange, name))


def _model(exchange: Exchange, name: str) -> dict[str, Any]:
    deployment = exchange.service.require_ready().deployment
    root = exchange.service.settings.model_names[0]
    description = {"id": name, "object": "model", "created": exchange.service.created, "owned_by": "gemma_tpu"}
    return {**description, "root": root, "max_model_len": deployment.context}


def prompt_tokens(
    model: Model, messages: list[Message], crops: bool, continue_final: bool = False, tools: Sequence[Any] = ()
) -> list[int]:
    """Those of a conversation. ValueError as `Model.stream` raises it."""
    options = {"tools": tools} if tools else {}
    model.format.check(options)
    reading = prompts.Reading(pan_and_scan=crops, continue_final=continue_final, format_options=options)
    rendered = prompts.render(messages, None, model.format, model.tokenizer, model.deployment.num_soft_tokens, reading)
    return rendered.tokens


async def tokenize(exchange: Exchange) -> Response:
    service, body = exchange.service, await exchange.read(TokenizeRequest)
    model = service.model(body.model)

    def work() -> list[int]:
        if body.prompt is not None:
            return model.tokenizer.encode(body.prompt, bos=body.add_special_tokens, control=True)
        messages, crops = as_messages(body.messages or [], service.settings)
        tools = [tool.function.told for tool in body.tools or ()]
        return prompt_tokens(model, messages, crops, bool(body.continue_final_message), tools)

    try:
        tokens = await asyncio.get_running_loop().run_in_executor(service.image_threads, work)
    except ValueError as error:
        raise refused(error, "prompt" if body.messages is None else "messages") from error
    strings = None
    if body.return_token_strs:
        strings = [name or text.decode(errors="replace") for text, name in model.tokenizer.spell(tokens)]
    counts = {"count": len(tokens), "max_model_len": model.deployment.context}
    return JSONResponse({**counts, "tokens": tokens, "token_strs": strings})


async def detokenize(exchange: Exchange) -> Response:
    body = await exchange.read(DetokenizeRequest)
    model = exchange.service.model(body.model)
    try:
        tokens = [token for token in body.tokens if token != SOFT_TOKEN]
        text = await asyncio.to_thread(model.tokenizer.decode, tokens, skip_special=False)
    except ValueError as error:
        raise refused(error, "tokens") from error
    return JSONResponse({"prompt": text})


async def health(exchange: Exchange) -> Response:
    """Whether the process is of use: 503 where only a restart helps."""
    failure = exchange.service.failure
    return JSONResponse({"status": "failed" if failure else "ok"}, 503 if failure else 200)


async def ready(exchange: Exchange) -> Response:
    """Whether requests are answered; if not, what the server is doing."""
    status = exchange.service.status
    try:
        exchange.service.require_ready()
    except APIError as error:
        progress = {"done": status.done, "total": status.total, "step": status.step}
        headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
        phase = error.code if error.code != "loading" else status.phase
        return JSONResponse({"status": phase, **progress}, 503, headers)
    return JSONResponse({"status": "ready"})


async def metrics(exchange: Exchange) -> Response:
    return Response(exchange.service.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def unknown(exchange: Exchange) -> Response:
    raise APIError(404, "there is no such address", code="not_found")
