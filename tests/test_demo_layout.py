"""How the demo page is laid out: sizes, languages, long words, a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from demo_site import CHROMIUM, Scripted, Visit, wait_for
from PIL import Image
from playwright.sync_api import Browser, expect

import gemma_tpu
from demo.chat import Answer
from demo.tab import examples
from demo.texts import text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")


def test_places_keep_their_size_and_pictures_have_names(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    heights = [page.locator("#picture-1").bounding_box()["height"]]
    for name, size in (("point", (1, 1)), ("line", (8000, 20)), ("column", (20, 3000))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
        page.set_input_files("#picture-1 input[type=file]", tmp_path / f"{name}.png")
        expect(page.locator(f'#picture-1 img[src$="{name}.png"]')).to_be_visible()
        heights.append(page.locator("#picture-1").bounding_box()["height"])
    assert set(heights) == {250}
    visit.set("image", max_new_tokens=2)
    visit.ask("image", "What?")
    shown = page.locator("#image-chat img")
    expect(shown).to_have_attribute("alt", text("picture", "en"))
    assert min(shown.bounding_box()[side] for side in ("width", "height")) >= 40
    expect(page.locator("#picture-1 img")).to_have_attribute("alt", text("picture", "en"))
    page.click("text=中文")
    expect(shown).to_have_attribute("alt", text("picture", "zh"))


# What asks for something in English is sent late.
SLOW_ENGLISH = """
  const send = window.fetch;
  window.fetch = async (address, options) => {
    const english = String(address).includes("/queue/join") && JSON.parse(options.body).data[0] === "en";
    if (english) await new Promise((done) => setTimeout(done, 1500));
    return send(address, options);
  };
"""


def test_the_language_chosen_last_is_kept(visit: Visit) -> None:
    """While the page is restored, too, and by someone who cannot decide."""
    page, send = visit.page, visit.page.locator("#image-send")
    visit.leaves = True
    page.add_init_script(SLOW_ENGLISH)
    page.reload()
    page.click("text=中文")
    expect(send).to_have_text(text("send", "zh"))
    page.wait_for_timeout(3000)
    expect(send).to_have_text(text("send", "zh"))
    for language in ("English", "中文"):
        page.click(f"text={language}")
    page.wait_for_timeout(3000)
    expect(send).to_have_text(text("send", "zh"))
    assert page.evaluate("document.documentElement.lang") == "zh"


def test_language_switch(visit: Visit, browser: Browser, server: str) -> None:
    page = visit.page
    visit.set("image", max_new_tokens=2)
    page.locator(".image-example").first.click()
    expect(page.locator("#picture-1 img")).to_be_visible()  # and with it the example's prompt, to be typed over
    visit.ask("image", "What?")
    page.click("#image-send")
    expect(visit.notice("image")).to_have_text(text("empty_prompt", "en"))
    page.click("text=中文")
    expect(visit.notice("image")).to_have_count(0)  # none in the other language
    expect(page.locator("#load")).to_have_text(text("loaded", "zh"))
    expect(page.locator("#image-send")).to_have_text(text("send", "zh"))
    expect(page.locator("#image-tab-button")).to_have_text(text("tab_image", "zh"))
    expect(page.locator("#image-prompt textarea")).to_have_attribute("placeholder", text("prompt_image", "zh"))
    expect(page.locator(".image-example").nth(1)).to_have_text(examples("image")[1]["zh"])
    expect(visit.stats("image")).to_contain_text("2 个 token")
    expect(visit.answers("image")).to_have_count(1)
    assert page.evaluate("document.documentElement.lang") == "zh"
    page.click("#image-send")
    expect(visit.notice("image")).to_have_text(text("empty_prompt", "zh"))
    page.click("text=English")
    expect(page.locator("#image-send")).to_have_text("Send")

    chinese = Visit(browser, server, locale="zh-CN")
    expect(chinese.page.locator("#image-send")).to_have_text(text("send", "zh"))
    chinese.close()


def test_long_words_and_wide_tables_stay_in_the_conversation(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [f"Heading{i}" for i in range(20)]
    table = "\n".join(f"|{'|'.join(row)}|" for row in (columns, ["-"] * 20, ["1"] * 20))
    monkeypatch.setattr(Answer, "text", property(lambda _: table))
    page = visit.page
    visit.set("image", max_new_tokens=1)
    page.locator(".image-example").last.click()
    expect(page.locator("#picture-2 img")).to_be_visible()
    visit.ask("image", "W" * 100)
    expect(visit.answers("image").locator("th")).to_have_count(20)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        right = "(e) => e.getBoundingClientRect().right"
        edge = page.locator("#image-chat").evaluate(right)
        for element in page.locator("#image-chat :is(.user, .bot, .user p, table)").all():
            assert element.evaluate(right) <= edge, (width, element.evaluate("(e) => e.outerHTML.slice(0, 80)"))
        heights = (
            visit.answers("image")
            .locator("th")
            .evaluate_all("(all) => all.map((e) => e.getBoundingClientRect().height)")
        )
        assert max(heights) < 50, (width, heights)  # of one line
        assert visit.answers("image").locator("table").evaluate("(e) => e.scrollWidth > e.clientWidth")


def test_page_fits_a_phone(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 390, "height": 844})
    visit.page.locator(".image-example").last.click()
    expect(visit.page.locator("#picture-2 img")).to_be_visible()
    width = visit.page.evaluate("document.documentElement.scrollWidth")
    assert width == 390
    for name in ("#picture-1", "#picture-2", "#image-chat", "#image-prompt", "#image-send", "#load"):
        box = visit.page.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["width"] > 80


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
    closed = desk.locator(".settings").first
    assert closed.evaluate("box => box.scrollWidth <= box.clientWidth")  # or it has a scroll bar
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
