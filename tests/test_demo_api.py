"""The demo's API for pages of other origins: who may use it, what it takes, what it says."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from test_demo_parts import FakeModel, outline

from demo.api import build_api
from demo.texts import text
from demo.webui.settings import defaults
from gemma_tpu import Loader, LoadStatus
from gemma_tpu.text import TRANSLATE_GEMMA

ORIGIN = "http://127.0.0.1:8000"
PICTURE = f"data:image/png;base64,{base64.b64encode(Path('demo/static/favicon.png').read_bytes()).decode()}"


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def loader(model: FakeModel) -> Loader:
    loader = Loader("path/to/gemma3-fake", lambda progress: model)  # type: ignore[arg-type,return-value]
    loader.model, loader.status = model, LoadStatus("ready")  # type: ignore[assignment]
    return loader


@pytest.fixture
def client(loader: Loader) -> TestClient:
    return TestClient(build_api(loader, [ORIGIN]))


def asked(question: str, **more: Any) -> dict[str, Any]:
    return {"question": question, "settings": defaults(), **more}


def test_other_origins_are_turned_away(client: TestClient, model: FakeModel) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:8001", "http://127.0.0.1:8000.evil.example"):
        headers = {"origin": origin}
        answer = client.post("/answer", json=asked("Hello"), headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        asking = {**headers, "access-control-request-method": "POST"}
        assert "access-control-allow-origin" not in client.options("/answer", headers=asking).headers
    assert model.told == []


def test_the_named_origin_and_programs_are_let_in(client: TestClient, model: FakeModel) -> None:
    answer = client.post("/answer", json=asked("Hello"), headers={"origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.status_code == 200
    assert client.post("/answer", json=asked("Hello")).status_code == 200
    assert len(model.told) == 2
    # A page that may not say what it sends cannot send without being asked first.
    plain = client.post("/answer", content=json.dumps(asked("Hello")), headers={"content-type": "text/plain"})
    assert plain.status_code == 422


def test_an_answer_is_told_what_was_said_before(client: TestClient, model: FakeModel) -> None:
    turns = [{"question": "What?", "pictures": [PICTURE], "answer": "A gem."}]
    answer = client.post("/answer", json=asked("Where?", turns=turns, pictures=[PICTURE]))
    assert outline(model.told[-1]) == [f"user: [{PICTURE}] What?", "assistant: A gem.", "user: Where?"]
    assert model.asked["client"] == "testclient"  # its address
    first, *pieces, last = (json.loads(line) for line in answer.text.splitlines())
    assert first["forgotten"] == 0
    assert "".join(line["piece"] for line in pieces) == "Yes."
    assert last == {
        "statistics": {"en": "2 tokens · prompt of 9 tokens", "zh": "2 个 token · 提示 9 个 token"},
        "error": None,
    }
    model.room = 2
    answer = client.post("/answer", json=asked("Where?", turns=turns))
    assert json.loads(answer.text.splitlines()[0])["forgotten"] == 1
    assert outline(model.told[-1]) == [f"user: [{PICTURE}] Where?"]  # it is shown again


def test_an_answer_that_is_stopped_ends(client: TestClient, model: FakeModel) -> None:
    model.pieces = ["So", None]
    with client.stream("POST", "/answer", json=asked("Why?")) as answer:
        lines = answer.iter_lines()
        name = json.loads(next(lines))["id"]
        client.post("/stop", json={"id": "another"}).raise_for_status()
        client.post("/stop", json={"id": name}).raise_for_status()
        assert "statistics" in json.loads(list(lines)[-1])


def test_who_waits_is_told_his_place_in_the_line(client: TestClient, model: FakeModel) -> None:
    model.pieces, model.before = ["So", None], 1
    with client.stream("POST", "/answer", json=asked("Why?")) as answer:
        lines = map(json.loads, answer.iter_lines())
        name = next(lines)["id"]
        places = [next(line["waiting"] for line in lines if "waiting" in line)]
        model.before = 0
        places.append(next(line["waiting"] for line in lines if "waiting" in line))
        client.post("/stop", json={"id": name}).raise_for_status()
        assert not [line for line in lines if "waiting" in line]
    assert [place["en"] for place in places] == [text(key, "en") for key in ("queued_one", "queued_next")]


def test_files_of_the_server_cannot_be_named(client: TestClient, model: FakeModel) -> None:
    for path in ("demo/static/favicon.png", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/x.png"):
        assert client.post("/answer", json=asked("What?", pictures=[path])).status_code == 422
        turns = [{"question": "What?", "pictures": [path], "answer": "A gem."}]
        assert client.post("/answer", json=asked("What?", turns=turns)).status_code == 422
    assert model.told == []


def test_what_is_refused_says_why_in_both_languages(client: TestClient, loader: Loader, model: FakeModel) -> None:
    refused = client.post("/answer", json=asked("too long"))
    assert (refused.status_code, refused.json()["error"]["en"]) == (
        400,
        text("refused", "en", error="the prompt has 9000 tokens"),
    )
    for wrong in ({"temperature": "hot"}, {"colour": 1}, {"max_tokens": 1e999}):
        body = json.dumps(asked("Hello") | {"settings": defaults() | wrong})
        refused = client.post("/answer", content=body, headers={"content-type": "application/json"})
        assert refused.status_code == 400
        assert next(iter(wrong)) in refused.json()["error"]["zh"]
    model.format = TRANSLATE_GEMMA  # not "pass source_lang=", which a page cannot
    refused = client.post("/answer", json=asked("Hello"))
    assert (refused.status_code, refused.json()["error"]["zh"]) == (400, text("format_TranslateGemma", "zh"))
    loader.model, loader.status = None, LoadStatus("reading", 1, 2)
    refused = client.post("/answer", json=asked("Hello"))
    assert (refused.status_code, refused.json()["error"]["zh"]) == (503, text("still_loading", "zh"))


def test_bodies_have_a_limit(client: TestClient) -> None:
    long = {"content-type": "application/json", "content-length": str(97 * 2**20)}
    assert client.post("/answer", content=b"{}", headers=long).status_code == 413
    chunked = client.post("/answer", content=iter([b"{}"]), headers={"content-type": "application/json"})
    assert chunked.status_code == 413


def test_loading_is_begun_and_followed(client: TestClient, loader: Loader) -> None:
    loader.model, loader.status = None, LoadStatus("idle")
    idle = client.get("/status").json()
    assert (idle["en"]["phase"], idle["en"]["button"], idle["zh"]["button"]) == ("idle", "Load model", "加载模型")
    loader.status = LoadStatus("compiling", 3, 4, "decode")
    busy = client.post("/load", json={}).json()["en"]
    assert (busy["percent"], busy["clickable"], busy["title"]) == (75, False, "gemma3-fake")
    assert "compiling decode, 3 of 4" in busy["step"]
