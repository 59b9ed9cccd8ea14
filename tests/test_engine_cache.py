"""Pages that run out and prefixes that are found again, on real programs: every answer is what the plain path gives."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
from small_models import DRAFT, TEXT, gated, make_engine, mesh_of, placed, random_params
from test_engine import CONTEXT, MULTIMODAL, NO_STOP, images, is_greedy, prompt, run

from gemma_tpu.config import gemma3_layers
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.step import Drawn, Step
from gemma_tpu.loading import deploy
from gemma_tpu.options import SamplingParams


def make(
    rows: int,
    cache_tokens: int | None,
    stored: int,
    sides: tuple[int, int] = (1, 1),
    together: bool = True,
    **more: Any,
) -> Engine:
    options = {"max_rows": rows, "max_context": CONTEXT, "cache_tokens": cache_tokens, "stored_prefixes": stored}
    return make_engine(MULTIMODAL, mesh_of(*sides), batch_always=together, **options, **more)


KINDS: list[tuple[tuple[int, int], bool, dict[str, Any]]] = [
    ((1, 1), False, {}),
    ((2, 4), True, {}),
    ((1, 1), False, {"draft_tokens": 3, "draft": DRAFT}),
    ((2, 4), True, {"draft_tokens": 2}),
]


@pytest.mark.parametrize(("sides", "together", "more"), KINDS)
def test_what_has_no_room_goes_on_later_with_the_same_answer(
    sides: tuple[int, int], together: bool, more: dict[str, Any]
) -> None:
    """Four answers that need three times the pages there are: greedy ones, and sampled ones against those alone."""
    engine = make(4, CONTEXT, 0, sides, together, **more)
    asked = [prompt(30 + i, seed=i) for i in range(4)]
    sampled = SamplingParams(max_new_tokens=60, stop_tokens=(), temperature=1.0, seed=5)
    greedy = SamplingParams(max_new_tokens=60, stop_tokens=())
    try:
        alone = [run(engine.submit(tokens, (), sampled)) for tokens in asked]
        for params in (greedy, sampled):
            requests = [engine.submit(tokens, (), params) for tokens in asked]
            answers = [run(request) for request in requests]
            assert [len(answer) for answer in answers] == [60] * 4
            if params is sampled:
                assert answers == alone
            else:
                assert all(is_greedy(tokens, answer) for tokens, answer in zip(asked, answers, strict=True))
        found = engine.occupancy()
        assert found.resumed > 0
        assert found.running == found.waiting == found.needed == 0
    finally:
        engine.close()


@pytest.mark.parametrize(("sides", "together", "more"), KINDS)
def test_a_prefix_is_found_again_past_the_window(sides: tuple[int, int], together: bool, more: dict[str, Any]) -> None:
    """Of a row that decodes, of one that has gone on, with a picture in it; and what parts from it inside a page."""
    engine = make(4, None, 4, sides, together, **more)
    system, (picture,) = prompt(45, 20), images(1)
    assert len(system) > 5 * 8

    def ask(more: Sequence[int], cached: int) -> None:
        tokens = [*system, *more]
        request = engine.submit(tokens, placed(tokens, [picture]), NO_STOP)
        answer = run(request)
        assert is_greedy(tokens, answer, [picture])
        assert request.cached_tokens == cached, (more, request.cached_tokens)

    try:
        ask([1, 2, 3], 0)
        ask([4, 5, 6], 0)  # nobody has the rings there; where the two part is stored
        ask([7, 8, 9], len(system))
        ask([7, 8, 9], len(system) + 2)  # the same question: another answer to it
        with gated(engine, 4):
            tokens = [*system, 10, 11, 12]
            running = engine.submit(tokens, placed(tokens, [picture]), NO_STOP)
            next(iter(running))
        ask([10, 11, 13], len(system) + 2)
    finally:
        engine.close()


class Counted:
    """Counts the tokens that an engine prefills; `then` is called after each chunk with the sum."""

    def __init__(self, engine: Engine, then: Callable[[int], None] = lambda count: None) -> None:
        self.tokens, self._run, self._then = 0, engine._runner.run, then
        engine._runner.run = self.run

    def run(self, step: Step) -> Drawn | None:
        self.tokens += sum(int(chunk.count.sum()) for chunk in step.prefill)
        drawn = self._run(step)
        self._then(self.tokens)
        return drawn


@pytest.mark.parametrize(("sides", "together", "stored"), [((1, 1), False, 0), ((2, 4), True, 2)])
def test_what_prompts_begin_with_alike_is_prefilled_once(sides: tuple[int, int], together: bool, stored: int) -> None:
    """Asked at once, with a picture, twelve windows long: the same one four times, three that part, and another."""
    engine = make(8, None, stored, sides, together)
    (picture,), (another,) = images(1), images(2)
    alike = prompt(100, 20)
    asked = [(tokens, picture) for tokens in [alike] * 4 + [alike[:60] + prompt(20, seed=i) for i in range(3)]]
    asked.append((alike, another))
    counted = Counted(engine)
    try:
        with engine._wake:  # which the engine needs to begin any
            requests = [engine.submit(tokens, placed(tokens, [shown]), NO_STOP) for tokens, shown in asked]
        for request, (tokens, shown) in zip(requests, asked, strict=True):
            assert is_greedy(tokens, run(request), [shown])
        assert [request.usage.cached_tokens for request in requests] == [0, 99, 99, 99, 60, 60, 60, 0]
        assert counted.tokens == 99 + 3 * 19 + 99
    finally:
        engine.close()


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_others_go_on_for_one_that_they_waited_for(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves after 48 tokens of its prompt: the next one has these, and the others wait for that one."""
    engine = make(4, None, 0)
    tokens, pictures = prompt(100, 48), images(1, 1, 1)

    def fail() -> None:
        raise MemoryError("no room for the pixels")

    def cancel(count: int) -> None:
        if how == "cancelled" and count == 48:
            requests[0].cancel()

    if how == "failed":
        monkeypatch.setattr(pictures[0], "prepare", fail)
    counted = Counted(engine, cancel)
    try:
        with engine._wake:
            requests = [engine.submit(tokens, placed(tokens, [picture]), NO_STOP) for picture in pictures]
        if how == "failed":
            with pytest.raises(MemoryError):
                run(requests[0])
        else:
            assert run(requests[0]) == []
        for request in requests[1:]:
            assert is_greedy(tokens, run(request), pictures[:1])
        assert [request.usage.cached_tokens for request in requests] == [0, 48, 99]
        assert counted.tokens == 99
    finally:
        engine.close()


def test_a_long_prompt_stops_nobody() -> None:
    """While it is read in chunks of 16 tokens, each chunk is followed by a step of the others."""
    engine = make(3, None, 0)
    calls: list[str] = []
    step = engine._runner.run

    def watch(one):
        calls.extend(["chunk"] * len(one.prefill) + [f"{one.decode.steps}"] * (one.decode is not None))
        return step(one)

    try:
        engine._runner.run = watch
        first = engine.submit(prompt(5), (), SamplingParams(max_new_tokens=100, stop_tokens=()))
        events = iter(first)
        next(events)
        long = engine.submit(prompt(100), (), NO_STOP)
        short = engine.submit(prompt(6), (), SamplingParams(max_new_tokens=1, stop_tokens=()))
        answers = [run(request) for request in (short, long)]
        assert [len(answer) for answer in answers] == [1, 20]
        chunks = [i for i, call in enumerate(calls) if call == "chunk"]
        assert len(chunks) >= 100 // 16 + 2
        between = [b - a for a, b in itertools.pairwise(chunks[1:])]
        assert min(between) >= 2, "two chunks without a step of the running answer between them"
        assert short.clock.first < long.clock.first
    finally:
        engine.close()


def test_a_cache_holds_one_request_at_least() -> None:
    with pytest.raises(ValueError, match=r"at least max_context, 64, got 63.* or a smaller max_context"):
        deploy(MULTIMODAL, mesh_of(1, 1), "float32", 64, 1, 63)


def test_clients_take_turns() -> None:
    engine = make(1, None, 0)
    short = SamplingParams(max_new_tokens=2, stop_tokens=())
    try:
        with gated(engine, 1):
            running = engine.submit(prompt(4), (), NO_STOP, client="a")
            next(iter(running))
            asked = [engine.submit(prompt(5 + i), (), short, client=client) for i, client in enumerate("aaabbc")]
            places = [engine.waiting_before(request) for request in asked]
        for request in asked:
            run(request)
        begun = sorted(asked, key=lambda request: request.clock.assigned)
        assert "".join(request.client for request in begun) == "bcabaa"
        assert places == [begun.index(request) for request in asked]
    finally:
        engine.close()


def test_what_was_not_finite_behind_a_prefix_spoils_no_other() -> None:
    """A prompt with a token whose embedding is NaN, cancelled while it is read; then one that begins like it.

    The two part inside a page, and NaN is in the same page, in others, and in the rings.
    """
    poison, params = 13, dict(random_params(TEXT))
    params["embedder.head"] = table = params["embedder.table"]
    params["embedder.table"] = table.at[poison].set(np.nan)
    config = dataclasses.replace(TEXT, tied_head=False, layers=gemma3_layers(7, window=64)[4:6])
    tokens = [token for token in prompt(60) if token != poison]
    bad = [*tokens[:35], poison, *tokens[20:50]]
    engine = make_engine(config, params=params, max_rows=1, max_context=CONTEXT)
    engine.warmup()
    step = engine._runner.run

    def watch(one: Step) -> Drawn | None:
        if one.prefill and one.prefill[0].start[0] > 30:
            spoilt.cancel()
        return step(one)

    most = SamplingParams(max_new_tokens=20, stop_tokens=(), forbidden_tokens=[poison])
    try:
        with mock.patch.object(engine._runner, "run", watch):
            spoilt = engine.submit(bad, (), most)
            assert run(spoilt) == []
        request = engine.submit(tokens[:40], (), most)
        answer = run(request)
        assert request.cached_tokens == 35
    finally:
        engine.close()
    assert is_greedy(tokens[:40], answer, config=dataclasses.replace(config, tied_head=True), forbidden=[poison])
