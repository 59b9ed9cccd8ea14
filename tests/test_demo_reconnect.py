"""The demo page over a refresh, a restart, a proxy and a login; what visitors do while an answer is being written."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from demo_site import CHROMIUM, FLAGS, Scripted, Visit, busy, proxy, serve, tiny_model, wait_for
from gradio.utils import get_upload_folder
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

import gemma_tpu
from demo.texts import text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
ENDLESS = 8000  # tokens


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with tiny_model() as model:
        yield model


@pytest.fixture
def slow(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = model.engine._runner._decode

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.02)
        return decode(*arguments)

    monkeypatch.setattr(model.engine._runner, "_decode", slowly)


@pytest.fixture(scope="module")
def scripted() -> Scripted:
    return Scripted("path/to/gemma3-tiny")


@pytest.fixture(scope="module")
def server(model: gemma_tpu.Model, scripted: Scripted) -> Iterator[str]:
    with serve(model, scripted) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Visit]:
    visit = Visit(browser, server)
    yield visit
    visit.close()


@pytest.fixture
def red_png(tmp_path: Path) -> Path:
    """Of a colour that no other test's picture has: its uploaded copy is this test's alone."""
    path = tmp_path / "red.png"
    Image.new("RGB", (60, 40), (200, int(tmp_path.stat().st_ino) % 256, 30)).save(path)
    return path


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


def test_tabs_of_a_browser_have_conversations_of_their_own(visit: Visit, server: str) -> None:
    other = visit.context.new_page()
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
    visit.problems.clear()

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

    visit.context.add_init_script(FORBID)
    refresh(visit)
    visit.go("text")
    visit.set("text", max_new_tokens=3)
    visit.ask("text", "hello")
    expect(visit.answers("text")).to_have_count(1)


def test_those_who_wait_read_their_place_in_the_line(
    visit: Visit, browser: Browser, server: str, model: gemma_tpu.Model, slow: None
) -> None:
    others = [Visit(browser, server) for _ in range(2)]
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
    visit: Visit, model: gemma_tpu.Model, slow: None
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


def test_a_number_taken_away_stays_as_it_was(visit: Visit) -> None:
    visit.go("text")
    visit.set("text", max_new_tokens=7)
    field = visit.page.locator('#text-max_new_tokens input[type="number"]')
    field.fill("")
    field.press("Tab")
    expect(field).to_have_value("7")
    visit.ask("text", "hello")
    expect(visit.stats("text")).to_contain_text("7 tokens")


def test_a_whole_number_is_shown_as_it_is_used(visit: Visit) -> None:
    visit.go("text")
    visit.set("text", max_new_tokens=7, temperature=0.35)
    visit.page.uncheck("#text-random-seed input")
    for name, given, used in (("max_new_tokens", "3.7", "4"), ("seed", "1.5", "2"), ("temperature", "0.33", "0.33")):
        field = visit.page.locator(f'#text-{name} input[type="number"]')
        expect(field).to_be_enabled()
        field.fill(given)
        field.press("Tab")
        expect(field).to_have_value(used)
    visit.ask("text", "hello")
    expect(visit.stats("text")).to_contain_text("4 tokens")
    expect(visit.stats("text")).to_contain_text("seed 2")


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


def test_a_phone_shows_the_top_of_the_page(browser: Browser, server: str) -> None:
    size = {"width": 390, "height": 844}
    phone = browser.new_context(viewport=size, has_touch=True, is_mobile=True).new_page()
    phone.goto(server)
    expect(phone.locator("#image-chat")).to_be_visible()
    phone.wait_for_function("!document.querySelector('#image-prompt textarea').disabled")
    assert phone.evaluate("[scrollY, document.activeElement.tagName]") == [0, "BODY"]
    phone.context.close()
    desk = browser.new_context(viewport={"width": 1280, "height": 500}).new_page()
    desk.goto(server)
    expect(desk.locator("#image-prompt textarea")).to_be_focused()
    assert desk.evaluate("scrollY") == 0
    desk.context.close()


def test_what_comes_and_goes_moves_nothing(browser: Browser, server: str, scripted: Scripted) -> None:
    def wait(progress: Callable[[int, int], None]) -> gemma_tpu.Model:
        progress(3_000_000, 10_000_000)
        wait_for(lambda: ended)
        raise ValueError("shard 3 is torn")

    ended: list[bool] = []
    scripted.script = [wait]
    visit = Visit(browser, f"{server}/fresh/")
    places = ("#tabs", "#image-prompt", "#image-send", "#image-stats")

    def ys() -> list[float]:
        return [visit.page.locator(place).bounding_box()["y"] for place in places]

    before = ys()
    visit.begin("image", "hello")
    expect(visit.notice("image")).to_be_visible()
    assert ys() == before
    visit.page.click("#load")
    expect(visit.page.locator("#head [role=progressbar]")).to_be_visible()
    assert ys() == before
    ended.append(True)
    expect(visit.page.locator("#head [role=alert]")).to_be_visible()
    assert ys() == pytest.approx(before, abs=12)
    visit.close()


@contextlib.contextmanager
def at_the_same_place(model: gemma_tpu.Model, url: str, accounts: Sequence[str] = ()) -> Iterator[None]:
    with serve(model, port=urlsplit(url).port or 0, accounts=accounts):
        yield


def test_a_restart_is_said_and_loses_nothing(browser: Browser, model: gemma_tpu.Model, tmp_path: Path) -> None:
    picture = tmp_path / "noise.png"
    Image.effect_noise((60, 40), 90).convert("RGB").save(picture)
    with serve(model) as url:
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
        visit.context.close()  # Chromium notes each request that failed


def test_other_accounts_after_a_restart_are_asked_for(browser: Browser, model: gemma_tpu.Model) -> None:
    with serve(model) as url:
        visit = Visit(browser, url)
    with at_the_same_place(model, url, accounts=["ann:s:cret"]):
        with visit.page.expect_response(lambda response: response.request.is_navigation_request()) as loaded:
            pass
        assert loaded.value.status == 401
        assert "www-authenticate" in loaded.value.headers  # at which a browser asks
        look = httpx.get(f"{url}/gradio_api/app_id", headers={"x-requested-with": "fetch"})
        assert (look.status_code, "www-authenticate" in look.headers) == (401, False)  # at which it does not
    visit.context.close()  # Chromium notes each request that failed


def test_behind_a_proxy_that_strips_its_prefix_and_breaks_down(
    browser: Browser, model: gemma_tpu.Model, red_png: Path, slow: None
) -> None:
    with serve(model, root_path="/gemma") as inner:
        with proxy(inner, "/gemma") as url:
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
            visit.context.close()  # Chromium notes each request that failed


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
