"""POST /v1/completions: prompts taken as they are."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi.responses import JSONResponse
from starlette.responses import Response

from gemma_tpu.options import TokenLogprob
from gemma_tpu.server.answers import Answers
from gemma_tpu.server.endpoint import EventStream, Exchange
from gemma_tpu.server.logprobs import completion_logprobs, prompt_logprobs
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
        return EventStream(exchange, _chunks(head, answers, body))
    choices = []
    for i, completion in enumerate(await answers.finish()):
        text, before = _echo(body, answers, i)
        tokens = [*before, *completion.logprobs]
        logprobs = None if body.logprobs is None else completion_logprobs(answers.tokenizer, tokens)
        choice = _choice(i, text + completion.text, logprobs, completion.finish_reason)
        if body.return_token_ids:
            choice |= {"token_ids": completion.tokens, "prompt_token_ids": answers.prompt_tokens(i)}
        if body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(answers.tokenizer, answers.prompt(i))
        choices.append(choice)
    return JSONResponse({**head, "choices": choices, "usage": answers.usage})


def _echo(body: CompletionRequest, answers: Answers, index: int) -> tuple[str, list[TokenLogprob]]:
    """What comes before an answer: its prompt and, if log-probabilities are asked for, the prompt's tokens."""
    if not body.echo:
        return "", []
    prompt = body.prompts[index // (body.n or 1)]
    text = prompt if isinstance(prompt, str) else answers.tokenizer.decode(prompt, skip_special=False)
    scored = [] if body.logprobs is None else answers.prompt(index)
    return text, [dataclasses.replace(one, top=one.top[: body.logprobs]) for one in scored]


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


async def _chunks(head: dict[str, Any], answers: Answers, body: CompletionRequest) -> AsyncGenerator[dict[str, Any]]:
    offsets: dict[int, int] = {}  # characters of each answer's tokens, if their log-probabilities are asked for

    def spelled(index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not tokens:
            return None
        logprobs = completion_logprobs(answers.tokenizer, tokens, offsets.get(index, 0))
        offsets[index] = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
        return logprobs

    untold = set(range(len(answers.completions)))  # answers of which there was no chunk yet

    def chunk(index: int, text: str, tokens: Sequence[TokenLogprob], reason: str | None = None) -> dict[str, Any]:
        choice = _choice(index, text, spelled(index, tokens), reason)
        if body.return_token_ids:
            choice |= {"prompt_token_ids": answers.prompt_tokens(index)} if index in untold else {}
            choice["token_ids"] = answers.take_tokens(index)
        untold.discard(index)
        return {**head, "choices": [choice], **answers.chunk_usage(body)}

    for index in sorted(untold) if body.echo else ():
        yield chunk(index, *_echo(body, answers, index))
    async with aclosing(answers.pieces()) as pieces:
        async for index, piece in pieces:
            reason = answers.completions[index].finish_reason if piece is None else None
            yield chunk(index, piece if isinstance(piece, str) else "", answers.take_logprobs(index), reason)
    if body.include_usage:
        yield {**head, "choices": [], "usage": answers.usage}
