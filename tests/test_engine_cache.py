"""Pages that run out and prefixes that are found again, on real programs: every answer is what the plain path gives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from small_models import DRAFT, gated, make_engine, mesh_of, placed
from test_engine import CONTEXT, MULTIMODAL, NO_STOP, images, is_greedy, prompt, run

from gemma_tpu.engine.engine import Engine
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
    ((1, 1), True, {}),
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
