"""The engine against a plain greedy loop: ragged rows, chunks, wraps, images, conversations, company, and failures."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.monitoring
import numpy as np
import PIL.Image
import pytest
from small_models import TEXT, VISION, gated, make_engine, mesh_of, placed, random_params

from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.engine import programs
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.errors import NotFiniteError
from gemma_tpu.engine.forward import encode_images, forward
from gemma_tpu.engine.request import ImageInput, Request
from gemma_tpu.options import MAX_STOP_TOKENS, SamplingParams
from gemma_tpu.picture import PlacedImage

MULTIMODAL = dataclasses.replace(TEXT, vision=VISION)
CONTEXT = 128
NO_STOP = SamplingParams(max_new_tokens=20, stop_tokens=())


@pytest.fixture(scope="module", params=[False, True], ids=["rows alone", "rows together"])
def engine(request):
    engine = make_engine(MULTIMODAL, max_context=CONTEXT, batch_always=request.param)
    yield engine
    engine.close()


def images(*seeds: int) -> list[ImageInput]:
    pictures = [np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8) for seed in seeds]
    return [ImageInput(PIL.Image.fromarray(picture), VISION.image_size) for picture in pictures]


def prompt(length: int, *image_starts: int, seed: int = 0) -> list[int]:
    tokens = np.random.default_rng([length, seed]).integers(0, TEXT.vocab_size, length)
    for start in image_starts:
        tokens[start : start + VISION.num_soft_tokens] = SOFT_TOKEN
    return tokens.tolist()


def run(request: Request) -> list[int]:
    return [token for tokens in request for token in tokens]


def is_greedy(
    tokens: list[int], answer: list[int], shown: list[ImageInput] = (), *, config=MULTIMODAL, forbidden: list[int] = ()
) -> bool:
    """Whether the plain path, given prompt and answer, would have chosen each token of the answer."""
    padded = np.zeros((1, CONTEXT), int)
    padded[0, : len(tokens) + len(answer)] = tokens + answer
    params = random_params(config)
    pixels = np.stack([image.pixels for image in shown]) if shown else None
    soft = encode_images(MULTIMODAL, params, pixels) if shown else None
    lengths = np.array([len(tokens) + len(answer)])
    logits = np.array(forward(config, params, padded, lengths, soft_tokens=soft))[0]
    logits[:, list(forbidden)] = -np.inf
    return logits[len(tokens) - 1 : len(tokens) - 1 + len(answer)].argmax(-1).tolist() == answer


def test_ragged_requests_answer_as_alone(engine: Engine) -> None:
    shown = images(1, 2)
    cases = [
        (prompt(1), []),
        (prompt(2), []),
        (prompt(50), []),
        (prompt(100), []),
        (prompt(17, 3), shown[:1]),
        (prompt(40, 6, 21), shown),  # the first image would straddle the first chunk's end
        (prompt(9, 1), shown[1:]),
    ]
    # More than there are rows.
    requests = [engine.submit(tokens, placed(tokens, pictures), NO_STOP) for tokens, pictures in cases]
    for (tokens, pictures), request in zip(cases, requests, strict=True):
        answer = run(request)
        assert len(answer) == 20
        assert request.finish_reason == "length"
        assert is_greedy(tokens, answer, pictures)


def test_a_conversation_continues_from_its_cache(engine: Engine) -> None:
    tokens, pictures = prompt(30, 5, seed=1), images(3)
    answer = run(engine.submit(tokens, placed(tokens, pictures), NO_STOP))
    follow_up = tokens + answer + prompt(12, 4, seed=2)
    request = engine.submit(follow_up, placed(follow_up, pictures + images(4)), NO_STOP)
    second = run(request)
    assert request.usage.cached_tokens == len(tokens) + len(answer) - 1
    assert is_greedy(follow_up, second, pictures + images(4))
    # The same tokens with another picture are another prompt.
    other = engine.submit(follow_up, placed(follow_up, images(5, 4)), NO_STOP)
    assert is_greedy(follow_up, run(other), images(5, 4))
    assert other.usage.cached_tokens == 0


def test_stops(engine: Engine) -> None:
    tokens = prompt(20, seed=3)
    answer = run(engine.submit(tokens, (), NO_STOP))
    stop = answer[7]
    request = engine.submit(tokens, (), SamplingParams(max_new_tokens=20, stop_tokens=[stop]))
    assert run(request) == answer[: answer.index(stop)]
    assert request.finish_reason == "stop"
    request = engine.submit(tokens, (), SamplingParams(max_new_tokens=20, stop_tokens=(), forbidden_tokens=[answer[0]]))
    assert answer[0] not in run(request)
    long = prompt(CONTEXT - 3, seed=4)
    request = engine.submit(long, (), SamplingParams(max_new_tokens=50, stop_tokens=()))
    assert len(run(request)) == 3  # the context is full
    assert request.finish_reason == "length"


def test_a_seed_gives_the_same_answer_in_any_company(engine: Engine) -> None:
    options = SamplingParams(max_new_tokens=30, temperature=1.5, top_k=0, top_p=1.0, seed=11, stop_tokens=())
    tokens = prompt(10, seed=5)
    alone = run(engine.submit(tokens, (), options))
    others = [engine.submit(prompt(n), (), dataclasses.replace(options, seed=n)) for n in (3, 33)]
    assert run(engine.submit(tokens, (), options)) == alone
    assert all(len(run(other)) == 30 for other in others)
    assert run(engine.submit(tokens, (), dataclasses.replace(options, seed=12))) != alone


def test_an_abandoned_answer_frees_its_row(engine: Engine) -> None:
    endless = SamplingParams(max_new_tokens=100, stop_tokens=())
    for _ in range(3):
        stream = iter(engine.submit(prompt(5, seed=6), (), endless))
        next(stream)
        stream.close()
    answers = [run(engine.submit(prompt(5, seed=n), (), NO_STOP)) for n in range(7, 12)]
    assert all(len(answer) == 20 for answer in answers)
    assert all(row.request is None for row in engine._scheduler.rows)


def test_a_progress_callback_may_use_the_engine_or_fail(engine: Engine) -> None:
    answers: list[list[int]] = []
    error = LookupError("no window to draw in")

    def ask(label: str, done: int, total: int) -> None:
        if done == 1:
            answers.append(run(engine.submit(prompt(5, seed=3), (), NO_STOP)))

    def fail(label: str, done: int, total: int) -> None:
        raise error

    with pytest.raises(LookupError) as raised:
        engine.warmup(fail)
    assert raised.value is error
    assert engine.warmup(ask) > 3
    assert answers == [run(engine.submit(prompt(5, seed=3), (), NO_STOP))]


def test_a_conversation_goes_on_from_the_cache_after_a_stop(engine: Engine) -> None:
    """Calls under way go on writing into the cache: what they write is delivered, and nothing is read twice."""
    others = [
        engine.submit(prompt(3, seed=n), (), SamplingParams(max_new_tokens=100, stop_tokens=())) for n in range(2)
    ]
    for seed, company in ((30, True), (31, True), (32, False)):
        tokens = prompt(20, seed=seed)
        with gated(engine):
            request = engine.submit(tokens, (), SamplingParams(max_new_tokens=100, stop_tokens=()))
            said = next(iter(request))
            request.cancel()
            answer = said + run(request)
        assert request.finish_reason == "cancelled"
        assert len(answer) < 100
        follow_up = tokens + answer + prompt(5, seed=seed)
        second = engine.submit(follow_up, (), NO_STOP)
        assert is_greedy(follow_up, run(second))
        assert second.usage.cached_tokens == len(tokens) + len(answer) - 1
        if company:
            others.pop().cancel()


def test_those_who_wait_are_told_how_many_come_before_them(engine: Engine) -> None:
    endless = SamplingParams(max_new_tokens=100, stop_tokens=())
    # Nobody is given a row while the engine's thread is busy with this.
    hold, held = threading.Event(), threading.Event()
    waiting = ThreadPoolExecutor(1).submit(engine._call, lambda: (held.set(), hold.wait(60)))
    assert held.wait(60)
    requests = [engine.submit(prompt(4, seed=n), (), endless) for n in range(5)]
    assert [engine.waiting_before(request) for request in requests] == [0, 1, 2, 3, 4]
    requests[1].cancel()
    hold.set()
    waiting.result(60)
    for request in requests[:1] + requests[2:]:
        next(iter(request))
        assert engine.waiting_before(request) is None
        request.cancel()
    for request in requests:
        run(request)
        assert engine.waiting_before(request) is None


def test_warm_programs_serve_every_request_without_compiling(engine: Engine) -> None:
    engine.warmup()
    compiled: list[str] = []

    def listen(name: str, *_, **__) -> None:
        if threading.current_thread() is engine._thread and "backend_compile" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        sampled = SamplingParams(
            max_new_tokens=9, temperature=0.7, top_k=5, top_p=0.8, min_p=0.01, seed=1, stop_tokens=[3]
        )
        first = [engine.submit(prompt(n, seed=20), (), NO_STOP) for n in (1, 6, 12, 90)]
        answers = [run(request) for request in first]
        more = [engine.submit(prompt(n, 2, seed=21), [PlacedImage(2, *images(n))], sampled) for n in (8, 16, 31)]
        more.append(engine.submit([*prompt(90, seed=20), *answers[3], 5, 6], (), sampled))
        assert [len(run(request)) <= 9 for request in more] == [True] * 4
        assert more[-1].usage.cached_tokens > 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_bad_requests_are_refused_before_any_work(engine: Engine) -> None:
    for tokens, shown, message in (
        ([], [], "empty"),
        ([1] * CONTEXT, [], f"has {CONTEXT} tokens, and the context of {CONTEXT} must hold the answer too"),
        (prompt(9, 2), [], r"has 4 soft tokens, .* images of 4 each at \[\]"),
        ([1, 2], [PlacedImage(0, *images(1))], r"has 0 soft tokens, .* images of 4 each at \[0\]"),
        (prompt(9, 2), [PlacedImage(1, *images(1))], r"has 4 soft tokens, .* at \[1\]"),
        (prompt(12, 1, 6), [PlacedImage(6, image) for image in images(1, 2)], r"at \[6, 6\]"),
        (prompt(12, 1, 6), [PlacedImage(start, *images(1)) for start in (6, 1)], r"at \[6, 1\]"),
        ([*[SOFT_TOKEN] * 3, 5, SOFT_TOKEN, 6], [PlacedImage(0, *images(1))], r"at \[0\]"),
        ([1, 64], [], r"ids in \[0, 64\)"),
        ([1, -7, 1], [], r"ids in \[0, 64\)"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.submit(tokens, shown, NO_STOP)
    with pytest.raises(ValueError, match=r"must be ids in \[0, 64\), got \[64\]"):
        engine.submit([1], (), SamplingParams(forbidden_tokens=[64]))
    with pytest.raises(ValueError, match="no token left to write"):
        engine.submit([1], (), SamplingParams(forbidden_tokens=[*range(64), 3]))


def test_a_failed_program_is_everyones_error_and_the_next_request_works(engine: Engine, monkeypatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("the device is out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(programs, "decode", fail)
        for request in [engine.submit(prompt(4), (), NO_STOP) for _ in range(6)]:
            with pytest.raises(RuntimeError, match="out of memory"):
                run(request)
    assert is_greedy(prompt(4), run(engine.submit(prompt(4), (), NO_STOP)))


def test_logits_that_are_not_finite_are_one_requests_error() -> None:
    """A token whose embedding times √D overflows, though its weights are finite; the head has weights of its own."""
    config, bad = dataclasses.replace(TEXT, layers=TEXT.layers[:2], tied_head=False), 7
    options = dataclasses.replace(NO_STOP, forbidden_tokens=[bad])
    params = dict(random_params(config))
    params["embedder.table"] = params["embedder.table"].at[bad].set(3e38)
    engine = make_engine(config, params=params, max_context=CONTEXT, batch_always=True)

    def harmless(length: int, seed: int) -> list[int]:
        return [token if token != bad else bad + 1 for token in prompt(length, seed=seed)]

    def check(requests: list[tuple[list[int], Request]]) -> None:
        for tokens, request in requests:
            answer = run(request)
            assert len(answer) == 20
            assert is_greedy(tokens, answer, config=config, forbidden=[bad])

    try:
        for seed in range(2):
            beside = [harmless(n, seed) for n in (40, 3, 25)]
            others = [(tokens, engine.submit(tokens, (), options)) for tokens in beside[:2]]
            spoiled = engine.submit([*harmless(30, seed), bad, *harmless(9, seed)], (), options)
            others += [(tokens, engine.submit(tokens, (), options)) for tokens in beside[2:]]
            with pytest.raises(
                NotFiniteError, match="NaN or infinity after 0 tokens of an answer: its weights are dam"
            ):
                run(spoiled)
            check(others)
        # In every row, that of the failed ones too; none goes on from a cache that holds NaN.
        check([(tokens, engine.submit(tokens, (), options)) for n in range(5) for tokens in [harmless(5 + n, 3)]])
        errors = []
        for seed in range(4, 12):
            tokens, error = [], None
            try:
                for new in engine.submit(harmless(6, seed), (), NO_STOP):
                    tokens += new
            except NotFiniteError as raised:
                error = str(raised)
                errors.append(error)
            assert (bad in tokens[:19]) == (error is not None)
            if error:
                assert f"after {tokens.index(bad) + 1} tokens" in error
                assert tokens[-1] == bad
        assert errors
        with pytest.raises(NotFiniteError, match="NaN or infinity in row 1: "):
            engine.logits([[1, 2, 3], [4, bad, 5]], np.tile(np.arange(3), (2, 1)))
    finally:
        engine.close()


def test_too_little_memory_is_one_line_with_the_way_out(engine: Engine, monkeypatch) -> None:
    """As the TPU compiler words it, less some hundred lines; for whoever waits for it."""

    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20.5G of 15.7G hbm.\n\nLargest allocations:\n  …")

    with monkeypatch.context() as patch:
        patch.setattr(programs, "prefill", fail)
        for call in (engine.warmup, lambda: run(engine.submit(prompt(4), (), NO_STOP))):
            with pytest.raises(RuntimeError, match=r"max_context or max_rows.*plan.*Used 20\.5G of 15\.7G hbm\.$"):
                call()
    assert is_greedy(prompt(4), run(engine.submit(prompt(4), (), NO_STOP)))


def test_closing_ends_requests_with_an_error() -> None:
    engine = make_engine(TEXT, mesh_of(1, 1), max_context=CONTEXT)
    with gated(engine):
        request = engine.submit(prompt(4), (), SamplingParams(max_new_tokens=100, stop_tokens=()))
        engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        run(request)
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([1])


def test_a_lost_device_ends_everything_though_the_thread_is_stuck(monkeypatch) -> None:
    engine, stuck, free = make_engine(TEXT, mesh_of(1, 1)), threading.Event(), threading.Event()

    def hang(*_):
        stuck.set()
        free.wait()
        raise RuntimeError("released")

    monkeypatch.setattr(engine._runner, "_decode", hang)
    request, later = (engine.submit(prompt(4), (), NO_STOP) for _ in range(2))
    assert stuck.wait(60)
    waiting = ThreadPoolExecutor(1).submit(engine.logits, [[1] * 4], np.zeros((1, 1), int))
    while not engine._tasks:
        time.sleep(0.01)
    engine._abort(RuntimeError("host 2 is gone"))
    for call in (lambda: run(request), lambda: run(later), lambda: waiting.result(60), engine.warmup):
        with pytest.raises(RuntimeError, match="host 2 is gone"):
            call()
    engine.close()  # does not wait for the thread for ever
    free.set()
    engine._thread.join(60)
    assert not engine._thread.is_alive()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.5),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("seed", -1),
        ("seed", 2**32),
        ("stop", [""]),
        ("stop_tokens", list(range(MAX_STOP_TOKENS + 1))),
    ],
)
def test_options_out_of_range_are_errors(name: str, bad: object) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: bad})
