"""static/webui_demo.html in a real browser, from a file and from `http.server`.

That it can talk to a running demo is in test_demo_app.py, which has one.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_site import said
from demo_site import CHROMIUM, LONG, Reader, serve_folder
from PIL import Image
from playwright.sync_api import Browser, expect

from demo.tab import EXAMPLES, examples
from demo.texts import text
from demo.webui.build import PAGE, RECORDING

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
FILE = PAGE.as_uri()


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with serve_folder(PAGE.parent) as url:
        yield url


@pytest.fixture
def reader(browser: Browser) -> Iterator[Reader]:
    reader = Reader(browser, FILE)
    yield reader
    reader.close()


def recorded(tab: str, *questions: str) -> dict[str, Any]:
    """The run of the last of `questions`, asked one after the other."""
    runs = json.loads(RECORDING.read_text())["runs"][tab]
    for question in questions:
        run = next(run for run in runs if run["question"] == question)
        runs = run["next"]
    return run


def answer(run: dict[str, Any]) -> str:
    return "".join(piece for *_, piece in run["pieces"])


@pytest.mark.parametrize(("lang", "locale"), [("en", "en-US"), ("zh", "zh-CN")])
@pytest.mark.parametrize("place", ["file", "server"])
def test_it_replays_the_recorded_runs(browser: Browser, served: str, place: str, lang: str, locale: str) -> None:
    reader = Reader(browser, FILE if place == "file" else f"{served}/webui_demo.html", locale=locale)
    page = reader.page
    assert page.evaluate("document.documentElement.lang") == lang
    expect(page.locator("#head .state")).to_have_text(text("idle", lang))
    expect(page.locator("#source .kind")).to_have_text(text("recording", lang))
    assert reader.load() == ["starting", "reading", "compiling", "ready"]
    expect(page.locator("#load")).to_have_text(text("loaded", lang))
    expect(page.locator("[data-fact=dtype]")).to_have_text("float32")

    for tab in ("image", "text"):
        page.click(f"#{tab}-tab-button")
        for i, example in enumerate(examples(tab)):
            page.locator(f".{tab}-example").nth(i).click()
            reader.send(tab)
            run = recorded(tab, example[lang])
            expect(reader.answers(tab).last).to_have_text(answer(run))
            expect(reader.stats(tab)).to_contain_text(f"{text('recording', lang)} · {len(run['tokens'])}")
            shown = page.locator(f"#{tab}-chat [data-testid=user]").last.locator("img")
            expect(shown).to_have_count(len(example.get("pictures", [])))
            for follow_up in example.get("then", {}).get(lang, []):
                page.locator(f"#{tab}-tab .follow-up", has_text=follow_up).click()
                page.clock.run_for(LONG)
            asked = [example[lang], *example.get("then", {}).get(lang, [])]
            expect(reader.answers(tab).last).to_have_text(answer(recorded(tab, *asked)))
            # Recorded without what stands above it, which only a new picture says by itself.
            expect(page.locator(f"#{tab}-chat .anew")).to_have_count(i if tab == "text" else 0)
    reader.close()


def test_language_switch(reader: Reader) -> None:
    reader.load()
    reader.page.locator(".image-example").nth(1).click()
    reader.send("image")
    reader.page.fill("#image-prompt textarea", "?")
    reader.page.press("#image-prompt textarea", "Enter")
    reader.page.click("text=中文")
    expect(reader.page.locator("#image-send")).to_have_text("发送")
    expect(reader.page.locator(".image-example").nth(1)).to_have_text(examples("image")[1]["zh"])
    expect(reader.stats("image")).to_contain_text("个 token")
    expect(reader.notice("image")).to_contain_text(text("unrecorded_question", "zh"))
    reader.page.click("#image-tab .settings summary")
    assert not re.search("Recording|Settings|Load|Send|Temperature", reader.page.locator("body").inner_text())


def test_what_was_not_recorded_is_not_answered(reader: Reader, tmp_path: Path) -> None:
    page = reader.page

    def refused(what: str) -> None:
        page.press("#image-prompt textarea", "Enter")
        expect(reader.notice("image")).to_contain_text(text(what, "en"))
        expect(reader.answers("image")).to_have_count(0)

    page.fill("#image-prompt textarea", question := examples("image")[0]["en"])
    refused("not_loaded")
    reader.load()
    refused("no_picture")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    page.set_input_files("#picture-1 input", tmp_path / "red.png")
    expect(page.locator("#picture-1 img")).to_be_visible()
    refused("unrecorded_picture")
    expect(reader.notice("image")).to_contain_text("make demo")
    # The picture of an example is the same wherever it comes from.
    page.set_input_files("#picture-1 input", EXAMPLES / "shapes.png")
    expect(reader.notice("image")).to_have_count(0)
    page.fill("#image-prompt textarea", "Who painted it?")
    refused("unrecorded_question")
    expect(page.locator("#image-prompt textarea")).to_have_value("Who painted it?")  # nothing typed is lost
    page.fill("#image-prompt textarea", question)
    page.click("#image-tab .settings summary")
    for name, value in (("temperature", 1), ("max_new_tokens", 3)):
        field = page.locator(f"#image-{name} input[type=number]")
        before = field.input_value()
        field.fill(str(value))
        refused("unrecorded_settings")
        field.fill(before)
    page.locator("#image-top_k input[type=number]").fill("1")  # which changes nothing that is greedy
    reader.send("image")
    expect(reader.answers("image")).to_have_text(answer(recorded("image", question)))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    page.set_input_files("#picture-1 input", broken)
    expect(reader.notice("image")).to_contain_text("broken.png")
    expect(page.locator("#picture-1 img")).to_have_count(0)  # nor is the one before asked about in its place


def test_a_drawing_is_refused_when_it_is_chosen(reader: Reader, tmp_path: Path) -> None:
    drawing = tmp_path / "plan.svg"
    drawing.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    page = reader.page
    for _ in range(2):
        page.set_input_files("#picture-1 input", EXAMPLES / "shapes.png")
        expect(page.locator("#picture-1 img")).to_have_css("background-color", "rgb(255, 255, 255)")
        page.set_input_files("#picture-1 input", drawing)
        expect(reader.notice("image")).to_contain_text(f"plan.svg: {text('drawing', 'en')}")
        expect(page.locator("#picture-1 img")).to_have_count(0)


def test_whole_numbers_are_shown_as_they_are_used(reader: Reader) -> None:
    reader.page.click("#image-tab .settings summary")
    for name, given, used in (
        ("max_new_tokens", "3.7", "4"),
        ("temperature", "0.33", "0.33"),
        ("top_k", "999.5", "256"),
    ):
        field = reader.page.locator(f"#image-{name} input[type=number]")
        field.fill(given)
        field.press("Tab")
        expect(field).to_have_value(used)


def test_stop_and_clear(reader: Reader) -> None:
    page = reader.page
    reader.load()
    page.click("#text-tab-button")
    page.locator(".text-example").last.click()
    page.clock.pause_at(page.evaluate("Date.now()") + 1000)
    page.click("#text-send")
    run = recorded("text", examples("text")[-1]["en"])
    whole, pieces = answer(run), run["pieces"]
    page.clock.run_for(8 * 1000 * (pieces[1][0] + pieces[2][0]) / 2)
    expect(reader.stats("text")).to_have_text(text("writing", "en"))
    page.click("#text-stop")
    expect(reader.stats("text")).to_have_text(f"Recording · {pieces[1][1]} tokens · stopped")
    written = reader.answers("text").inner_text()
    assert whole.startswith(written)
    assert 0 < len(written) < len(whole)
    page.click("#text-clear")
    expect(reader.answers("text")).to_have_count(0)
    page.locator(".text-example").last.click()
    page.click("#text-send")
    page.click("#text-clear")  # while it is written
    page.clock.run_for(LONG)
    expect(reader.answers("text")).to_have_count(0)
    expect(reader.stats("text")).to_have_text(text("prompt_keys", "en"))


def test_pictures_are_dropped_pasted_and_removed(reader: Reader) -> None:
    """A browser hands over files in the same way, whoever dropped them."""
    page = reader.page
    hand_over = """([target, type, name, data]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type: "image/png" }));
        const field = type === "paste" ? "clipboardData" : "dataTransfer";
        const event = new (type === "paste" ? ClipboardEvent : DragEvent)(type, { [field]: transfer, bubbles: true });
        document.querySelector(target).dispatchEvent(event);
    }"""
    for target, type, file in (("#image-prompt", "paste", "word.png"), ("#picture-2", "drop", "crowd.png")):
        data = base64.b64encode((EXAMPLES / file).read_bytes()).decode()
        page.evaluate(hand_over, [target, type, file, data])
        place = "#picture-1" if type == "paste" else target
        expect(page.locator(f"{place} img")).to_have_attribute("src", f"data:image/png;base64,{data}")
    page.click("#picture-2 .remove")
    expect(page.locator("#picture-2 img")).to_have_count(0)


def test_answers_are_shown_as_text(reader: Reader) -> None:
    rendered = """(text) => {
        const box = document.createElement("div");
        box.append(...renderMarkdown(text));
        return box.innerHTML;
    }"""
    for given, shown in {
        '<div>a<b & "c"</div>': '<p>&lt;div&gt;a&lt;b &amp; "c"&lt;/div&gt;</p>',
        "<img src=x onerror=alert(1)>": "<p>&lt;img src=x onerror=alert(1)&gt;</p>",
        "List<int> <thinking> </s> &lt;": "<p>List&lt;int&gt; &lt;thinking&gt; &lt;/s&gt; &amp;lt;</p>",
        "![a](https://x.org/a.png)": "<p>![a](https://x.org/a.png)</p>",
        "$5 and $10, $x^2$, \\(a<b\\)": "<p>$5 and $10, $x^2$, \\(a&lt;b\\)</p>",
        "2*3*4 = a_b_c\n\n**so** `x<y`": "<p>2*3*4 = a_b_c</p><p><strong>so</strong> <code>x&lt;y</code></p>",
        "``a`<b>`` ` `": "<p><code>a`&lt;b&gt;</code> <code> </code></p>",
        "# One\n- a\n- b\n3. c": '<p class="heading">One</p><ul><li>a</li><li>b</li></ul><ol start="3"><li>c</li></ol>',
        "```html\n<p>**x**\n```\nend": "<pre><code>&lt;p&gt;**x**</code></pre><p>end</p>",
        "~~~\n```\n~~~": "<pre><code>```</code></pre>",
        "```\nnot ended": "<pre><code>not ended</code></pre>",
        "[1, 2]\n  indented": "<p>[1, 2]\n  indented</p>",
    }.items():
        assert reader.page.evaluate(rendered, given).replace(' dir="auto"', "") == shown


def test_each_paragraph_has_its_own_direction(reader: Reader) -> None:
    directions = reader.page.evaluate("""() => {
        const box = document.createElement("div");
        box.append(...renderMarkdown("# שלום\\n\\n**مرحبا** a\\n\\nabc\\n\\n- שלום"));
        document.querySelector(".chat").append(box);
        return [...box.children].map((block) => getComputedStyle(block).direction);
    }""")
    assert directions == ["rtl", "rtl", "ltr", "rtl"]


def test_keyboard_alone(reader: Reader) -> None:
    page, keyboard = reader.page, reader.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(40):
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                outline = page.evaluate(
                    "() => [document.activeElement, document.activeElement.parentElement]"
                    ".some((e) => getComputedStyle(e).outlineStyle !== 'none')"
                )
                assert outline, f"{selector} does not show that it has the focus"
                return
            keyboard.press("Tab")
        raise AssertionError(f"{selector} cannot be reached")

    tab_to("#language input")
    keyboard.press("ArrowRight")
    expect(page.locator("#load")).to_have_text(text("load", "zh"))
    keyboard.press("ArrowLeft")
    tab_to("#load")
    keyboard.press("Enter")
    page.clock.run_for(LONG)
    expect(page.locator("#load")).to_have_text(text("loaded", "en"))
    tab_to("#source input")
    tab_to("#image-tab-button")
    tab_to("#picture-1 input")
    tab_to(".image-example")
    keyboard.press("Enter")
    tab_to("#image-prompt textarea")
    keyboard.press("Enter")
    page.clock.run_for(LONG)
    expect(reader.answers("image")).to_have_text(answer(recorded("image", examples("image")[0]["en"])))
    keyboard.press("Shift+Tab")
    tab_to("#image-prompt textarea")
    keyboard.type("a")
    keyboard.press("Shift+Enter")
    keyboard.type("b")
    expect(page.locator("#image-prompt textarea")).to_have_value("a\nb")
    tab_to("#image-clear")
    keyboard.press("Space")
    expect(reader.answers("image")).to_have_count(0)
    tab_to("#image-tab summary")
    keyboard.press("Enter")
    tab_to("#image-temperature input[type=range]")
    keyboard.press("ArrowRight")
    expect(page.locator("#image-temperature input[type=number]")).to_have_value("0.05")
    page.locator("#image-tab-button").focus()
    keyboard.press("ArrowRight")
    expect(page.locator("#text-prompt textarea")).to_be_visible()
    expect(page.locator("#image-prompt textarea")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_it_fits_a_phone(browser: Browser, locale: str, scheme: str) -> None:
    reader = Reader(browser, FILE, width=390, locale=locale, color_scheme=scheme, has_touch=True)
    page = reader.page
    reader.load()
    page.locator(".image-example").last.click()
    reader.send("image")
    page.fill("#image-prompt textarea", "?")
    page.press("#image-prompt textarea", "Enter")
    page.click("#image-tab .settings summary")
    page.click("#source button")
    expect(page.locator(".notice")).to_have_count(2)
    for tab in ("image", "text"):
        page.click(f"#{tab}-tab-button")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        small = page.evaluate("""() => [...document.querySelectorAll("button, input, summary, textarea")]
            .map((e) => e.closest("label") ?? e)
            .filter((e) => e.checkVisibility() && !(e.getBoundingClientRect().height >= 44))
            .map((e) => e.outerHTML.slice(0, 80))""")
        assert small == []
    back, ink = page.evaluate(
        "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (back, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    reader.close()


def test_everything_has_a_name(reader: Reader) -> None:
    reader.load()
    reader.page.locator(".image-example").last.click()
    reader.send("image")
    for tab in ("text", "image"):
        reader.page.click(f"#{tab}-tab-button")
        reader.page.click(f"#{tab}-tab .settings summary")
        nameless = reader.page.evaluate("""() => [...document.querySelectorAll("button, input, textarea, img, [role]")]
            .filter((e) => e.checkVisibility())
            .filter((e) => !(e.getAttribute("aria-label") || e.innerText?.trim() || e.labels?.[0]?.innerText.trim()
                || e.alt || e.closest("button")?.innerText.trim()))
            .filter((e) => e.role !== "status")
            .map((e) => e.outerHTML.slice(0, 80))""")
        assert nameless == []


@pytest.mark.parametrize(("lang", "locale", "width"), [("en", "en-US", 1280), ("zh", "zh-CN", 390)])
def test_the_chat_page_is_replayed(browser: Browser, lang: str, locale: str, width: int) -> None:
    """The real page's scripts, in a frame, on what the real server said."""
    reader = Reader(browser, FILE, locale=locale, width=width)
    page, chat = reader.page, reader.page.frame_locator("#chat-frame iframe")
    page.clock.resume()
    page.click("#chat-tab-button")
    expect(chat.locator(".chip-state")).to_contain_text(text("recording", lang))
    chat.locator(".card").first.click()
    chat.locator(".composer .send").first.click()
    answers = chat.locator("article.assistant")
    expect(answers.locator(".state")).to_contain_text("12" if lang == "en" else " ")
    expect(answers.locator(".body")).to_have_text(answer(recorded("image", examples("image")[0][lang])))
    if lang == "en":
        chat.get_by_role("button", name=said("tokens", lang)).click()
        chat.locator(".token", has_text="star").first.click()
        chat.get_by_role("button", name=said("look", lang)).click()
        expect(chat.locator("dialog.attention canvas")).to_be_visible()
        page.keyboard.press("Escape")
    chat.locator("[data-drawer=inside]").click()
    expect(chat.locator("[data-section=pictures] img")).to_be_visible()
    expect(chat.locator("[data-section=sequence] .chip.soft")).to_have_count(1)
    chat.locator(".prediction button").click()
    expect(chat.locator(".prediction .facts")).to_contain_text("v5e-1")
    chat.locator(".panel > header button").click()
    chat.locator(".composer textarea").fill("Something else")
    chat.locator(".composer textarea").press("Enter")
    expect(answers.last.locator(".notice")).to_have_text(text("unrecorded_chat", lang))
    page.reload()
    page.clock.resume()
    page.click("#chat-tab-button")
    expect(answers).to_have_count(2)  # the browser keeps it
    page.locator(f"#language label[lang={'zh' if lang == 'en' else 'en'}]").click()
    expect(chat.locator(".chip-state")).to_contain_text(text("recording", "zh" if lang == "en" else "en"))
    reader.close()
