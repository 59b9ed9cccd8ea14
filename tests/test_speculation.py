"""Guessed tokens: an answer is that of decoding token by token, and guesses that are right save steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from plain_answers import plain_answer
from small_models import DRAFT, TEXT, VISION, make_deployment, make_engine, mesh_of, placed, random_params
from test_engine import images, is_greedy, prompt, run

import gemma_tpu
from gemma_tpu.cache.layer import Pages
from gemma_tpu.cache.pool import PagePool
from gemma_tpu.engine import programs, speculation
from gemma_tpu.engine.errors import NotFiniteError
from gemma_tpu.engine.forward import forward
from gemma_tpu.engine.request import Request
from gemma_tpu.engine.rows import page_owners
from gemma_tpu.loading import deploy
from gemma_tpu.ops.sampling import Sampling
from gemma_tpu.options import NO_TOKEN, SamplingParams

CONTEXT = 64
MULTIMODAL = dataclasses.replace(TEXT, vision=VISION)


def plain_look_up(text: list[int], count: int) -> list[int]:
    """One row, by trying every place."""
    best, place = 0, 0
    for i in range(len(text) - 1):
        alike = 0
        while alike < 4 and alike <= i and text[i - alike] == text[len(text) - 1 - alike]:
            alike += 1
        if alike and alike >= best:
            best, place = alike, i
    if not best:
        return [NO_TOKEN] * count
    following = list(text)
    while len(following) <= place + count:
        following.append(following[place + 1 + len(following) - len(text)])
    return following[place + 1 : place + 1 + count]


@pytest.mark.parametrize("tokens", [2, 5, 40])
def test_look_up_finds_the_longest_likeness_and_the_last_of_those(tokens: int) -> None:
    rng, context = np.random.default_rng(tokens), 48
    rows = [rng.integers(0, tokens, length).tolist() for length in range(1, context + 1)]
    text = np.full((len(rows), context), 7, np.int32)  # behind its end a row may hold anything
    for row, held in zip(text, rows, strict=True):
        row[: len(held)] = held
    end = jnp.array([len(row) - 1 for row in rows])
    found = np.asarray(speculation.look_up(jnp.array(text), end, 5))
    assert found.tolist() == [plain_look_up(row, 5) for row in rows]
    assert (found >= 0).any()


@pytest.mark.parametrize(
    "more",
    [
        {"draft_tokens": 1},
        {"draft_tokens": 15, "batch_always": True},
        {"draft_tokens": 3, "draft": DRAFT},
        {"draft_tokens": 4, "draft": dataclasses.replace(DRAFT, vocab_size=70), "sides": (2, 4)},
    ],
    ids=["one", "most", "a draft model", "a draft model on 8 devices"],
)
def test_guesses_save_steps_and_change_no_answer(more: dict[str, Any]) -> None:
    """Ragged prompts with pictures, past the window, up to the context's end; and one that another goes on from."""
    sides = more.pop("sides", (1, 1)) if (more := dict(more)) else (1, 1)
    engine = make_engine(MULTIMODAL, mesh_of(*sides), max_context=CONTEXT, **more)
    cases = [(prompt(3), []), (prompt(20, 6), images(1)), (prompt(CONTEXT - 5), []), (prompt(40), [])]
    most = SamplingParams(max_new_tokens=CONTEXT, stop_tokens=())
    try:
        requests = [engine.submit(tokens, placed(tokens, shown), most) for tokens, shown in cases]
        answers = [run(request) for request in requests]
        for (tokens, shown), answer in zip(cases, answers, strict=True):
            assert len(tokens) + len(answer) == CONTEXT
            assert is_greedy(tokens, answer, shown)
        usage = [request.usage for request in requests]
        assert all(0 <= one.accepted_tokens <= one.draft_tokens for one in usage)
        assert sum(one.accepted_tokens for one in usage) > 0
        tokens = cases[0][0] + answers[0][:9]
        follow_up = engine.submit(tokens, (), SamplingParams(max_new_tokens=9, stop_tokens=()))
        assert run(follow_up) == answers[0][9:18]
        for params in (SamplingParams(max_new_tokens=30, temperature=1.1, top_k=20, seed=4), most):
            stop = dataclasses.replace(params, stop_tokens=[answers[0][12], 7])
            whole = dataclasses.replace(params, stop_tokens=())
            for one in (stop, whole):
                expected = plain_answer(TEXT, random_params(MULTIMODAL), cases[0][0], one, CONTEXT, ())
                assert run(engine.submit(cases[0][0], (), one)) == expected
    finally:
        engine.close()


def test_sampled_answers_are_distributed_as_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of tokens of 8,192 answers against the model's probabilities, where the likeliest first one is guessed.

    By χ² over the pairs that are expected more than 5 times; 1 in 10,000 right samples would fail.
    """
    rows, asked, tokens, temperature, top_k = 128, 8192, [3, 1, 4, 1, 5], 2.5, 12
    params, length = random_params(TEXT), len(tokens) - 1
    following = [tokens, *([*tokens, token] for token in range(TEXT.vocab_size))]
    padded = np.array([row + [0] * (6 - len(row)) for row in following])
    logits = np.asarray(forward(TEXT, params, padded, np.array([len(row) for row in following])), np.float64)
    at_end = np.concatenate([logits[:1, 4], logits[1:, 5]]) / temperature
    chances = np.where(at_end >= np.sort(at_end)[:, -top_k, None], np.exp(at_end), 0)
    chances /= chances.sum(axis=1, keepdims=True)
    expected = asked * chances[0][:, None] * chances[1:]

    guess = int(chances[0].argmax())
    monkeypatch.setattr(speculation, "look_up", lambda _, end, count: jnp.full((len(end), count), guess, jnp.int32))
    deployment = make_deployment(TEXT, max_context=8, max_rows=rows, chunks=(4,), draft_tokens=1)
    pages = Pages(*page_owners(PagePool(deployment.pages, 1, 1), [(i, range(i * 8, i * 8 + 8)) for i in range(rows)]))
    prompts, counts = np.tile(np.array(tokens[:length], np.int32), (rows, 1)), np.full(rows, length, np.int32)
    none, found, right = np.full_like(prompts, -1), np.zeros_like(expected), 0
    for first in range(0, asked, rows):
        state = programs.init_state(deployment)
        chunk = None, prompts, np.zeros(rows, np.int32), counts, None, none, pages
        state, _ = programs.prefill(params, state, *chunk, deployment=deployment, fresh=True)
        sampling = Sampling(
            *(
                jnp.full(rows, value, kind)
                for value, kind in ((temperature, "f4"), (top_k, "i4"), (1, "f4"), (0, "f4"))
            ),
            seed=jnp.arange(first, first + rows, dtype=jnp.uint32),
        )
        row_params = dataclasses.replace(state.row_params, sampling=sampling, ahead=jnp.ones(rows, bool))
        last, left = jnp.full(rows, tokens[-1], jnp.int32), jnp.full(rows, 2, jnp.int32)
        state = dataclasses.replace(state, row_params=row_params, last=last, remaining=left)
        two = np.full(rows, 2, np.int32)
        _, drawn = speculation.decode(params, state, None, two, pages, deployment=deployment, max_steps=2)
        np.add.at(found, tuple(np.asarray(drawn.tokens)[:2]), 1)
        right += int(drawn.guesses[1].sum())
    assert right == found[guess].sum() > asked / 20
    assert found[expected == 0].sum() == 0
    often = expected > 5
    squares = ((found - expected)[often] ** 2 / expected[often]).sum()
    freedom = int(often.sum())
    assert squares < freedom + 3.72 * np.sqrt(2 * freedom) + 9  # the 99.99th percentile of χ², or a little more


def test_a_wrong_guess_that_is_not_finite_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token whose embedding is NaN, guessed at every step; where it is drawn, its request alone fails."""
    poison, params = 13, dict(random_params(TEXT))
    params["embedder.head"] = table = params["embedder.table"]
    params["embedder.table"] = table.at[poison].set(np.nan)
    config = dataclasses.replace(TEXT, tied_head=False)
    monkeypatch.setattr(speculation, "look_up", lambda _, end, count: jnp.full((len(end), count), poison, jnp.int32))
    engine = make_engine(config, params=params, max_context=CONTEXT, draft_tokens=3, max_rows=2)
    most = SamplingParams(max_new_tokens=30, stop_tokens=())
    drawn = dataclasses.replace(most, allowed_token_ids=[poison])
    try:
        requests = [engine.submit(prompt(5), (), most), engine.submit(prompt(6), (), drawn)]
        assert run(requests[0]) == plain_answer(TEXT, random_params(TEXT), prompt(5), most, CONTEXT, ())
        with pytest.raises(NotFiniteError, match="after 1 tokens"):
            run(requests[1])
        again: Request = engine.submit(prompt(6), (), dataclasses.replace(most, forbidden_tokens=[poison]))
        assert len(run(again)) == 30
    finally:
        engine.close()


def test_a_draft_model_needs_the_models_vocabulary() -> None:
    other = dataclasses.replace(DRAFT, vocab_size=200)
    with pytest.raises(ValueError, match=r"draft: its vocabulary has 200 tokens, and the model's 64.*the same family"):
        deploy(TEXT, mesh_of(1, 1), "float32", 64, 1, draft_tokens=2, draft=other)


def test_a_draft_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"draft: .*nothing: no such file or directory"):
        gemma_tpu.load("gemma3-demo", draft=tmp_path / "nothing", progress=False)
    with pytest.raises(ValueError, match=r"draft_tokens must be at least 1 and at most 15, got 0"):
        gemma_tpu.load("gemma3-demo", draft="gemma3-demo", draft_tokens=0)


def test_a_draft_model_is_counted() -> None:
    alone, both = (make_deployment(TEXT, draft_tokens=2, draft=draft).memory for draft in (None, DRAFT))
    assert alone.draft == 0
    cache = 2 * (5 + 2 + 192) * DRAFT.num_kv_heads * DRAFT.head_dim  # a ring with room for guesses, and pages
    weights = sum(x.size for x in random_params(DRAFT).values())
    assert both.draft == 4 * (weights + cache)
    assert both.resident == alone.resident + both.draft - alone.rows + both.rows
