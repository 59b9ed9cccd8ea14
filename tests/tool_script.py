"""A model that says what each test of tools has written for it, and the functions that those tell of."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from small_models import make_deployment, random_params
from test_api import CONFIG

import gemma_tpu
from gemma_tpu.engine.request import Request
from gemma_tpu.text import Format, Tokenizer

PID: dict[str, Any] = {"type": "object", "properties": {"PID": {"type": "string"}}, "required": ["PID"]}
TOOLS: Any = [
    {"type": "function", "function": {"name": "get_product", "description": "A product's name", "parameters": PID}},
    {"type": "function", "function": {"name": "now"}},
]
# As the Responses API has them.
FUNCTIONS: Any = [{"type": "function", **tool["function"], "strict": False} for tool in TOOLS]
INSTRUCTION = "You have access to functions. If you decide to invoke any of the function(s), you MUST put it in the"
QUESTION: Any = {"role": "user", "content": "What is product 807ZPKBL9V?"}
# Google's documented forms, and a code block: the calls are get_product(PID="807ZPKBL9V") and now().
WRITTEN = [
    '[get_product(PID="807ZPKBL9V"), now()]',
    '{"name": "get_product", "parameters": {"PID": "807ZPKBL9V"}}\n{"name": "now", "parameters": {}}',
    "```tool_code\nprint(get_product(PID='807ZPKBL9V'))\nnow()\n```",
]
CALLED = [("get_product", {"PID": "807ZPKBL9V"}), ("now", {})]
ANSWER = {
    "type": "object",
    "properties": {"name": {"enum": ["now", "then"]}, "steps": {"type": "array"}},
    "required": ["name", "steps"],
    "additionalProperties": False,
}


class Script:
    """What the model says next, three tokens at a time, and the prompts that it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.says: list[str] = []
        self.prompts: list[str] = []
        self.asked: list[gemma_tpu.SamplingParams] = []
        self.reason = "stop"
        self._tokenizer = tokenizer

    def submit(self, tokens: list[int], _: object, sampling_params: gemma_tpu.SamplingParams, *__: object) -> Request:
        self.prompts.append(self._tokenizer.decode(tokens, skip_special=False))
        self.asked.append(sampling_params)
        request = Request(tokens, [], sampling_params)
        written = self._tokenizer.encode(self.says.pop(0), control=True)
        for i in range(0, len(written), 3):
            request.push(written[i : i + 3])
        request.finish(self.reason)
        return request


def make(tokenizer: Tokenizer, format: Format) -> gemma_tpu.Model:
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, max_context=4096)
    return gemma_tpu.Model(make_deployment(config, max_context=4096), random_params(config), tokenizer, format=format)


def script_of(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> Script:
    """What `model` says from now on."""
    script = Script(model.tokenizer)
    monkeypatch.setattr(model.engine, "submit", script.submit)
    return script
