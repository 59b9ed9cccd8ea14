"""The model of the Chat page: loading, giving up, unloading, another in its place; plans; who may do it."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from chat_site import Visitor, chat_app, demo_model, said, serve_chat
from demo_site import CHROMIUM
from playwright.sync_api import Browser, expect
from server_site import held, wait_for
from small_models import gated

import gemma_tpu
from demo.checkpoints import Checkpoints
from gemma_tpu import Loader

SOON = 300  # seconds, on a machine that may be busy


class Fake:
    """What a loader needs of a model."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def warmup(self, progress: Any) -> None:
        progress("decode", 1, 2)

    def close(self) -> None:
        self.closed.set()


def post(url: str, body: object, **headers: str) -> Any:
    headers = {"content-type": "application/json", "x-gemma-chat": "1", **headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_load_that_is_given_up_and_another_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_tpu.loader._GIVEN_UP", 0.1)
    going, models = threading.Event(), []

    def load(name: str, progress: Any) -> Any:
        if name == "slow":
            progress(1, 10)
            assert going.wait(SOON)  # reports nothing meanwhile, as when XLA compiles
        models.append(Fake())
        return models[-1]

    checkpoints = Checkpoints(["slow", "quick", "slow"], load)
    loader = checkpoints.loader
    assert checkpoints.names == ("slow", "quick")
    loader.start()
    checkpoints.unload()
    assert (loader.status.phase, loader.model) == ("idle", None)
    checkpoints.choose("quick")
    assert loader.wait(SOON).phase == "ready"
    assert (loader.name, loader.model) == ("quick", models[0])
    going.set()
    while len(models) < 2 or not models[1].closed.wait(SOON):  # the one that was given up ends on its own
        pass
    assert (loader.status.phase, loader.name, loader.model) == ("ready", "quick", models[0])
    checkpoints.choose("quick")
    assert not models[0].closed.is_set()
    checkpoints.choose("slow")
    assert models[0].closed.is_set()
    assert loader.wait(SOON).phase == "ready"
    assert loader.model is models[2]
    with pytest.raises(ValueError, match="/etc is not among the checkpoints"):
        checkpoints.choose("/etc")


def test_a_load_that_fails_after_it_was_given_up_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_tpu.loader._GIVEN_UP", 0.1)
    going, threads = threading.Event(), []

    def load(progress: Any) -> Any:
        threads.append(threading.current_thread())
        assert going.wait(SOON)
        raise RuntimeError("out of memory")

    loader = Loader("x", load)
    loader.start()
    loader.close()
    going.set()
    threads[0].join(SOON)
    assert loader.status.phase == "idle"


def load_named(name: str, progress: Any) -> gemma_tpu.Model:
    if name == "broken":
        raise ValueError("broken: not a checkpoint")
    return demo_model(max_context=256, max_rows=1, progress=progress)


@pytest.fixture(scope="module")
def models() -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(["first", "second", "broken"], load_named)
    yield checkpoints
    checkpoints.unload()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
def test_loading_from_the_page(browser: Browser, models: Checkpoints) -> None:
    with serve_chat(chat_app(models.loader, models)) as url:
        visitor = Visitor(browser, url)
        page, dialog = visitor.page, visitor.page.locator("dialog.model")
        visitor.begin("Hello")
        expect(page.locator(".note .notice")).to_contain_text(said("not_loaded"))
        assert page.locator(".composer textarea").input_value() == "Hello"
        page.click("[data-drawer=inside]")
        expect(page.locator(".inside")).to_have_text(said("not_loaded"))
        page.click(".chip-state")
        dialog.get_by_role("button", name="Load model").click()
        expect(page.locator(".chip-state")).to_have_attribute("data-phase", "ready")
        expect(dialog).to_contain_text("8.1M parameters")
        dialog.get_by_role("button", name="second").click()
        expect(dialog.locator("h2")).to_have_text("second")
        expect(page.locator(".chip-state")).to_have_attribute("data-phase", "ready")
        dialog.get_by_role("button", name="broken").click()
        expect(dialog.locator(".notice")).to_contain_text("broken: not a checkpoint")
        dialog.get_by_role("button", name="first").click()
        expect(page.locator(".chip-state")).to_have_attribute("data-phase", "ready")
        dialog.get_by_role("button", name=said("close")).click()
        assert "42" in visitor.ask("What is 12 + 30?")
        expect(page.locator("[data-section=context] dd").first).to_have_text(re.compile("[1-9]"))
        page.click(".chip-state")
        dialog.get_by_role("button", name=said("unload")).click()
        expect(page.locator(".chip-state")).to_have_attribute("data-phase", "idle")
        visitor.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
def test_two_checkpoints_side_by_side(browser: Browser) -> None:
    """One after the other, the loaded one first, whichever column it has."""
    loads = []

    def load(name: str, progress: Any) -> gemma_tpu.Model:
        loads.append(name)
        return load_named(name, progress)

    checkpoints = Checkpoints(["first", "second", "broken"], load)
    checkpoints.choose("first")
    assert checkpoints.loader.wait(SOON).phase == "ready"
    with serve_chat(chat_app(checkpoints.loader, checkpoints)) as url:
        visitor = Visitor(browser, url)
        page, pair = visitor.page, visitor.page.locator(".pair article")
        page.get_by_role("button", name=said("compare"), exact=True).click()
        page.locator(".second select").select_option("second")
        for question, loaded in (("What is 12 + 30?", "first"), ("What is 4 + 4?", "second")):  # which stays loaded
            assert checkpoints.loader.name == loaded
            visitor.begin(question)
            expect(page.locator("article.user").last).to_contain_text(question)
            expect(pair).to_have_count(2)
            expect(pair.nth(0).locator(".state")).to_contain_text("token")
            expect(pair.nth(1).locator(".state")).to_contain_text("token")
            stored = sorted(visitor.stored("messages"), key=lambda message: message["created"])
            answers = [message for message in stored if message["role"] == "assistant"][-2:]
            assert sorted(answer["checkpoint"] for answer in answers) == ["first", "second"]
            expect(page.locator(".pair .differs").nth(0)).to_contain_text("Checkpoint first")
            assert checkpoints.loader.name != loaded
        page.locator(".second select").select_option("broken")
        visitor.begin("What is 5 + 5?")
        expect(page.locator("article.user").last).to_contain_text("What is 5 + 5?")
        expect(pair.nth(0).locator(".state")).to_contain_text("token")
        expect(pair.nth(1).locator(".state")).to_contain_text("broken: not a checkpoint")
        wait_for(lambda: checkpoints.loader.status.phase == "ready")  # what was there before
        assert loads == ["first", "second", "first", "broken", "first"]
        visitor.close()
    checkpoints.unload()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
def test_the_place_in_the_queue(browser: Browser, models: Checkpoints) -> None:
    models.choose("first")
    assert models.loader.wait(SOON).phase == "ready"
    model = models.loader.model
    assert model is not None
    with serve_chat(chat_app(models.loader, models)) as url:
        visitors = [Visitor(browser, url) for _ in range(4)]
        with held(model):
            for i, visitor in enumerate(visitors):
                visitor.begin(f"What is 12 + {i}?")
                wait_for(lambda i=i: sum(model.engine.occupancy()[:2]) == i + 1)
            for visitor, key in zip(visitors[2:], ("queued_one", "queued"), strict=True):
                expect(visitor.answers.locator(".state")).to_have_text(said(key, count=2))
        for i, visitor in enumerate(visitors):
            assert str(12 + i) in visitor.ended()
            visitor.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
def test_no_other_checkpoint_goes_on_with_an_answer(browser: Browser, models: Checkpoints) -> None:
    """One that is unloaded amid an answer, and one that is loaded before the answer is continued."""
    models.choose("first")
    assert models.loader.wait(SOON).phase == "ready"
    model = models.loader.model
    assert model is not None
    with serve_chat(chat_app(models.loader, models)) as url:
        visitor = Visitor(browser, url)
        with gated(model.engine, 10):
            visitor.begin("Tell me about yourself.")
            expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w{2}"))
            models.choose("second")
        state = visitor.answers.locator(".state")
        expect(state).to_contain_text("the model was unloaded before the answer was whole")
        assert models.loader.wait(SOON).phase == "ready"
        chip = visitor.page.locator(".chip-state")
        expect(chip).to_contain_text("second")
        expect(chip).to_have_attribute("data-phase", "ready")
        visitor.press("go_on")
        expect(state).to_contain_text(said("by_another", checkpoint="first"))
        models.choose("first")
        expect(chip).to_contain_text("first")
        expect(chip).to_have_attribute("data-phase", "ready")
        visitor.press("go_on")
        assert visitor.ended() == models.loader.model.generate("Tell me about yourself.").text
        visitor.close()


def test_who_may_change_what(models: Checkpoints) -> None:
    models.choose("first")
    assert models.loader.wait(SOON).phase == "ready"
    with serve_chat(chat_app(models.loader)) as url:
        for path, body in (("load", {"checkpoint": "second"}), ("unload", {}), ("plan", {"topology": "v5e:1x1"})):
            assert post(f"{url}{path}", body)[0] == 400
        status = json.load(urllib.request.urlopen(f"{url}status"))
        assert "checkpoints" not in status
        assert status["model"]["context"] == 256
        body = {"messages": [{"role": "user", "content": "What is 12 + 30?"}]}
        asked = f"{url}api/v1/chat/completions"
        # A proxy may have changed Host; another site's page cannot send the header.
        answer = post(asked, body, host="gemma.example", origin="https://elsewhere.example")
        assert answer["choices"][0]["message"]["content"] == "12 + 30 = 42"
        request = urllib.request.Request(asked, json.dumps(body).encode(), {"content-type": "application/json"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)
        for path in ("api/metrics", "api/v1/models", "static/../app.py", "examples/../app.py"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{url}{path}")


def test_pictures_as_the_model_sees_them(models: Checkpoints) -> None:
    import base64
    import io

    from PIL import Image

    models.choose("first")
    assert models.loader.wait(SOON).phase == "ready"
    wide = Image.new("RGB", (1600, 400), "red")
    wide.paste((0, 0, 255), (800, 0, 1600, 400))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    with serve_chat(chat_app(models.loader)) as address:
        found = post(f"{address}seen", {"picture": url, "pan_and_scan": True})
        assert (found["width"], found["height"], found["side"], found["grid"]) == (1600, 400, 896, 16)
        views = [Image.open(io.BytesIO(base64.b64decode(view.partition(",")[2]))) for view in found["views"]]
        assert [view.size for view in views] == [(896, 896)] * (1 + len(gemma_tpu.pan_and_scan(wide)))
        assert views[0].getpixel((100, 448)) == (255, 0, 0)
        assert views[-1].getpixel((448, 448)) == (0, 0, 255)
        assert len(post(f"{address}seen", {"picture": url})["views"]) == 1
        assert post(f"{address}seen", {"picture": "/etc/passwd"})[0] == 422
        assert post(f"{address}seen", {"picture": "data:image/png;base64,AAAA"})[0] == 400


def test_a_plan_beside_the_measured_speed(models: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the compiler itself, for the checkpoint that ships."""
    models.choose("first")
    assert models.loader.wait(SOON).phase == "ready"
    monkeypatch.setattr(models.loader, "name", "gemma3-demo")
    with serve_chat(chat_app(models.loader, models)) as url:
        found = post(f"{url}plan", {"topology": "v5e:1x1"})
        assert (found["slice"], found["fits"]) == ("v5e-1", True)
        assert 0 < found["roofline"] < found["seconds"] < 0.01
        assert 0 < found["total"] < found["capacity"] == 16911433728
        monkeypatch.setattr(models.loader, "name", "/nowhere")
        code, said = post(f"{url}plan", {"topology": "v5e:1x1"})
        assert code == 400
        assert "/nowhere" in said
        assert post(f"{url}plan", {"topology": "v5e:1x1; ls"})[0] == 422
