"""Requests of every kind, each of which has the same answer whenever it is asked; for tests/server_load.py."""

from __future__ import annotations

import base64
import dataclasses
import io
import random
from typing import Any

from benchmarks.soak import picture

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
_LONG = "You are a helpful assistant who answers in one short sentence and never repeats the question. " * 3
POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "name": {"enum": ["red", "blue", "green"]}}}
POINT |= {"required": ["x", "name"], "additionalProperties": False}
_FORMAT: dict[str, Any] = {"name": "point", "schema": POINT}
ADD = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
_TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds numbers", "parameters": ADD}}]
_QUESTIONS = ("What is 12 + 30?", "Sort these numbers: 42, 7, 19, 3", "Multiply 6 by 7.", "Spell cat.", "Hello", "Why?")
_PICTURES = 6


@dataclasses.dataclass(frozen=True)
class Item:
    """A request of the pool."""

    kind: str
    path: str
    body: dict[str, Any]

    @property
    def n(self) -> int:
        return self.body.get("n", 1)


def data_url(seed: int) -> str:
    file = io.BytesIO()
    picture(seed, 60 + 40 * seed, 90).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


KINDS = ("text", "images", "shared prefix", "n", "logprobs", "penalties", "tools", "schema", "completion")
KINDS += ("responses", "anthropic")


def make_item(r: random.Random, urls: list[str], kind: str) -> Item:
    """One that gives the same answer whenever it is asked."""
    question: Any = f"{r.choice(_QUESTIONS)} {r.randint(0, 99)}"
    if kind == "images" or (kind == "responses" and r.random() < 0.7):
        place = (lambda url: url) if kind == "responses" else (lambda url: {"url": url})
        words = ("input_image", "input_text") if kind == "responses" else ("image_url", "text")
        shown = [{"type": words[0], "image_url": place(url)} for url in r.sample(urls, r.choice([1, 1, 2]))]
        question = [*shown, {"type": words[1], "text": question}]
    messages = [{"role": "user", "content": question}]
    longest = r.randint(1, 32)
    if kind == "responses":
        return Item(kind, RESPONSES, {"input": messages, "max_output_tokens": longest, "temperature": 0})
    if kind == "anthropic":
        return Item(kind, MESSAGES, {"model": "m", "max_tokens": longest, "temperature": 0, "messages": messages})
    body: dict[str, Any] = {"max_tokens": longest, "seed": r.randrange(2**32)}
    body |= r.choice([{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 5, "top_p": 0.8}])
    if kind == "completion":
        body |= {"max_tokens": r.choice([1, longest]), "prompt": [2, *r.choices(range(300, 400), k=r.randint(1, 200))]}
        return Item(kind, COMPLETIONS, body)
    if kind == "shared prefix":
        turns = [("user", "Hello"), ("assistant", "Hello!"), ("user", "And?"), ("assistant", "Well.")]
        before = [("system", _LONG), *turns[: r.choice([0, 2, 4])]]
        messages = [*({"role": role, "content": text} for role, text in before), *messages]
    penalties = {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3, "logit_bias": {"300": 5}}
    body |= {
        "n": {"n": r.randint(2, 4)},
        "logprobs": {"logprobs": True, "top_logprobs": r.randint(0, 5)},
        "penalties": dict(r.sample(sorted(penalties.items()), 2)) | {"stop": ["7", "e"], "min_tokens": 1},
        "tools": {"tools": _TOOLS, "tool_choice": r.choice(["auto", "required"]), "max_tokens": 60},
        "schema": {"response_format": {"type": "json_schema", "json_schema": _FORMAT}, "max_tokens": 60},
    }.get(kind, {})
    return Item(kind, CHAT, body | {"messages": messages})


def next_turn(item: Item, answer: str) -> Item:
    """Goes on from an item and its answer. A completion of one token leaves just its prompt in the cache."""
    if item.path == COMPLETIONS:
        return Item("next turn", COMPLETIONS, item.body | {"max_tokens": 9, "prompt": [*item.body["prompt"], 310, 320]})
    turns = [{"role": "assistant", "content": answer}, {"role": "user", "content": "Why?"}]
    return Item("next turn", CHAT, item.body | {"messages": [*item.body["messages"], *turns]})


def make_pool(count: int, seed: int) -> list[Item]:
    """So many requests, as many of each kind."""
    r, urls = random.Random(seed), [data_url(i) for i in range(_PICTURES)]
    return [make_item(r, urls, KINDS[i % len(KINDS)]) for i in range(count)]
