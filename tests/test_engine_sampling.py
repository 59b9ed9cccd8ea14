"""What a request can ask, on the engine: each answer against the slow way to it, in company and alone."""

from __future__ import annotations

import threading
from typing import Any

import jax.monitoring
import numpy as np
import pytest
from plain_answers import plain_answer
from small_models import DRAFT, TEXT, make_engine, mesh_of, random_params

from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.forward import forward
from gemma_tpu.engine.request import Request
from gemma_tpu.engine.row_params import allowed_bits
from gemma_tpu.options import SamplingParams

CONTEXT = 64
EOS = (5, 17)


ENGINES: dict[str, dict[str, Any]] = {
    "rows alone": {"batch_always": False},
    "rows together": {},
    "8 devices": {"sides": (2, 4)},
    "rows alone, guesses from the text": {"batch_always": False, "draft_tokens": 3},
    "8 devices, guesses from the text": {"sides": (2, 4), "draft_tokens": 4},
    "rows together, a draft model": {"draft_tokens": 3, "draft": DRAFT},
}


@pytest.fixture(scope="module", params=ENGINES.values(), ids=ENGINES)
def engine(request):
    options = {"sides": (1, 1), "batch_always": True} | request.param
    engine = make_engine(TEXT, mesh_of(*options.pop("sides")), max_context=CONTEXT, eos_tokens=EOS, **options)
    engine.warmup()
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def _nothing_compiles(engine: Engine):
    """Once an engine is warm."""
    compiled: list[str] = []

    def listen(name: str, *_: Any, **__: Any) -> None:
        if threading.current_thread() is engine._thread and "backend_compile" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield
    jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def prompt(seed: int, length: int = 9) -> list[int]:
    return np.random.default_rng([length, seed]).integers(0, TEXT.vocab_size, length).tolist()


def run(request: Request) -> list[int]:
    return [token for tokens in request for token in tokens]


def expected(tokens: list[int], asked: SamplingParams, constraint: Alternating | None = None) -> list[int]:
    return plain_answer(TEXT, random_params(TEXT), tokens, asked, CONTEXT, EOS, constraint)


class Alternating:
    """Every token is of another parity than the one before it. Complete with the tenth."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def mask(self) -> np.ndarray:
        begin = 1 - self.tokens[-1] % 2 if self.tokens else 0
        return allowed_bits(TEXT.vocab_size, range(begin, TEXT.vocab_size, 2), ())

    def push(self, tokens: list[int]) -> bool:
        self.tokens += tokens
        return len(self.tokens) >= 10


LONG: dict[str, Any] = {"max_new_tokens": 18, "stop_tokens": ()}
SEEDED = LONG | {"temperature": 1.3, "top_k": 30, "seed": 3}
ASKED = {
    "repetition_penalty": LONG | {"repetition_penalty": 1.6},
    "presence_penalty": LONG | {"presence_penalty": 2.0},
    "frequency_penalty": SEEDED | {"frequency_penalty": 1.5},
    "all penalties": SEEDED | {"presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 0.8},
    "logit_bias": LONG | {"logit_bias": {1: 1.5, 2: -3, 60: 2.0}},
    "allowed_token_ids": SEEDED | {"allowed_token_ids": range(10, 20)},
    "forbidden_tokens": SEEDED | {"forbidden_tokens": range(0, 64, 2)},
    "min_tokens": {"max_new_tokens": 18, "logit_bias": {EOS[0]: 100.0}, "min_tokens": 7},
    "min_tokens of a stop token": {"max_new_tokens": 18, "logit_bias": {8: 100.0}, "stop_tokens": [8], "min_tokens": 3},
    "ignore_eos": {"max_new_tokens": 18, "logit_bias": {EOS[1]: 100.0}, "ignore_eos": True},
    "eos": {"max_new_tokens": 18, "logit_bias": {EOS[1]: 3.0}},
    "bad_words": LONG | {"allowed_token_ids": [1, 2, 3], "bad_words": [[1, 1], [2, 2], [3, 1, 2], [2, 1]]},
    "nothing": LONG,
    "a seed": SEEDED,
}


def test_each_answer_is_that_of_the_slow_way_in_any_company(engine: Engine) -> None:
    asked = {name: SamplingParams(**options) for name, options in ASKED.items()}
    requests = {name: engine.submit(prompt(i), (), one) for i, (name, one) in enumerate(asked.items())}
    for i, (name, one) in enumerate(asked.items()):
        answer = run(requests[name])
        assert answer == expected(prompt(i), one), name
        assert requests[name].finish_reason == ("length" if len(answer) == 18 else "stop")
    assert len(requests["min_tokens"].generated) == 7
    assert requests["ignore_eos"].generated[-1] == EOS[1]


@pytest.mark.parametrize("company", [0, 1, 5])
def test_a_constraint_holds_for_its_own_row_alone(engine: Engine, company: int) -> None:
    params = SamplingParams(**SEEDED | {"frequency_penalty": 0.5, "logprobs": 0})
    beside = [engine.submit(prompt(n), (), SamplingParams(**LONG)) for n in range(company)]
    constrained = [engine.submit(prompt(n), (), params, None, Alternating()) for n in range(3)]
    for n, request in enumerate(constrained):
        assert run(request) == expected(prompt(n), params, Alternating())
        assert (len(request.generated), request.finish_reason) == (10, "stop")
        assert [one.token for one in request.logprobs] == request.generated
    for n, request in enumerate(beside):
        assert run(request) == expected(prompt(n), SamplingParams(**LONG))


def test_a_constraint_that_fails_is_its_requests_error(engine: Engine) -> None:
    class Failing(Alternating):
        def mask(self) -> np.ndarray:
            if len(self.tokens) == fails_at:
                raise ArithmeticError("no mask")
            return super().mask()

    for fails_at in range(3):
        beside = engine.submit(prompt(1), (), SamplingParams(**LONG))
        request = engine.submit(prompt(0), (), SamplingParams(**SEEDED), None, Failing())
        with pytest.raises(ArithmeticError, match="no mask"):
            run(request)
        assert request.generated == expected(prompt(0), SamplingParams(**SEEDED), Alternating())[:fails_at]
        assert run(beside) == expected(prompt(1), SamplingParams(**LONG))


def test_rows_forget_what_an_earlier_request_asked(engine: Engine) -> None:
    everything = {key: value for options in ASKED.values() for key, value in options.items()}
    everything |= {"allowed_token_ids": None, "forbidden_tokens": [3], "bad_words": [[4, 4]], "min_tokens": 2}
    everything |= {"repetition_penalty": 2.0, "presence_penalty": 2.0}
    for seed in range(2):
        for request in [engine.submit(prompt(n), (), SamplingParams(**everything)) for n in range(5)]:
            run(request)
        for n in range(4):
            assert run(engine.submit(prompt(n), (), SamplingParams(**LONG))) == expected(
                prompt(n), SamplingParams(**LONG)
            ), (seed, n)


def test_log_probabilities_are_those_of_the_models_own_logits(engine: Engine) -> None:
    asked = {top: SamplingParams(**SEEDED, logprobs=top, repetition_penalty=1.5) for top in (0, 3, 20)}
    cases = [(3, asked[3]), (4, asked[20]), (5, SamplingParams(**LONG)), (6, asked[0])]
    for tokens, params, request in [(prompt(n), one, engine.submit(prompt(n), (), one)) for n, one in cases]:
        answer, top = run(request), params.logprobs
        assert answer == expected(tokens, params)
        if top is None:
            assert request.logprobs == []
            continue
        whole = np.zeros((1, CONTEXT), np.int32)
        whole[0, : len(tokens) + len(answer)] = tokens + answer
        length = np.array([len(tokens) + len(answer)])
        logits = np.asarray(forward(TEXT, random_params(TEXT), whole, length), np.float64)[0, len(tokens) - 1 :]
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        assert [one.token for one in request.logprobs] == answer
        for one, log in zip(request.logprobs, logs, strict=False):
            likeliest = np.argsort(-log)[:top]
            assert one.logprob == pytest.approx(log[one.token], abs=1e-4)
            assert [token for token, _ in one.top] == likeliest.tolist()
            assert [value for _, value in one.top] == pytest.approx(log[likeliest], abs=1e-4)


def test_log_probabilities_end_with_the_token_that_completes_a_stop_string(engine: Engine) -> None:
    params = SamplingParams(**LONG, logprobs=1)
    whole = engine.submit(prompt(0), (), params)
    answer = run(whole)
    request = engine.submit(prompt(0), (), params, lambda tokens: 1 if answer[6] in tokens else None)
    assert run(request) == [one.token for one in request.logprobs]
    assert request.logprobs == whole.logprobs[: len(request.generated)]
    stopped = engine.submit(prompt(0), (), SamplingParams(**LONG | {"stop_tokens": [answer[5]]}, logprobs=1))
    assert run(stopped) == [one.token for one in stopped.logprobs] == answer[: answer.index(answer[5])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": {64: 1.0}}, r"logit_bias must be ids in \[0, 64\), got \[64\]"),
        ({"allowed_token_ids": [1, 70]}, r"allowed_token_ids must be ids in \[0, 64\), got \[70\]"),
        ({"bad_words": [[1, 99]]}, r"bad_words must be ids in \[0, 64\), got \[99\]"),
        ({"bad_words": ["no"]}, "without a tokenizer, bad_words are sequences of token ids, got 'no'"),
        ({"bad_words": [[1] * 9]}, r"bad_words have at most 8 tokens each, got \(1, 1"),
        ({"bad_words": [[1, 2]] * 126}, "bad_words are at most 64 sequences .* got 126"),
        ({"allowed_token_ids": [1, 2], "forbidden_tokens": [1], "bad_words": [[2]]}, "no token left to write"),
        ({"allowed_token_ids": []}, "no token left to write"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(engine: Engine, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.submit(prompt(0), (), SamplingParams(**options))
