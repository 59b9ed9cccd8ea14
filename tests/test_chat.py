"""Conversations: what is forgotten when the context is full, answers that are empty, many threads in one chat."""

from __future__ import annotations

import math

import pytest
from test_api import FREE, TOKENIZER, make_model

import gemma_tpu
from gemma_tpu import prompts
from gemma_tpu.text import render_messages


@pytest.fixture(scope="module")
def model():
    with make_model() as model:
        yield model


def talk(turns: int) -> list[dict[str, str]]:
    """Turns of differing lengths after a system message, and a last question."""
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in range(turns):
        messages.append({"role": "user", "content": "a word " * (1 + turn % 3)})
        messages.append({"role": "assistant", "content": "another " * (1 + turn % 2)})
    return [*messages, {"role": "user", "content": "And now?"}]


def without(messages: list[dict[str, str]], dropped: int) -> list[dict[str, str]]:
    return [messages[0], *messages[1 + 2 * dropped :]]


@pytest.mark.parametrize("turns", [0, 1, 5, 23, 40, 41])
def test_the_fewest_turns_are_forgotten_in_few_renders(
    turns: int, model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = talk(turns)
    room = model.engine.max_context - FREE["max_new_tokens"]
    lengths = [len(render_messages(without(messages, n), TOKENIZER, None).tokens) for n in range(turns + 1)]
    expected = next(n for n, length in enumerate(lengths) if length <= room)
    rendered: list[object] = []
    render = prompts.render
    monkeypatch.setattr(prompts, "render", lambda *args: rendered.append(args) or render(*args))
    answer = model.stream(messages, drop_oldest=True, **FREE).finish()
    assert (answer.dropped_turns, answer.usage.prompt_tokens) == (expected, lengths[expected])
    assert len(rendered) <= 3 + math.log2(turns + 1)
    assert (turns < 23) == (expected == 0)
