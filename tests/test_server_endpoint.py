"""Deadlines, clients that leave, errors of one request, and the log."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server_site import (
    CHAT,
    HELLO,
    LONG,
    Site,
    events,
    held,
    idle,
    make_model,
    serve,
    streaming,
    wait_for,
)
from small_models import gated

import gemma_tpu
from gemma_tpu.server import Settings, endpoint

KEY = {"authorization": "Bearer secret-1"}


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


def test_a_deadline(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(request_timeout=0.2)) as site, held(model):
        assert site.refused(504)["code"] == "deadline_exceeded"
        with streaming(site) as lines:
            told = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        assert told[-1]["error"]["code"] == "deadline_exceeded"
    wait_for(lambda: idle(model))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(site: Site, model: gemma_tpu.Model, stream: bool) -> None:
    with gated(model.engine):
        if stream:
            with streaming(site) as lines:
                assert next(events(lines))["choices"]
                wait_for(lambda: model.engine.occupancy()[0] == 1)
        else:
            body = json.dumps({"messages": HELLO, **LONG}).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            with socket.create_connection(("127.0.0.1", httpx.URL(site.url).port)) as client:
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                wait_for(lambda: model.engine.occupancy()[0] == 1)
        wait_for(lambda: idle(model) and site.service.requests == 0)
    assert site.ask().status_code == 200


def test_a_client_that_leaves_while_it_waits(site: Site, model: gemma_tpu.Model) -> None:
    with held(model), contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(streaming(site))
        wait_for(lambda: site.service.requests == 5)
        stack.close()
        wait_for(lambda: site.service.requests == 0)
    wait_for(lambda: idle(model))


def test_the_place_in_the_queue(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments say it where it changes, and keep the connection alive; the answer is the same."""
    monkeypatch.setattr(endpoint, "_LOOK", 0.02)
    rows = model.deployment.rows
    with serve(model) as site, contextlib.ExitStack() as stack:
        alone = site.ask(stream=True, **LONG).text
        assert not re.search("^:", alone, re.MULTILINE)
        with held(model) as gate:
            for i in range(rows + 2):
                stack.enter_context(streaming(site))
                wait_for(lambda i=i: sum(model.engine.occupancy()[:2]) == i + 1)
            with streaming(site) as lines:
                told = []
                for line in lines:
                    told.append(line)
                    if line.startswith(": waiting"):
                        gate.set()
    places = [int(line.removeprefix(": waiting ")) for line in told if line.startswith(": waiting")]
    assert places[0] >= 2  # the device has not begun: those before it wait too
    assert places == sorted(places, reverse=True)
    assert text_of(events(iter(told))) == text_of(events(iter(alone.splitlines())))


def test_a_silent_stream_is_kept_alive(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a long prompt is read, as while the device is busy with the first of its calls."""
    monkeypatch.setattr(endpoint, "_LOOK", 0.02)
    monkeypatch.setattr(endpoint, "_SILENCE", 0.05)
    with serve(model) as site, held(model) as gate, streaming(site) as lines:
        assert [line for line in itertools.islice(lines, 8) if line][1:] == [":"] * 3
        gate.set()
        assert text_of(events(lines)) == text_of(events(iter(site.ask(stream=True, **LONG).text.splitlines())))


def text_of(chunks: Iterator[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_a_client_that_never_sends_its_body(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(request_timeout=0.2)) as site:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"
        )
        with socket.create_connection(("127.0.0.1", httpx.URL(site.url).port)) as client:
            client.sendall(head.encode())
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 504 ")


def test_a_slow_reader_keeps_nobody_waiting(model: gemma_tpu.Model) -> None:
    """Its answers end in the engine, and another's comes whole, while it reads nothing and the server cannot send."""
    with serve(model, buffer=16384) as site, streaming(site, n=64, max_tokens=100, temperature=1.0, seed=1) as lines:
        wait_for(lambda: idle(model))
        assert site.ask().status_code == 200
        wait_for(lambda: site.service.requests == 1)
        read = list(events(lines))
    ended = [event["choices"][0]["finish_reason"] for event in read if event["choices"][0]["finish_reason"]]
    assert len(ended) == 64


def test_an_error_of_one_request(site: Site, model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    said = "se" + "cret"

    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError(said)

    submit, whole = model.engine.submit, site.ask(seed=1, temperature=1).json()["choices"]
    with monkeypatch.context() as patch:
        patch.setattr(model.engine, "submit", fails)
        error = site.refused(500)
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert said not in error["message"]
    assert said not in caplog.text
    assert "ZeroDivisionError" in caplog.text

    def spoiled(tokens, images, sampling_params, watch=None, *rest):
        return submit(tokens, images, sampling_params, fails if sampling_params.seed == 3 else watch, *rest)

    monkeypatch.setattr(model.engine, "submit", spoiled)
    with streaming(site, seed=3) as bad, streaming(site, seed=1, temperature=1, max_tokens=8) as good:
        told = [json.loads(line.removeprefix("data: ")) for line in bad if line]
        assert told[-1]["error"]["code"] == "internal_error"
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events(good))
    assert text == whole[0]["message"]["content"]
    assert site.refused(500, seed=3)["code"] == "internal_error"


def test_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    wait_for(lambda: site.service.requests == 0)
    caplog.set_level(logging.INFO, "gemma_tpu.server.requests")
    caplog.clear()
    response = site.ask(headers=KEY | {"x-request-id": "mine-1"}, messages=[{"role": "user", "content": "A secret"}])
    assert response.headers["x-request-id"] == "mine-1"
    refused = site.ask(headers={"x-request-id": "no\tid" + "x" * 200}, temperature="A secret")
    with streaming(site, max_tokens=3) as lines:
        list(events(lines))
    wait_for(lambda: len(caplog.records) == 3)
    lines = [json.loads(record.message) for record in caplog.records]
    assert "secret" not in caplog.text
    first, second, third = lines
    assert first["request_id"] == "mine-1"
    assert (first["method"], first["path"], first["status"]) == ("POST", CHAT, 200)
    usage = response.json()["usage"]
    assert (first["prompt_tokens"], first["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert first["finish_reasons"] == [response.json()["choices"][0]["finish_reason"]]
    assert re.fullmatch(r"req-[0-9a-f]{32}", second["request_id"])
    assert (second["request_id"], second["status"]) == (refused.headers["x-request-id"], 400)
    assert second["error"] == "invalid_value"
    assert third["completion_tokens"] <= 3
