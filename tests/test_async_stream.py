"""`Model.astream`: the answers of `generate`, read on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading

import pytest
from small_models import gated
from test_api import FREE, PROMPTS, make_model
from test_stream_lifetime import LONG, settled, submitted  # noqa: F401 - a fixture

import gemma_tpu
from gemma_tpu.stream import AsyncTextStream

POOL = min(32, (os.cpu_count() or 1) + 4)  # threads of asyncio.to_thread


@pytest.fixture(scope="module")
def model():
    with make_model() as model:
        yield model


async def read(stream: AsyncTextStream) -> gemma_tpu.Completion:
    pieces = [piece async for piece in stream]
    assert "".join(pieces) == stream.completion.text
    assert all(pieces)
    return stream.completion


@pytest.mark.parametrize("stop", [(), ("e",)])
def test_the_answers_are_those_of_generate(model: gemma_tpu.Model, stop: tuple[str, ...]) -> None:
    options = {**FREE, "temperature": 1.0, "stop": stop}
    expected = [model.generate(prompt, seed=i, **options) for i, prompt in enumerate(PROMPTS)]

    async def ask() -> list[gemma_tpu.Completion]:
        return await asyncio.gather(*(read(model.astream(p, seed=i, **options)) for i, p in enumerate(PROMPTS)))

    for got, wanted in zip(asyncio.run(ask()), expected, strict=True):
        assert (got.text, got.tokens, got.finish_reason) == (wanted.text, wanted.tokens, wanted.finish_reason)


def test_no_thread_waits_for_an_answer(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    count, gate, run = 3 * POOL, threading.Event(), model.engine._runner.run

    def held(step):
        gate.wait()
        return run(step)

    async def ask() -> int:
        streams = [await model.astream("Hello", **FREE).start() for _ in range(count)]
        reading = [asyncio.create_task(read(stream)) for stream in streams]
        await asyncio.sleep(0)  # all have begun to read
        threads = threading.active_count()
        gate.set()
        assert [len(answer.tokens) for answer in await asyncio.gather(*reading)] == [12] * count
        return threads

    before = threading.active_count()
    monkeypatch.setattr(model.engine._runner, "run", held)
    assert asyncio.run(ask()) <= before + POOL


@pytest.mark.parametrize("leave", ["break", "cancel the task", "time out", "cancel", "drop", "drop at once"])
def test_a_reader_that_leaves_frees_its_row(model: gemma_tpu.Model, submitted, leave: str) -> None:  # noqa: F811
    async def ask() -> None:
        stream = model.astream("Hello", **LONG)
        if leave == "drop at once":
            await stream.start()
        elif leave == "cancel the task":
            begun = asyncio.Event()

            async def run() -> None:
                async for _ in stream:
                    begun.set()

            task = asyncio.create_task(run())
            await begun.wait()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert submitted[0].cancelled
        elif leave == "time out":
            await anext(stream)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read_rest(stream), 0.01)
            assert submitted[0].cancelled
        elif leave == "cancel":
            await anext(stream)
            stream.cancel()
            await read_rest(stream)
            assert stream.completion.finish_reason == "cancelled"
        else:
            async for _ in stream:
                break

    async def read_rest(stream: AsyncTextStream) -> None:
        async for _ in stream:
            pass

    gc.disable()
    try:
        with gated(model.engine):
            asyncio.run(ask())
            settled(model)
    finally:
        gc.enable()
    assert submitted[0].finish_reason == "cancelled"
    assert len(submitted[0].generated) < LONG["max_new_tokens"]


def test_errors_are_the_readers(model: gemma_tpu.Model, submitted) -> None:  # noqa: F811
    async def ask() -> None:
        with pytest.raises(ValueError, match="temperature"):
            await anext(model.astream("Hello", temperature=-1))
        with pytest.raises(ValueError, match="wizard"):
            await model.astream([{"role": "wizard", "content": "a"}]).start()
        stream = model.astream("Hello", **LONG)
        with pytest.raises(RuntimeError, match="not been started"):
            _ = stream.completion
        await stream.start()
        submitted[0]._stop_watch = fail
        with pytest.raises(OverflowError, match="of this request"):
            await read(stream)
        assert stream.completion.finish_reason == "error"

    def fail(_: list[int]) -> int:
        raise OverflowError("of this request alone")

    asyncio.run(ask())
    assert len(model.generate("Hello", **FREE).tokens) == 12


def test_a_loop_that_ends_first_is_no_error_of_the_engine(model: gemma_tpu.Model, submitted) -> None:  # noqa: F811
    with gated(model.engine, 1):
        stream = asyncio.run(model.astream("Hello", **FREE).start())
        stream.cancel()
    submitted[0].wait()
    assert len(model.generate("Hello", **FREE).tokens) == 12
