"""Who may ask the server, and how much at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from server_site import (
    CHAT,
    HELLO,
    Site,
    error_of,
    events,
    held,
    make_model,
    serve,
    streaming,
)

import gemma_tpu
from gemma_tpu.server import Settings
from gemma_tpu.server.settings import read_keys

KEY = {"authorization": "Bearer secret-1"}


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


def test_keys(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(api_keys=("secret-1", "secret-2"))) as site:
        for headers in (KEY, {"authorization": "bearer secret-2"}):
            assert site.ask(headers=headers).status_code == 200
        assert site.ask(headers={"x-api-key": "secret-2"}).status_code == 200
        assert error_of(site.ask(headers={"x-api-key": "secret-3"}), 401)
        for wrong in ("Bearer secret-3", "Bearer", "Basic secret-1", "secret-1", "Bearer secret-1x", "Bearer secret-"):
            assert error_of(site.ask(headers={"authorization": wrong}), 401)["code"] == "invalid_api_key"
        response = site.ask()
        assert error_of(response, 401)["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/models", "/metrics"):
            assert site.http.get(path).status_code == 401
            assert site.http.get(path, headers=KEY).status_code == 200
        for path in ("/health", "/ready"):
            assert site.http.get(path).status_code == 200
        assert site.ask(headers=KEY | {"host": "example.com"}).status_code == 200
        client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="wrong", max_retries=0)
        with client, pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_without_keys_only_this_machine_may_ask(site: Site, model: gemma_tpu.Model) -> None:
    """A page of another site that has made its own name lead here."""
    assert error_of(site.ask(headers={"host": "example.com"}), 403)["code"] == "host_not_allowed"
    for host in ("[", "example.com:80", "localhost.example.com", "127.0.0.1.example.com", ""):
        assert site.ask(headers={"host": host}).status_code in (400, 403)
    for host in ("localhost:80", "Localhost", "127.0.0.1", "[::1]:80"):
        assert site.ask(headers={"host": host}).status_code == 200
    with serve(model, Settings(any_host=True)) as open_to_all:
        assert open_to_all.ask(headers={"host": "example.com"}).status_code == 200


def test_pages_of_other_origins(site: Site, model: gemma_tpu.Model) -> None:
    other = {"origin": "http://example.com"}
    response = site.ask(headers=other)
    assert error_of(response, 403)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in response.headers
    assert site.ask(headers={"origin": "http://["}).status_code == 403
    assert site.ask(headers={"origin": "null"}).status_code == 403
    assert site.ask(headers={"origin": site.url}).status_code == 200
    asks = other | {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    assert "access-control-allow-origin" not in site.http.options(CHAT, headers=asks).headers
    with serve(model, Settings(allow_origins=("http://example.com",))) as allowing:
        assert allowing.http.options(CHAT, headers=asks).headers["access-control-allow-origin"] == other["origin"]
        assert allowing.ask(headers=other).headers["access-control-allow-origin"] == other["origin"]
        assert allowing.ask(headers={"origin": "http://example.org"}).status_code == 403


ASKED = [
    (CHAT, {}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2}),
    ("/v1/responses", {"input": "a", "max_output_tokens": 2}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 2}),
]


def test_who_asks(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fair between keys or, without them, addresses."""
    clients, submit = [], model.engine.submit

    def noted(*args):
        request = submit(*args)
        clients.append(request.client)
        return request

    monkeypatch.setattr(model.engine, "submit", noted)
    with serve(model, Settings(api_keys=("secret-1", "secret-2"))) as site:
        for path, body in ASKED:
            assert site.ask(path, KEY, **body).status_code == 200
        for headers in ({"x-api-key": "secret-1"}, {"x-api-key": "secret-2"}):
            assert site.ask(headers=headers).status_code == 200
    assert len({*clients[:5]}) == 1
    assert len({*clients}) == 2
    assert "secret" not in str(clients)
    clients.clear()
    with serve(model) as site:
        assert site.ask().status_code == site.ask(headers={"x-forwarded-for": "10.1.2.3"}).status_code == 200
    assert clients == ["127.0.0.1", "10.1.2.3"]  # as a proxy on this machine says


def test_where_keys_come_from(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one # of Ann\n\n# nobody's\n  two\n")
    assert read_keys(str(file), {}) == ("one", "two")
    assert read_keys(str(file), {"GEMMA_TPU_API_KEYS": "three, four,"}) == ("three", "four", "one", "two")
    assert read_keys(None, {}) == ()
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="holds no API key"):
        read_keys(str(file), {})
    file.write_text("séc ret\n")
    with pytest.raises(ValueError, match="API key 1") as raised:
        read_keys(str(file), {})
    assert "ret" not in str(raised.value)
    assert "secret" not in repr(Settings(api_keys=("secret",)))


def test_the_queue_is_bounded(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(max_queue=2)) as site, contextlib.ExitStack() as stack:
        gate = stack.enter_context(held(model))
        streams = [stack.enter_context(streaming(site, max_tokens=4, seed=i)) for i in range(6)]  # of 4 rows
        refused = site.ask()
        error = error_of(refused, 429)
        assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        assert site.http.get("/health").status_code == 200
        gate.set()
        for lines in streams:
            assert list(events(lines))
        assert site.ask().status_code == 200
        assert site.refused(400, n=7)["param"] == "n"  # which will never fit
        assert site.ask(n=6).status_code == 200
