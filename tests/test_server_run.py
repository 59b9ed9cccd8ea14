"""From the beginning to the end: loading, draining, the command."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
import xla_flags
from server_site import (
    CHAT,
    HELLO,
    WAIT,
    Site,
    error_of,
    events,
    held,
    idle,
    make_model,
    serve,
    streaming,
    wait_for,
)
from small_models import random_params
from test_api import CONFIG

import gemma_tpu
from gemma_tpu import Loader
from gemma_tpu.checkpoint import save_params
from gemma_tpu.cli.main import main
from gemma_tpu.server import Server, Settings, build_app

KEY = {"authorization": "Bearer secret-1"}


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


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


@pytest.mark.parametrize("phase", ["reading", "compiling"])
def test_a_load_is_given_up_when_the_server_ends(phase: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is no failure; and no call of XLA's is under way when the process ends, which might crash."""
    end = time.monotonic() + WAIT

    def go_on(progress, *step: str) -> None:
        while time.monotonic() < end:
            progress(*step, 1, 4)

    model = mock.Mock(warmup=lambda progress: go_on(progress, "decode"))

    def load(progress):
        if phase == "reading":
            go_on(progress)
        return model

    loader = Loader("tiny", load)
    loader.start()
    wait_for(lambda: loader.status.phase == phase)
    loader.close()
    assert "loader" not in [thread.name for thread in threading.enumerate()]
    assert (loader.status.phase, loader.model, caplog.records) == ("idle", None, [])
    assert model.close.called == (phase == "compiling")


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


def test_sigterm_lets_answers_of_the_page_finish(model: gemma_tpu.Model) -> None:
    """They are the library's, not requests of the server."""
    with serve(model) as site, held(model) as gate:
        stream = model.stream("Hello", max_new_tokens=4)
        tick, ticks = site.server.on_tick, []

        async def counted(counter: int) -> bool:
            ticks.append(counter)
            return await tick(counter)

        site.server.on_tick = counted
        site.server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: len(ticks) >= 8)  # of 0.1 s each
        assert not site.server.should_exit
        gate.set()
        assert stream.finish().finish_reason in ("stop", "length")
        wait_for(lambda: site.server.should_exit)


def test_the_end_of_its_patience(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(drain_timeout=0)) as site, held(model), streaming(site) as lines:
        next(lines)
        site.server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: site.server.should_exit)
        with pytest.raises((httpx.HTTPError, AssertionError)):
            list(events(lines))
    wait_for(lambda: idle(model))


@pytest.mark.parametrize("reloads", [True, False])
def test_a_model_that_failed_to_load(reloads: bool) -> None:
    loader = Loader("tiny", lambda _: make_model(max_rows=0))
    loader.start()
    assert loader.wait(WAIT).phase == "failed"
    server = Server(build_app(loader), reloads=reloads)
    server.config.load()
    asyncio.run(server.on_tick(1))
    assert server.should_exit == (not reloads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "my-model"
    tokenizer = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
    save_params(random_params(CONFIG), CONFIG, path, tokenizer=tokenizer)
    return path


def test_the_command(checkpoint: Path, model: gemma_tpu.Model) -> None:
    command = [sys.executable, "-m", "gemma_tpu", "serve", str(checkpoint), "--port", "0", "--max-rows", "1"]
    environment = os.environ | xla_flags.PROCESS | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment["GEMMA_TPU_API_KEYS"] = "secret-1"
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([*command, "--max-context", "128", "--dtype", "f32", "--mesh", "1,1"], **options) as server:
        try:
            assert server.stdout is not None
            url = re.match(r"my-model is at (http://127.0.0.1:\d+)/v1, with a page", server.stdout.readline())[1]
            with httpx.Client(base_url=url, trust_env=False, timeout=WAIT, headers=KEY) as client:
                assert client.get("/health").status_code == 200
                assert "gradio" in client.get("/").text
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
    assert "gemma-tpu: compiling 1 of" in said
    assert "gemma-tpu: my-model is ready after" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--no-auth"),
        (["--port", "99999"], "--port"),
        (["--api-keys", "/nowhere/keys"], "/nowhere/keys"),
        (["--image-folder", "/nowhere"], "no such directory"),
        (["--max-queue", "-1"], "--max-queue must be at least 0"),
        (["--max-context", "999999", "--port", "0"], "--max-context must be in [2, 8192] for this model"),
    ],
)
def test_arguments_that_are_wrong(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "gemma3-demo", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gemma-tpu: ")
    assert said in line


def test_a_checkpoint_that_cannot_be_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["serve", str(tmp_path), "--port", "0", "--no-demo"]) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("gemma-tpu: ")
    assert said.out == "", "an address where nobody answers"
    assert caplog.records == [], "the same again"


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_while_it_compiles(times: int, checkpoint: Path) -> None:
    """However often: XLA would abort a process that a KeyboardInterrupt ends then."""
    command = [sys.executable, "-m", "gemma_tpu", "serve", str(checkpoint), "--port", "0", "--no-demo"]
    environment = os.environ | xla_flags.PROCESS | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*command, "--mesh", "1,1"], env=environment, **options) as server:
        try:
            assert server.stdout is not None
            said = set[str]()
            while not {"is at", "compiling"} <= said:
                line = server.stdout.readline()
                assert line, "it has ended"
                said |= {word for word in ("is at", "compiling") if word in line}
            for _ in range(times):
                server.send_signal(signal.SIGINT)
                time.sleep(0.2)
            rest = server.communicate(timeout=WAIT)[0]
        finally:
            server.kill()
    assert server.returncode == 0, rest
    assert "Traceback" not in rest
