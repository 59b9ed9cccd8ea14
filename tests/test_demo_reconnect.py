"""The demo page over a refresh, a restart, a proxy and a login; what visitors do while an answer is being written."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from demo_site import CHROMIUM, WAIT, Visit, busy, proxy, serve, wait_for
from gradio.utils import get_upload_folder
from PIL import Image
from playwright.sync_api import Browser, expect
from ports import free_port
from small_models import Gate

import demo.chat
import demo.tab
import gemma_tpu
from demo.chat import Conversation
from demo.session_storage import unpack
from demo.texts import text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
ENDLESS = 8000  # tokens


def show(visit: Visit, picture: Path) -> None:
    visit.page.set_input_files("#picture-1 input[type=file]", picture)
    expect(visit.page.locator("#picture-1 img")).to_be_visible()


def told(visit: Visit, tab: str) -> list[str]:
    """What is on the screen."""
    return [said.inner_text() for said in visit.page.locator(f"#{tab}-chat [data-testid]").all()]


def refresh(visit: Visit) -> None:
    visit.leaves = True
    visit.page.reload()
    expect(visit.page.locator(".stage").locator("visible=true")).to_be_visible()


def uploaded(picture: Path) -> list[Path]:
    """Its copies on the server."""
    files = Path(get_upload_folder()).rglob("*.png")
    return [path for path in files if path.read_bytes() == picture.read_bytes()]


def test_a_refresh_keeps_conversation_draft_and_language(visit: Visit, model: gemma_tpu.Model, red_png: Path) -> None:
    visit.set("image", max_new_tokens=20)
    show(visit, red_png)
    chat = model.chat(max_new_tokens=20)
    assert visit.ask("image", "What?") == chat.send("What?", images=[red_png]).text
    assert visit.ask("image", "*And* where?") == chat.send("*And* where?").text
    visit.page.click("text=中文")
    expect(visit.stats("image")).to_contain_text("20 个 token")
    visit.page.fill("#image-prompt textarea", "not sent yet")
    before, statistics = told(visit, "image"), visit.stats("image").inner_text()
    refresh(visit)
    expect(visit.stats("image")).to_have_text(statistics)
    expect(visit.page.locator("#image-prompt textarea")).to_have_value("not sent yet")
    expect(visit.page.locator("#image-chat img")).to_have_count(1)
    expect(visit.page.locator("#picture-1 img")).to_be_visible()
    assert told(visit, "image") == before
    visit.set("image", max_new_tokens=20)
    assert visit.ask("image", "Sure?") == chat.send("Sure?").text
    expect(visit.page.locator("#image-chat hr")).to_have_count(0)  # it is the same conversation
    visit.page.click("#image-clear")
    expect(visit.answers("image")).to_have_count(0)
    refresh(visit)
    expect(visit.stats("image")).to_have_text(text("prompt_keys", "zh"))
    expect(visit.answers("image")).to_have_count(0)


def test_a_question_sent_before_the_page_is_restored_follows_the_conversation(
    visit: Visit, model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit.go("text")
    visit.set("text", max_new_tokens=20)
    chat = model.chat(max_new_tokens=20)
    assert visit.ask("text", "What?") == chat.send("What?").text

    restore = threading.Event()

    def slow(stored: str, conversation: Conversation) -> Any:
        assert restore.wait(WAIT / 1000)
        return unpack(stored, conversation)

    monkeypatch.setattr(demo.tab, "unpack", slow)
    refresh(visit)
    visit.set("text", max_new_tokens=20)
    visit.begin("text", "And where?")
    visit.page.wait_for_timeout(500)
    assert not busy(model)
    restore.set()
    expect(visit.answers("text")).to_have_count(2)
    visit.ended("text")
    assert visit.answer("text") == chat.send("And where?").text
    refresh(visit)
    expect(visit.answers("text")).to_have_count(2)

    # A page that is never restored says so.
    restore.clear()
    monkeypatch.setattr(demo.chat, "_RESTORING", 0.1)
    refresh(visit)
    visit.begin("text", "Why?")
    expect(visit.notice("text")).to_have_text(text("unfinished", "en"))
    restore.set()
    expect(visit.answers("text")).to_have_count(2)


def test_tabs_of_a_browser_have_conversations_of_their_own(visit: Visit, server: str) -> None:
    other = visit.page.context.new_page()
    other.goto(server)
    mine, others = (visit, visit.page), (Visit.__new__(Visit), other)
    others[0].page = other
    for (one, page), question in ((mine, "mine"), (others, "yours")):
        expect(page.locator("#text-tab-button")).to_be_visible()
        one.go("text")
        one.set("text", max_new_tokens=3)
        one.ask("text", question)
    visit.leaves = True
    for (_, page), question in ((mine, "mine"), (others, "yours")):
        page.reload()
        expect(page.locator("#text-chat [data-testid=user]")).to_have_text(question)  # in the tab that was open
    other.close()


LIMIT = """() => {
  const set = Storage.prototype.setItem;
  Storage.prototype.setItem = function (key, value) {
    if (value.length > %d) throw new DOMException("full", "QuotaExceededError");
    set.call(this, key, value);
  };
}"""
FORBID = "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"


def test_a_full_or_forbidden_storage_keeps_what_it_can(visit: Visit, red_png: Path) -> None:
    page = visit.page
    page.evaluate(LIMIT % 1400)
    visit.set("image", max_new_tokens=3)
    show(visit, red_png)
    visit.ask("image", "What?")
    kept = page.evaluate("JSON.parse(demoPage.read('image'))")
    assert kept["turns"][0]["pictures"]
    for path in uploaded(red_png):
        path.unlink()
    page.evaluate("demoPage.write('image', JSON.stringify({ ...JSON.parse(demoPage.read('image')), pictures: {} }))")
    refresh(visit)
    expect(page.locator("#image-chat [data-testid=user]").first).to_have_text(text("lost_picture", "en"))

    page.evaluate(LIMIT % 1400)
    visit.go("text")
    visit.set("text", max_new_tokens=3)
    for question in ("one " * 150, "two " * 150):  # both are too much
        visit.ask("text", question)
    refresh(visit)
    expect(visit.notice("text")).to_have_text(text("unrestorable", "en"))
    expect(visit.answers("text")).to_have_count(1)

    page.evaluate("""demoPage.write("text", '{"version": 0, "said": ["what an older page has kept"]}')""")
    refresh(visit)
    expect(visit.notice("text")).to_have_text(text("unrestorable", "en"))
    expect(visit.answers("text")).to_have_count(0)

    page.add_init_script(FORBID)
    refresh(visit)
    visit.go("text")
    visit.set("text", max_new_tokens=3)
    visit.ask("text", "hello")
    expect(visit.answers("text")).to_have_count(1)
    visit.problems = [one for one in visit.problems if "404" not in one]  # of the picture that is gone


def test_those_who_wait_read_their_place_in_the_line(
    visit: Visit, browser: Browser, server: str, model: gemma_tpu.Model, gate: Gate
) -> None:
    others = [Visit(browser, server, alone=True) for _ in range(2)]
    for one, waiting in zip((visit, *others), (None, "queued_next", "queued_one"), strict=True):
        one.go("text")
        one.set("text", max_new_tokens=ENDLESS)
        one.begin("text", "hello")
        if waiting is None:
            wait_for(lambda: busy(model))
        else:
            expect(one.stats("text")).to_have_text(text(waiting, "en"))
    visit.page.click("#text-stop")
    expect(others[1].stats("text")).to_have_text(text("queued_next", "en"))
    expect(others[0].stats("text")).to_have_text(text("writing", "en"))
    for other in others:
        other.close()
    wait_for(lambda: not busy(model))


def test_typing_switching_and_stopping_while_an_answer_is_written(
    visit: Visit, model: gemma_tpu.Model, gate: Gate
) -> None:
    page, field = visit.page, visit.page.locator("#text-prompt textarea")
    visit.go("text")
    visit.set("text", max_new_tokens=ENDLESS)
    visit.begin("text", "hello there")
    expect(page.locator("#text-stop")).to_be_visible()
    expect(field).to_have_value("")
    visit.begin("text", "and then")
    expect(visit.notice("text")).to_have_text(text("busy", "en"))
    expect(field).to_have_value("and then")
    page.click("text=中文")
    expect(visit.stats("text")).to_have_text(text("writing", "zh"))
    page.focus("#text-stop")
    page.keyboard.press("Enter")
    expect(visit.stats("text")).to_contain_text(text("ended_cancelled", "zh"))
    expect(visit.stats("text")).to_contain_text("个 token")
    expect(visit.notice("text")).to_have_count(0)
    expect(visit.answers("text")).to_have_count(1)
    expect(field).to_be_focused()
    expect(field).to_have_value("and then")
    visit.set("text", max_new_tokens=3)
    field.press("Enter")
    expect(visit.answers("text")).to_have_count(2)
    wait_for(lambda: not busy(model))


def test_a_new_picture_draws_a_line(visit: Visit, red_png: Path) -> None:
    visit.set("image", max_new_tokens=3)
    show(visit, red_png)
    visit.ask("image", "What?")
    visit.page.locator(".image-example").first.click()
    expect(visit.page.locator('#picture-1 img[src$="shapes.png"]')).to_be_visible()
    visit.ask("image", "And this?")
    line = visit.page.get_by_text(text("fresh", "en"), exact=True)
    expect(line).to_be_visible()
    answers, below = visit.answers("image"), line.bounding_box()["y"]
    assert answers.first.bounding_box()["y"] < below < answers.last.bounding_box()["y"]


@contextlib.contextmanager
def at_the_same_place(model: gemma_tpu.Model, url: str, accounts: Sequence[str] = ()) -> Iterator[None]:
    with serve(model, port=urlsplit(url).port or 0, accounts=accounts):
        yield


def test_a_restart_is_said_and_loses_nothing(browser: Browser, model: gemma_tpu.Model, tmp_path: Path) -> None:
    picture = tmp_path / "noise.png"
    Image.effect_noise((60, 40), 90).convert("RGB").save(picture)
    with serve(model, port=free_port()) as url:
        visit = Visit(browser, url)
        visit.set("image", max_new_tokens=20)
        show(visit, picture)
        chat = model.chat(max_new_tokens=20)
        assert visit.ask("image", "What?") == chat.send("What?", images=[picture]).text
        before = told(visit, "image")
    expect(visit.page.locator("#head .away")).to_have_text(text("lost", "en"))
    expect(visit.page.locator("#head .state")).to_be_hidden()
    for path in uploaded(picture):
        path.unlink()
    visit.page.fill("#image-prompt textarea", "And where?")
    with at_the_same_place(model, url):
        expect(visit.page.locator("#head .state")).to_be_visible()
        expect(visit.page.locator("#image-prompt textarea")).to_have_value("And where?")
        expect(visit.page.locator("#image-chat img")).to_have_count(1)
        assert told(visit, "image") == before
        visit.set("image", max_new_tokens=20)
        assert visit.ask("image", "And where?") == chat.send("And where?").text
        visit.page.close()  # Chromium notes each request that failed


def test_other_accounts_after_a_restart_are_asked_for(browser: Browser, model: gemma_tpu.Model) -> None:
    with serve(model, port=free_port()) as url:
        visit = Visit(browser, url)
    with at_the_same_place(model, url, accounts=["ann:s:cret"]):
        with visit.page.expect_response(lambda response: response.request.is_navigation_request()) as loaded:
            pass
        assert loaded.value.status == 401
        assert "www-authenticate" in loaded.value.headers  # at which a browser asks
        look = httpx.get(f"{url}/gradio_api/app_id", headers={"x-requested-with": "fetch"})
        assert (look.status_code, "www-authenticate" in look.headers) == (401, False)  # at which it does not
    visit.page.close()  # Chromium notes each request that failed


def test_behind_a_proxy_that_strips_its_prefix_and_breaks_down(
    browser: Browser, model: gemma_tpu.Model, red_png: Path, gate: Gate
) -> None:
    with serve(model, root_path="/gemma") as inner:
        with proxy(inner, "/gemma", free_port()) as url:
            visit = Visit(browser, f"{url}/")
            visit.set("image", max_new_tokens=20)
            show(visit, red_png)
            assert visit.ask("image", "What?") == model.generate("What?", images=[red_png], max_new_tokens=20).text
            visit.go("text")
            visit.set("text", max_new_tokens=ENDLESS)
            visit.begin("text", "hello there")
            wait_for(
                lambda: visit.page.evaluate("JSON.parse(demoPage.read('text') || null)?.turns[0].answer.length > 1")
            )
            assert [one for one in visit.problems if "/favicon.ico" not in one] == []  # asked for beside the prefix
        expect(visit.page.locator("#head .away")).to_be_visible()
        wait_for(lambda: not busy(model))
        with proxy(inner, "/gemma", urlsplit(url).port or 0):
            expect(visit.stats("text")).to_have_text(text("ended_cancelled", "en"))
            begun = visit.answer("text")
            assert len(begun) > 1
            expect(visit.page.locator("#text-send")).to_be_visible()
            visit.set("text", max_new_tokens=5)
            visit.page.click("#text-continue")
            expect(visit.stats("text")).to_contain_text("5 tokens")
            assert visit.answer("text").startswith(begun.rstrip())
            visit.go("image")
            expect(visit.page.locator("#image-chat img")).to_have_count(1)
            visit.page.close()  # Chromium notes each request that failed


def test_nobody_is_let_in_without_a_password(browser: Browser, model: gemma_tpu.Model, red_png: Path) -> None:
    origin = "http://127.0.0.1:1"
    with serve(model, origins=[origin], accounts=["ann:s:cret", "李:密码"]) as url:
        visit = Visit(browser, url, http_credentials={"username": "ann", "password": "s:cret"})
        visit.set("image", max_new_tokens=5)
        show(visit, red_png)
        visit.ask("image", "What?")
        image = visit.page.locator("#image-chat img").get_attribute("src")
        paths = ["/", "/config", "/theme.css", "/api/status", "/docs", "/nowhere", "/gradio_api/app_id"]
        paths += ["/gradio_api/queue/data?session_hash=x", "/gradio_api/heartbeat/x", "/gradio_api/file=/etc/passwd"]
        with httpx.Client(base_url=url, timeout=60) as client:
            for path in [*paths, image]:
                answer = client.get(path)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"].startswith("Basic")
            for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/api/answer", "/api/load", "/login"):
                assert client.post(path).status_code == 401, path
            for account in ("ann:", "ann:s", "ann:s:cret2", "bob:s:cret", ":", "李:"):
                assert client.get("/", auth=tuple(account.split(":", 1))).status_code == 401, account
            for header in ("Basic", "Basic ???", "Bearer x", f"Basic {base64.b64encode(b'x').decode()}"):
                assert client.get("/", headers={"authorization": header}).status_code == 401
            known = "Basic " + base64.b64encode("李:密码".encode()).decode()
            assert client.get("/api/status", headers={"authorization": known}).status_code == 200
            asked = {"origin": origin, "access-control-request-method": "POST"}
            allowed = client.options("/api/answer", headers=asked | {"access-control-request-headers": "authorization"})
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == origin
        visit.close()
