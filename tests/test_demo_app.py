"""The demo page in a real browser: Debian's Chromium, driven by Playwright, on a tiny random model."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from demo_site import CHROMIUM, Scripted, Visit, busy, wait_for
from PIL import Image
from playwright.sync_api import Browser, expect
from small_models import Gate

import gemma_tpu
from demo.chat import Answer
from demo.tab import examples
from demo.texts import text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
ENDLESS = 8000  # tokens


def test_model_is_loaded_with_progress_and_again_after_a_failure(
    browser: Browser, server: str, scripted: Scripted, model: gemma_tpu.Model
) -> None:
    go_on = threading.Event()

    def fail(progress: Callable[[int, int], None]) -> gemma_tpu.Model:
        raise ValueError("shard 3 is <torn>")

    def succeed(progress: Callable[[int, int], None]) -> gemma_tpu.Model:
        progress(3_000_000, 10_000_000)
        assert go_on.wait(60)
        return model

    scripted.script = [fail, succeed]
    visit = Visit(browser, f"{server}/fresh/")
    page = visit.page
    button, state = page.locator("#load"), page.locator("#head .state")
    expect(state).to_have_text("Not loaded")
    visit.begin("image", "hello")
    expect(visit.notice("image")).to_contain_text("Load model")

    button.click()
    expect(state).to_have_text("Loading failed")
    expect(page.locator("#head [role=alert]")).to_contain_text("shard 3 is <torn>")
    expect(button).to_have_text("Try again")

    button.click()
    expect(page.locator("#head [role=progressbar]")).to_have_attribute("aria-valuenow", "30")
    expect(page.locator("#head .progress")).to_contain_text("3.0 MB of 10.0 MB")
    expect(button).to_have_text("Loading… 30 %")
    expect(button).to_be_disabled()
    page.click("#image-send")
    expect(visit.notice("image")).to_contain_text("still loading")

    go_on.set()
    expect(state).to_contain_text("Ready")
    expect(button).to_have_text("Model loaded")
    for fact, value in {"devices": "cpu × 1", "mesh": "1 data × 1 model", "dtype": "float32"}.items():
        expect(page.locator(f"[data-fact={fact}]")).to_have_text(value)
    expect(page.locator("#head h1")).to_have_text("gemma3-tiny")
    visit.close()


def test_text_answer_streams_and_is_what_the_library_says(visit: Visit, model: gemma_tpu.Model, gate: Gate) -> None:
    # Longer than it gets while the page is looked at, for it goes on meanwhile.
    visit.go("text")
    visit.set("text", max_new_tokens=2000)
    visit.begin("text", "hello there")
    expect(visit.answers("text")).to_have_count(1)
    shown = 0
    for gate.tokens in (100, 200, 300):
        wait_for(lambda before=shown: len(visit.answer("text")) > before)
        shown = len(visit.answer("text"))
        expect(visit.page.locator("#text-stop")).to_be_visible()
    gate.tokens = math.inf
    visit.ended("text")
    expect(visit.stats("text")).to_have_text(
        re.compile(r"2,000 tokens · [\d,.]+ tokens/s · first token after [\d.]+ s · prompt of \d+ tokens · cut at")
    )
    assert visit.answer("text") == model.generate("hello there", max_new_tokens=2000).text


def test_follow_up_is_told_the_conversation_so_far(visit: Visit, model: gemma_tpu.Model) -> None:
    visit.go("text")
    visit.set("text", max_new_tokens=20)
    first = visit.ask("text", "one <start_of_image> *two*")
    second = visit.ask("text", "three")
    chat = model.chat(max_new_tokens=20)
    assert [first, second] == [chat.send("one <start_of_image> *two*").text, chat.send("three").text]
    expect(visit.page.locator("#text-chat [data-testid=user]").first).to_have_text("one <start_of_image> *two*")
    visit.page.click("#text-clear")
    expect(visit.answers("text")).to_have_count(0)
    assert visit.ask("text", "three") == model.generate("three", max_new_tokens=20).text


def test_what_was_typed_is_shown_as_typed(visit: Visit) -> None:
    lines = ["2*3*4 = a_b_c", "<b>bold</b> & <start_of_turn> &amp;", "# no heading", "- no list", "+ no list"]
    lines += ["1. no list", "1) no list", "==", "--", "> no quote", "`no code` ~~kept~~ [text](link) ![x](y) | a |"]
    lines += ["a\\*b \\", "你好，*世界*", "x $$y$$ $z$", "if x:", "    indented"]
    visit.go("text")
    visit.set("text", max_new_tokens=1)
    visit.ask("text", "\n".join(lines))
    shown = visit.page.locator("#text-chat [data-testid=user]").inner_text()
    assert shown.replace("\u200b", "").replace("\u00a0", " ").strip().split("\n") == lines


def test_questions_about_a_picture(visit: Visit, model: gemma_tpu.Model, red_png: Path) -> None:
    visit.set("image", max_new_tokens=20)
    visit.page.set_input_files("#picture-1 input[type=file]", red_png)
    expect(visit.page.locator("#picture-1 img")).to_be_visible()
    chat = model.chat(max_new_tokens=20)
    assert visit.ask("image", "What?") == chat.send("What?", images=[red_png]).text
    expect(visit.page.locator("#image-chat img")).to_have_count(1)
    assert visit.ask("image", "And where?") == chat.send("And where?").text
    expect(visit.page.locator("#image-chat img")).to_have_count(1)  # shown to the model once
    # A new picture is a new subject.
    visit.page.locator(".image-example").first.click()
    picture = Path(examples("image")[0]["pictures"][0])
    expect(visit.page.locator(f'#picture-1 img[src$="{picture.name}"]')).to_be_visible()
    path = Path(__file__).parent.parent / "demo" / "examples" / picture
    assert visit.ask("image", "What?") == model.generate("What?", images=[path], max_new_tokens=20).text


def test_crops_of_a_wide_picture_are_shown_when_asked_for(visit: Visit, model: gemma_tpu.Model, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.effect_noise((600, 256), 90).convert("RGB").save(wide)
    visit.set("image", max_new_tokens=20)
    visit.page.check("#image-pan-and-scan input")
    visit.page.set_input_files("#picture-1 input[type=file]", wide)
    expect(visit.page.locator("#picture-1 img")).to_be_visible()
    whole = model.generate("What?", images=wide, pan_and_scan=True, max_new_tokens=20)
    assert visit.ask("image", "What?") == whole.text
    assert whole.usage.image_tokens == 3 * model.config.vision.num_soft_tokens


def test_a_cut_answer_goes_on(visit: Visit, model: gemma_tpu.Model) -> None:
    visit.go("text")
    button = visit.page.locator("#text-continue")
    expect(button).to_be_hidden()
    visit.set("text", max_new_tokens=20)
    cut = visit.ask("text", "hello there")
    expect(button).to_be_visible()
    visit.page.click("text=中文")
    expect(button).to_have_text(text("go_on", "zh"))
    visit.page.click("text=English")
    button.click()
    messages = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": cut}]
    rest = model.generate(messages, continue_final=True, max_new_tokens=20).text
    wait_for(lambda: visit.answer("text") == cut.rstrip() + rest)
    visit.ended("text")
    expect(visit.answers("text")).to_have_count(1)
    visit.page.click("#text-clear")
    expect(button).to_be_hidden()


def test_answers_are_shown_as_they_were_said(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Gradio's own renderer; what it is given is tested in test_demo_markdown.py."""
    tags = ["<div>x</div>", "a<b c>d", "List<int>", "<thinking>hm</thinking>", "</s>", "<img src=x onerror=alert(1)>"]
    image = "![remote](https://example.com/a.png)"
    said = [*tags, "`<p>` `$c$`", "```\n<code> \\(d\\)\n```", "$5 and $10", image, "[link](https://example.com/b)"]
    said += ["$x^2$", "\\(y<z\\)", "$$\\frac{1}{2}$$", "\\[E\\]", "**مرحبا** بالعالم", "- שלום"]
    monkeypatch.setattr(Answer, "text", property(lambda _: "\n\n".join(said)))
    page = visit.page
    visit.go("text")
    visit.set("text", max_new_tokens=1)
    visit.ask("text", "\n".join(tags))
    answer = visit.answers("text").last
    expect(answer.locator(".katex")).to_have_count(4)
    shown = answer.inner_text()
    for line in (*tags, "<p> $c$", "<code> \\(d\\)", "$5 and $10", image.split("(")[0], "link"):
        assert line in shown
    assert page.locator("#text-chat [data-testid=user]").inner_text().strip().split("\n") == tags
    assert answer.locator("img, div div").count() == answer.locator(".code_wrap, .code_wrap div").count()
    assert answer.locator(".katex-display").count() == 2
    assert answer.locator(".katex-error").count() == 0
    for link in answer.locator("a").all():
        assert "noopener" in link.get_attribute("rel")
    sides = "(e) => [getComputedStyle(e).direction, getComputedStyle(e).textAlign]"
    assert answer.locator("p", has_text="مرحبا").evaluate(sides) == ["rtl", "start"]
    assert answer.locator("ul", has_text="שלום").evaluate(sides) == ["rtl", "start"]
    assert answer.locator("p", has_text="List").evaluate(sides) == ["ltr", "start"]

    # Whatever should make the page ask for it, pictures of other hosts are not loaded.
    blocked = page.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.blockedURI));
            new Image().src = "https://example.com/a.png";
        })"""
    )
    assert blocked == "https://example.com/a.png"
    visit.problems = [problem for problem in visit.problems if blocked not in problem]


def test_examples_fill_the_form(visit: Visit) -> None:
    field = visit.page.locator("#image-prompt textarea")
    for i, example in enumerate(examples("image")):
        visit.page.locator(".image-example").nth(i).click()
        expect(field).to_have_value(example["en"])
        for number in range(2):
            shown = visit.page.locator(f"#picture-{number + 1} img")
            if number < len(example["pictures"]):
                expect(shown).to_have_attribute("src", re.compile(re.escape(example["pictures"][number]) + "$"))
            else:
                expect(shown).to_have_count(0)
    visit.go("text")
    for i, example in enumerate(examples("text")):
        visit.page.locator(".text-example").nth(i).click()
        expect(visit.page.locator("#text-prompt textarea")).to_have_value(example["en"])


def test_stop_stops_the_engine_and_so_does_leaving(
    visit: Visit, browser: Browser, server: str, model: gemma_tpu.Model, gate: Gate
) -> None:
    visit.go("text")
    visit.set("text", max_new_tokens=ENDLESS)
    visit.begin("text", "hello there")
    wait_for(lambda: busy(model))
    # Another visitor waits for the only row, and can give up too.
    other = Visit(browser, server, alone=True)
    other.go("text")
    other.set("text", max_new_tokens=5)
    other.begin("text", "hello")
    expect(other.page.locator("#text-stop")).to_be_visible()
    other.page.click("#text-stop")
    other.ended("text")
    visit.page.click("#text-stop")
    expect(visit.stats("text")).to_contain_text("stopped")
    wait_for(lambda: not busy(model))
    count = int(re.match(r"([\d,]+) tokens", visit.stats("text").inner_text())[1].replace(",", ""))
    assert 0 < count < ENDLESS
    assert other.ask("text", "hello") == model.generate("hello", max_new_tokens=5).text

    other.set("text", max_new_tokens=ENDLESS)
    other.begin("text", "hello there")
    wait_for(lambda: busy(model))
    other.close()
    wait_for(lambda: not busy(model))


def test_each_open_page_is_a_client(
    visit: Visit, browser: Browser, server: str, model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients, submit = [], model.engine.submit

    def noted(*args):
        request = submit(*args)
        clients.append(request.client)
        return request

    monkeypatch.setattr(model.engine, "submit", noted)
    other = Visit(browser, server, alone=True)
    for one in (visit, other, visit):
        one.go("text")
        one.set("text", max_new_tokens=5)
        one.ask("text", "hello")
    other.close()
    first, second, again = clients
    assert first == again != second
    assert None not in clients


def test_clearing_stops_the_answer(visit: Visit, model: gemma_tpu.Model, gate: Gate) -> None:
    visit.go("text")
    visit.set("text", max_new_tokens=ENDLESS)
    visit.begin("text", "hello there")
    wait_for(lambda: busy(model))
    visit.page.click("#text-clear")
    wait_for(lambda: not busy(model))
    expect(visit.answers("text")).to_have_count(0)
    visit.set("text", max_new_tokens=3)
    visit.ask("text", "hello")
    expect(visit.answers("text")).to_have_count(1)


def test_a_conversation_that_outgrows_the_context_goes_on_when_asked_to(visit: Visit, model: gemma_tpu.Model) -> None:
    words = 3000 // len(model.tokenizer.encode("What?"))  # two such questions fill the context
    visit.go("text")
    visit.set("text", max_new_tokens=20)
    for _ in range(2):
        assert visit.ask("text", "What? " * words) != text("no_answer", "en")  # which would leave no trace
    visit.begin("text", "What? " * words)
    expect(visit.notice("text")).to_contain_text("shorten it")
    visit.page.check("#text-drop-oldest input")
    visit.ask("text", "What? " * words)
    expect(visit.stats("text")).to_contain_text("oldest turns forgotten: 1")
    expect(visit.answers("text")).to_have_count(3)  # on the screen it stays
