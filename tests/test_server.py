"""The server in operation: keys, queues, deadlines, clients that leave, loading, draining, metrics, logs, images."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_site import CHAT, HELLO, WAIT, Site, error_of, events, held, idle, make_model, noise, serve, wait_for
from small_models import random_params, waiting_for_a_cancel
from test_api import CONFIG

import gemma_tpu
from gemma_tpu import Loader, fetch
from gemma_tpu.checkpoint import save_params
from gemma_tpu.cli.main import main
from gemma_tpu.server import Settings
from gemma_tpu.server.settings import read_keys

LONG: dict[str, Any] = {"max_tokens": 150}
KEY = {"authorization": "Bearer secret-1"}


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


@contextlib.contextmanager
def streaming(site: Site, **body: Any) -> Iterator[Iterator[str]]:
    """The lines of an answer that is being written. Leaving closes the connection."""
    asked = {"messages": HELLO, "stream": True, **LONG, **body}
    with httpx.Client(trust_env=False, timeout=WAIT) as client, client.stream("POST", site.url + CHAT, json=asked) as r:
        assert r.status_code == 200
        yield r.iter_lines()


# Who may ask.


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


# How much.


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


def test_a_deadline(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(request_timeout=0.2)) as site, held(model):
        assert site.refused(504)["code"] == "deadline_exceeded"
        with streaming(site) as lines:
            told = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        assert told[-1]["error"]["code"] == "deadline_exceeded"
    wait_for(lambda: idle(model))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(site: Site, model: gemma_tpu.Model, stream: bool) -> None:
    with waiting_for_a_cancel(model.engine):
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


def test_a_client_that_never_sends_its_body(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(request_timeout=0.2)) as site:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"
        )
        with socket.create_connection(("127.0.0.1", httpx.URL(site.url).port)) as client:
            client.sendall(head.encode())
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 504 ")


def test_a_slow_reader_keeps_nobody_waiting(site: Site, model: gemma_tpu.Model) -> None:
    """Its answer ends in the engine, and another's comes whole, while it has read nothing."""
    with streaming(site, n=4) as lines:
        wait_for(lambda: model.engine.occupancy()[:2] == (0, 0))
        assert list(site.ask().json()["choices"])
        assert len(list(events(lines))) >= 8


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

    def spoiled(tokens, images, sampling_params, watch=None):
        return submit(tokens, images, sampling_params, fails if sampling_params.seed == 3 else watch)

    monkeypatch.setattr(model.engine, "submit", spoiled)
    with streaming(site, seed=3) as bad, streaming(site, seed=1, temperature=1, max_tokens=8) as good:
        told = [json.loads(line.removeprefix("data: ")) for line in bad if line]
        assert told[-1]["error"]["code"] == "internal_error"
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events(good))
    assert text == whole[0]["message"]["content"]
    assert site.refused(500, seed=3)["code"] == "internal_error"


# Images from elsewhere.


class Pictures(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        moved = self.path.startswith("/to/")
        self.send_response(302 if moved else 200)
        if moved:
            self.send_header("Location", f"http://{self.path.removeprefix('/to/')}/red.png")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(b"" if moved else PNG)

    def log_message(self, *_: Any) -> None:
        pass


PNG = (lambda file: (noise(50, 30).save(file, "png"), file.getvalue())[1])(io.BytesIO())


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a web server. For names that end in .test, look-ups give 127.0.0.2, which counts as public."""
    look_up, judge = socket.getaddrinfo, fetch.is_public
    hosts = {"public.test": ["127.0.0.2"], "private.test": ["127.0.0.1"], "both.test": ["127.0.0.2", "127.0.0.1"]}
    hosts["rebinding.test"] = ["127.0.0.2"]

    def resolve(host: str, *args: Any, **options: Any) -> Any:
        if host not in hosts:
            return look_up(host, *args, **options)
        found = [entry for name in hosts[host] for entry in look_up(name, *args, **options)]
        if host == "rebinding.test":
            hosts[host] = ["127.0.0.1"]
        return found

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetch, "is_public", lambda host: host == "127.0.0.2" or judge(host))
    with http.server.ThreadingHTTPServer(("127.0.0.2", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def picture(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_images_from_the_web(model: gemma_tpu.Model, web: int) -> None:
    prompt = [{"role": "user", "content": [{"type": "image", "image": noise(50, 30)}]}]
    wanted = model.generate(prompt, max_new_tokens=8)
    with serve(model, Settings(allow_image_urls=True)) as site:
        for url in (f"http://public.test:{web}/red.png", f"http://public.test:{web}/to/public.test:{web}"):
            assert site.ask(messages=picture(url)).json()["choices"][0]["message"]["content"] == wanted.text
        first = site.ask(messages=picture(f"http://rebinding.test:{web}/red.png"))
        assert first.status_code == 200, "the address that was checked is the one it connects to"
        for host in ("private.test", "both.test", "rebinding.test", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
            for url in (f"http://{host}:{web}/red.png", f"http://public.test:{web}/to/{host}:{web}"):
                error = site.refused(400, messages=picture(url))
                assert "private address" in error["message"], url
        assert site.refused(400, messages=picture(f"http://public.test:{web}/to/a@b"))["code"] == "invalid_image"


@pytest.mark.parametrize(
    ("hosts", "public"),
    [
        ("8.8.8.8 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808", True),
        (
            "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255",
            False,
        ),
        ("::1 :: fe80::1%eth0 fc00::1 fd00:ec2::254 ::ffff:127.0.0.1 ff02::1 2001:db8::1 64:ff9b::7f00:1", False),
        ("::127.0.0.1 64:ff9b:1::1 2002:7f00:1:: 2001:0:808:808::1", False),
    ],
)
def test_addresses_of_the_public_internet(hosts: str, public: bool) -> None:
    assert {host: fetch.is_public(host) for host in hosts.split()} == dict.fromkeys(hosts.split(), public)


def test_images_from_a_folder(model: gemma_tpu.Model, tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    folder.mkdir()
    for path in (folder / "a b.png", tmp_path / "secret.png"):
        path.write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with serve(model, Settings(image_folder=str(folder))) as site:
        for url in (f"file://{folder}/a%20b.png", "file:a%20b.png", f"file://localhost{folder}/a%20b.png"):
            assert site.ask(messages=picture(url)).status_code == 200
        for url in (f"file://{tmp_path}/secret.png", "file:../secret.png", "file:link.png", "file:/etc/passwd"):
            assert "outside the folder" in site.refused(400, messages=picture(url))["message"]
        for url in ("file://elsewhere/a.png", "file:none.png", "file:", "a%20b.png", str(folder / "a b.png")):
            assert site.refused(400, messages=picture(url))["code"] == "invalid_image"


# What can be known.


def test_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gemma_tpu.server.requests")
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


def test_metrics(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(model_names=("tiny",))) as site:

        def read() -> dict[str, float]:
            families = text_string_to_metric_families(site.http.get("/metrics").text)
            samples = [sample for family in families for sample in family.samples]
            assert all(sample.labels["model_name"] == "tiny" for sample in samples)
            return {
                sample.name + sample.labels.get("finished_reason", ""): sample.value
                for sample in samples
                if sample.name.endswith(("_count", "_total", "running", "waiting", "perc"))
            }

        used = [site.ask(**asked).json()["usage"] for asked in ({}, {"n": 2, "temperature": 1, "seed": 1})]
        with waiting_for_a_cancel(model.engine), streaming(site) as lines:
            begun = events(lines)
            assert next(begun)["choices"][0]["delta"]["role"] == "assistant"
            assert next(begun)["choices"][0]["delta"]["content"]
            assert read()["gemma_tpu:num_requests_running"] == 1
            assert 0 < read()["gemma_tpu:kv_cache_usage_perc"] < 1
        wait_for(lambda: read().get("gemma_tpu:request_success_totalabort") == 1 and idle(model))
        found = read()
    prompt_tokens = used[0]["prompt_tokens"]
    written = sum(usage["completion_tokens"] for usage in used)
    assert found["gemma_tpu:prompt_tokens_total"] == 4 * prompt_tokens  # of four answers
    assert found["gemma_tpu:prefix_cache_queries_total"] == 4 * prompt_tokens
    assert found["gemma_tpu:request_success_totallength"] + found.get("gemma_tpu:request_success_totalstop", 0) == 3
    assert found["gemma_tpu:generation_tokens_total"] > written
    assert found["gemma_tpu:time_to_first_token_seconds_count"] == 3
    assert found["gemma_tpu:e2e_request_latency_seconds_count"] == 3
    assert found["gemma_tpu:num_requests_running"] == found["gemma_tpu:num_requests_waiting"] == 0


# From the beginning to the end.


def test_while_it_loads(model: gemma_tpu.Model) -> None:
    step, loaded = threading.Event(), threading.Event()

    def load(progress):
        progress(1, 4)
        step.set()
        loaded.wait()
        return model

    loader = Loader("tiny", load)
    with serve(loader) as site:
        loader.start()
        step.wait()
        assert site.http.get("/health").status_code == 200
        response = site.http.get("/ready")
        assert (response.status_code, response.json()["status"]) == (503, "reading")
        assert (response.json()["done"], response.json()["total"]) == (1, 4)
        assert response.headers["retry-after"]
        response = site.ask()
        error = error_of(response, 503)
        assert (error["code"], error["type"]) == ("loading", "server_error")
        assert "25%" in error["message"]
        assert response.headers["retry-after"]
        assert site.http.get("/metrics").status_code == 200
        loaded.set()
        wait_for(lambda: site.http.get("/ready").status_code == 200)
        assert site.ask().status_code == 200


def test_an_engine_that_has_failed() -> None:
    with make_model() as model, serve(model) as site:
        model.engine._abort(RuntimeError("the device is gone"))
        assert error_of(site.ask(), 503)["code"] == "failed"
        assert site.http.get("/health").status_code == 503


def test_sigterm_lets_answers_finish(model: gemma_tpu.Model) -> None:
    wanted = model.generate("Hello", max_new_tokens=12)
    with serve(model) as site, held(model) as gate, streaming(site, max_tokens=12) as lines:
        tick, ticks = site.server.on_tick, []

        async def counted(counter: int) -> bool:
            ticks.append(counter)
            return await tick(counter)

        site.server.on_tick = counted
        site.server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: len(ticks) >= 3)
        assert site.http.get("/ready").status_code == 503
        assert site.http.get("/ready").json()["status"] == "shutting_down"
        response = site.ask()
        assert error_of(response, 503)["code"] == "shutting_down"
        assert response.headers["retry-after"]
        assert site.http.get("/health").status_code == 200
        assert not site.server.should_exit
        gate.set()
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events(lines))
        assert text == wanted.text
        wait_for(lambda: site.server.should_exit)


def test_the_end_of_its_patience(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(drain_timeout=0)) as site, held(model), streaming(site) as lines:
        next(lines)
        site.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises((httpx.HTTPError, AssertionError)):
            list(events(lines))
    wait_for(lambda: idle(model))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "my-model"
    tokenizer = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
    save_params(random_params(CONFIG), CONFIG, path, tokenizer=tokenizer)
    return path


def test_the_command(checkpoint: Path, model: gemma_tpu.Model) -> None:
    command = [sys.executable, "-m", "gemma_tpu", "serve", str(checkpoint), "--port", "0", "--max-rows", "1"]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["GEMMA_TPU_API_KEYS"] = "secret-1"
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([*command, "--max-context", "128", "--dtype", "f32", "--mesh", "1,1"], **options) as server:
        try:
            assert server.stdout is not None
            url = re.match(r"my-model is at (http://127.0.0.1:\d+)/v1 ", server.stdout.readline())[1]
            with httpx.Client(base_url=url, trust_env=False, timeout=WAIT, headers=KEY) as client:
                assert client.get("/health").status_code == 200
                wait_for(lambda: client.get("/ready").status_code == 200)
                answer = client.post(CHAT, json={"model": "my-model", "messages": HELLO, "max_tokens": 8}).json()
            server.terminate()
            _, said = server.communicate(timeout=WAIT)
        finally:
            server.kill()
    assert server.returncode == 0
    assert answer["choices"][0]["message"]["content"] == model.generate("Hello", max_new_tokens=8).text
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [line["path"] for line in lines if line["method"] == "POST"] == [CHAT]
    assert "secret" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--no-auth"),
        (["--port", "99999"], "--port"),
        (["--api-keys", "/nowhere/keys"], "/nowhere/keys"),
        (["--image-folder", "/nowhere"], "no such directory"),
        (["--max-queue", "-1"], "max_queue"),
    ],
)
def test_arguments_that_are_wrong(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "gemma3-demo", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gemma-tpu: ")
    assert said in line


def test_a_checkpoint_that_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path), "--port", "0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("gemma-tpu: ")
