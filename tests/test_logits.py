"""Teacher-forced logits: what may be asked, what is computed for it, and where it is compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

import jax
import jax.monitoring
import numpy as np
import pytest
from small_models import make_deployment, random_params
from test_api import CONFIG, OTHER, PICTURE, TOKENIZER, make_model

import gemma_tpu
from gemma_tpu.engine import programs, validate
from gemma_tpu.engine.validate import sequence_length

LONG = {"max_new_tokens": 150, "stop_tokens": ()}
SOI = TOKENIZER.start_of_image


@pytest.fixture(scope="module", params=[(1, 1), (2, 4)], ids=str)
def model(request):
    with make_model(*request.param) as model:
        yield model


@contextlib.contextmanager
def compiled_by(thread: threading.Thread) -> Iterator[list[str]]:
    names: list[str] = []

    def listen(name: str, *_, **__) -> None:
        if threading.current_thread() is thread and "compile" in name:
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_no_length_compiles_on_the_engines_thread(model: gemma_tpu.Model) -> None:
    """Which has other people's answers to write."""
    rng = np.random.default_rng(0)
    model.encode_images([PICTURE])
    with compiled_by(model.engine._thread) as there, compiled_by(threading.current_thread()) as here:
        for rows, length in ((1, 65), (3, 7)):
            tokens = rng.integers(70, 79, (rows, length))
            assert model.logits(tokens).shape == (rows, length, CONFIG.vocab_size)
        tokens[0, 1], tokens[2, 4] = SOI, SOI
        model.logits(tokens, [[PICTURE], [], [OTHER]])
        model.last_logits([{"role": "user", "content": "Hello"}])
    assert here
    assert there == []


def test_only_what_is_asked_for_is_computed(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.array([[2, 70, SOI, 80, 81], [2, 71, 72, 73, SOI]])
    whole = np.asarray(model.logits(tokens, [[PICTURE], [OTHER]]))
    seen: list[tuple[int, ...]] = []
    head = programs.head

    def record(*args, **kwargs):
        logits, good = head(*args, **kwargs)
        seen.append(logits.shape)
        return logits, good

    record.lower = head.lower
    monkeypatch.setattr(programs, "head", record)
    for positions in ([4], [0, -1, 2], np.array([3, 3]), range(5)):
        some = model.logits(tokens, [[PICTURE], [OTHER]], positions=positions)
        np.testing.assert_allclose(some, whole[:, np.array(positions)], atol=1e-4)
        assert seen.pop() == some.shape == (2, len(positions), CONFIG.vocab_size)
    model.last_logits([{"role": "user", "content": "Hello"}])
    assert seen == [(1, 1, CONFIG.vocab_size)]


def test_what_is_too_much_is_named_before_any_work(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.engine, "_call", lambda *_: pytest.fail("worked"))
    with pytest.raises(
        ValueError, match=r"a row has 193 tokens with its images, and the context holds 192: .*max_context"
    ):
        model.logits(np.ones((1, 193), int))
    with pytest.raises(ValueError, match=r"a row has 10,000,000 tokens"):
        model.logits(np.ones((1, 10_000_000), np.int8))
    with pytest.raises(ValueError, match=r"a row has 197 tokens with its images"):
        model.logits([[SOI, *[5] * 189]], PICTURE)
    monkeypatch.setattr(validate, "MAX_BYTES", 4 * 100 * CONFIG.vocab_size)
    with pytest.raises(ValueError, match=r"logits of 101 tokens are 0\.0 GB, .*fewer rows, or only the positions"):
        model.logits(np.ones((1, 101), int))
    with pytest.raises(ValueError, match="logits of 102 tokens"):
        model.logits(np.ones((51, 3), int), positions=[0, 1])
    for bad in ([5], [-6], [], [0.5], "x", [[0]], 1):
        with pytest.raises(ValueError, match=r"positions must be a list of integers in \[-5, 5\)"):
            model.logits(np.ones((1, 5), int), positions=bad)


def test_lengths_are_few() -> None:
    for context in (8192, 1000, 64, 3):
        lengths = [sequence_length(n, context) for n in range(1, context + 1)]
        assert all(n <= length <= context for n, length in enumerate(lengths, 1))
        assert len(set(lengths)) <= context.bit_length()


def test_another_stream_goes_on_while_a_length_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is held up here until the stream has come to its end."""
    with make_model() as model:
        ended, compile = threading.Event(), model.engine._runner.compile_logits

        def slowly(*args) -> None:
            assert ended.wait(60)
            compile(*args)

        monkeypatch.setattr(model.engine._runner, "compile_logits", slowly)
        stream = model.stream("Hello", **LONG)
        next(stream)
        asking = threading.Thread(target=model.logits, args=([[2, 3, 4]],))
        asking.start()
        assert len(stream.finish().tokens) == 150
        ended.set()
        asking.join(60)
        assert not asking.is_alive()


def test_too_little_memory_for_logits_is_the_callers_error(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(CONFIG, vision=None)
    params = {name: value for name, value in random_params(CONFIG).items() if not name.startswith("vision.")}

    def fail(*_, **__) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room\nmore lines")

    with gemma_tpu.Model(make_deployment(config), params, TOKENIZER) as model:
        stream = model.stream("Hello", **LONG)
        next(stream)
        for method in ("compile_logits", "logits"):
            with monkeypatch.context() as patch:
                patch.setattr(model.engine._runner, method, fail)
                with pytest.raises(RuntimeError, match=r"the devices have no room.*no room$"):
                    model.logits([[2, 3, 4]])
        assert len(stream.finish().tokens) == 150
