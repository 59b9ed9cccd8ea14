"""The demo page in a real browser: Debian's Chromium, driven by Playwright, on a tiny random model."""

from __future__ import annotations

import functools
import http.server
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from demo_site import CHROMIUM, FLAGS, Reader, Scripted, Visit, busy, serve, serve_folder, tiny_model, wait_for
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

import gemma_tpu
from demo.chat import Answer
from demo.state import Status
from demo.tab import examples
from demo.texts import text
from demo.webui.build import PAGE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
ENDLESS = 8000  # tokens
# The RGBA values of the picture at an address.
PIXELS = """async (address) => {
    const bitmap = await createImageBitmap(await (await fetch(address)).blob());
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    return [...context.getImageData(0, 0, bitmap.width, bitmap.height).data];
}"""


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with tiny_model() as model:
        yield model


@pytest.fixture
def slow(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a model is done before anybody could stop it: here it writes 400 tokens a second."""
    decode = model.engine._runner._decode

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.02)
        return decode(*arguments)

    monkeypatch.setattr(model.engine._runner, "_decode", slowly)


@pytest.fixture(scope="module")
def scripted() -> Scripted:
    return Scripted("path/to/gemma3-tiny")


@pytest.fixture(scope="module")
def static() -> Iterator[str]:
    """Where webui_demo.html is."""
    with serve_folder(PAGE.parent) as url:
        yield url


@pytest.fixture(scope="module")
def server(model: gemma_tpu.Model, scripted: Scripted, static: str) -> Iterator[str]:
    with serve(model, scripted, origins=[static, "null"]) as url:
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
    path = tmp_path / "red.png"
    Image.new("RGB", (60, 40), (200, 30, 30)).save(path)
    return path


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


def test_text_answer_streams_and_is_what_the_library_says(visit: Visit, model: gemma_tpu.Model, slow: None) -> None:
    visit.go("text")
    visit.set("text", max_new_tokens=500)
    visit.begin("text", "hello there")
    expect(visit.page.locator("#text-stop")).to_be_visible()
    lengths = set()
    while visit.page.locator("#text-stop").is_visible():
        lengths.add(len(visit.answer("text")))
    assert len(lengths) > 2  # it came piece by piece
    visit.ended("text")
    expect(visit.stats("text")).to_have_text(
        re.compile(r"500 tokens · [\d,.]+ tokens/s · first token after [\d.]+ s · prompt of \d+ tokens · cut at")
    )
    assert visit.answer("text") == model.generate("hello there", max_new_tokens=500).text


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


def test_a_picture_can_be_given_as_an_address_where_that_is_allowed(
    visit: Visit, browser: Browser, server: str, red_png: Path
) -> None:
    expect(visit.page.locator("#picture-address")).to_have_count(0)
    fresh = Visit(browser, f"{server}/fresh/")
    field, notice = fresh.page.locator("#picture-address input, #picture-address textarea"), fresh.notice("image")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(red_png.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{files.server_port}"
        for address, said in (
            ("/etc/hostname", "begins with https"),
            (f"{here}/no.png", "404"),
            (f"{here}/", "web page"),
        ):
            field.fill(address)
            field.press("Enter")
            expect(notice).to_contain_text(said)
        field.fill(f"{here}/red.png")
        field.press("Enter")
        expect(fresh.page.locator("#picture-1 img")).to_be_visible()
        expect(notice).to_have_count(0)
        files.shutdown()
    fresh.close()


@pytest.mark.parametrize("marked", [True, False])
def test_files_of_the_server_cannot_be_named(server: str, red_png: Path, marked: bool) -> None:
    """A program that says a picture is at some path of the server is neither shown it nor told whether it is there."""
    mark = {"meta": {"_type": "gradio.FileData"}} if marked else {}
    with httpx.Client(base_url=f"{server}/gradio_api", timeout=60) as client:
        page = client.get(f"{server}/config").json()
        parts = {part["id"]: part for part in page["components"]}
        (looked_at,) = (
            function["id"]
            for function in page["dependencies"]
            if [parts[i]["props"].get("elem_id") for i in function["inputs"]] == ["picture-1", "language"]
        )
        uploaded = client.post("/upload", files={"files": ("red.png", red_png.read_bytes(), "image/png")}).json()[0]
        for path in (
            str(red_png),
            "/etc/passwd",
            "/not/there.png",
            f"{Path(uploaded).parent}/../../../..{red_png}",
            uploaded,
        ):
            asked = {"data": [{"path": path, **mark}, "en"], "fn_index": looked_at, "session_hash": uuid.uuid4().hex}
            client.post("/queue/join", json=asked).raise_for_status()
            events = client.get("/queue/data", params={"session_hash": asked["session_hash"]}).text
            assert ('"success":true' in events.replace(" ", "")) == (path == uploaded), events
            assert ("uploaded" in events) == (path != uploaded)  # each of the two that look says so


def test_the_model_is_shown_the_picture_that_the_page_shows(
    visit: Visit, model: gemma_tpu.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an answer and a change of language, at both of which Gradio makes the page's components anew."""
    seen: list[Any] = []
    submit = model.engine.submit

    def watch(tokens: Any, images: Any = (), *rest: Any) -> Any:
        seen.extend(images)
        return submit(tokens, images, *rest)

    monkeypatch.setattr(model.engine, "submit", watch)
    rgba = np.full((40, 60, 4), (200, 30, 30, 255), np.uint8)
    rgba[:, 20:40, 3], rgba[:, 40:] = 90, 0
    red, clear, deep = (tmp_path / f"{name}.png" for name in ("red", "clear", "deep"))
    Image.fromarray(rgba[..., :3]).save(red)
    Image.fromarray(rgba).save(clear)
    Image.fromarray(np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60)).save(deep)
    page, place = visit.page, visit.page.locator("#picture-1 img")
    visit.set("image", max_new_tokens=2)
    for language, file in (("English", red), ("中文", clear), ("English", deep), ("English", clear)):
        page.click(f"text={language}")
        expect(page.locator("#image-send")).to_have_text(text("send", {"English": "en"}.get(language, "zh")))
        before = place.get_attribute("src") if place.count() else None
        page.set_input_files("#picture-1 input[type=file]", file)
        expect(place).not_to_have_attribute("src", before or "")
        # The place shows the file at first, and what the model sees of it as soon as that is known.
        expect(place).to_have_attribute("src", re.compile(r"red\.png$" if file == red else r"/image\.png$"))
        visit.ask("image", "What?")
        expected, shown = gemma_tpu.load_image(file), seen.pop()
        np.testing.assert_array_equal(shown.pixels, gemma_tpu.image.to_pixels(expected, shown.side))
        drawn = page.evaluate(PIXELS, place.get_attribute("src"))
        np.testing.assert_array_equal(np.array(drawn, np.uint8).reshape(40, 60, 4)[..., :3], np.asarray(expected))
        assert not seen


def test_what_is_no_picture_is_refused_in_the_same_words(visit: Visit, tmp_path: Path) -> None:
    """The first file, too, and even though Gradio knows some of them for no pictures by their names."""
    page = visit.page
    page.click("text=中文")
    expect(page.locator("#image-send")).to_have_text(text("send", "zh"))
    broken = b"\x89PNG\r\n\x1a\n" + bytes(100)
    for name, content in {"broken.png": broken, "notes.txt": b"hello", "page.pdf": b"%PDF-1.7"}.items():
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#picture-1 input[type=file]", tmp_path / name)
        expect(visit.notice("image")).to_have_text(re.compile("^无法用作图片：" + re.escape(name) + ": [^/]+$"))
        expect(page.locator("#picture-1 img")).to_have_count(0)
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File(["%PDF-1.7"], "dropped.pdf", { type: "application/pdf" }));
            const target = document.querySelector("#picture-1 button");
            target.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }"""
    )
    expect(visit.notice("image")).to_contain_text("dropped.pdf: a PDF document")
    expect(page.locator(".toast-body")).to_have_count(0)


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
    visit: Visit, browser: Browser, server: str, model: gemma_tpu.Model, slow: None
) -> None:
    visit.go("text")
    visit.set("text", max_new_tokens=ENDLESS)
    visit.begin("text", "hello there")
    wait_for(lambda: busy(model))
    # Another visitor waits for the only row; he can give up too.
    other = Visit(browser, server)
    other.go("text")
    other.set("text", max_new_tokens=5)
    if busy(model):
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


def test_clearing_stops_the_answer(visit: Visit, model: gemma_tpu.Model, slow: None) -> None:
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


def test_settings_reach_the_model(visit: Visit, model: gemma_tpu.Model) -> None:
    visit.go("text")
    visit.set("text", max_new_tokens=1)
    visit.ask("text", "hello")
    expect(visit.stats("text")).to_contain_text("1 token ·")
    visit.page.click("#text-clear")
    visit.page.uncheck("#text-random-seed input")
    visit.set("text", max_new_tokens=12, temperature=1.5, top_k=7, top_p=0.9, min_p=0.02, seed=11)
    options = {"max_new_tokens": 12, "temperature": 1.5, "top_k": 7, "top_p": 0.9, "min_p": 0.02}
    assert visit.ask("text", "hello") == model.generate("hello", seed=11, **options).text
    expect(visit.stats("text")).to_contain_text("seed 11")


def test_a_checkpoints_own_defaults_are_shown_and_used(
    server: str, browser: Browser, model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = gemma_tpu.SamplingParams(max_new_tokens=9, temperature=1.0, top_k=5, top_p=0.5, min_p=0.25)
    monkeypatch.setattr(model, "defaults", own)
    visitor = Visit(browser, server, locale="en")
    visitor.go("text")
    visitor.page.locator(".settings > button").locator("visible=true").click()
    for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p"):
        value = f"{getattr(own, name):g}"
        expect(visitor.page.locator(f'#text-{name} input[type="number"]')).to_have_value(value)
    visitor.set("text", max_new_tokens=4)
    visitor.ask("text", "hello")
    expect(visitor.stats("text")).to_contain_text("4 tokens")
    visitor.close()


def test_wrong_input_is_answered_in_the_page(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    page.click("#image-send")
    expect(visit.notice("image")).to_have_text(text("empty_prompt", "en"))
    visit.begin("image", "What is it?")
    expect(visit.notice("image")).to_have_text(text("no_picture", "en"))
    expect(page.locator("#image-prompt textarea")).to_have_value("What is it?")  # nothing typed is lost

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    page.set_input_files("#picture-1 input[type=file]", broken)
    expect(visit.notice("image")).to_contain_text("broken.png")
    expect(visit.notice("image")).not_to_contain_text("/")
    expect(page.locator("#picture-1 img")).to_have_count(0)

    tiff = tmp_path / "scan.tiff"  # which browsers do not show
    Image.new("RGB", (30, 20), "green").save(tiff)
    page.set_input_files("#picture-1 input[type=file]", tiff)
    expect(page.locator('#picture-1 img[src$=".png"]')).to_be_visible()
    expect(visit.notice("image")).to_have_count(0)

    visit.go("text")
    visit.begin("text", "word " * 9000)
    expect(visit.notice("text")).to_contain_text("shorten it")
    visit.set("text", max_new_tokens=2)
    visit.ask("text", "hello")
    expect(visit.notice("text")).to_have_count(0)


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


# The page that needs no server, connected to this one.


def set_length(reader: Reader, tab: str, tokens: int) -> None:
    page = reader.page
    if not page.locator(f"#{tab}-max_new_tokens").is_visible():
        page.click(f"#{tab}-tab .settings summary")
    page.fill(f"#{tab}-max_new_tokens input[type=number]", str(tokens))


@pytest.mark.parametrize("place", ["file", "server"])
def test_a_running_demo_answers(
    browser: Browser, static: str, server: str, model: gemma_tpu.Model, place: str, tmp_path: Path
) -> None:
    reader = Reader(browser, PAGE.as_uri() if place == "file" else f"{static}/webui_demo.html", live=server)
    page = reader.page
    expect(page.locator("#source .about")).to_contain_text(server)
    expect(page.locator("#head h1")).to_have_text("gemma3-tiny")
    expect(page.locator("#load")).to_have_text(text("loaded", "en"))

    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "red.png")
    page.set_input_files("#picture-1 input", tmp_path / "red.png")
    set_length(reader, "image", 20)
    chat = model.chat(max_new_tokens=20)
    for question, images in (("What <b>is</b> it?", [tmp_path / "red.png"]), ("And where?", [])):
        page.fill("#image-prompt textarea", question)
        page.press("#image-prompt textarea", "Enter")
        said = chat.send(question, images=images)
        expect(reader.stats("image")).to_contain_text(re.compile(f"20 tokens .* of {said.usage.prompt_tokens} .*cut"))
        rendered = page.evaluate("(t) => renderMarkdown(t).map((e) => e.innerText).join('')", said.text)
        assert "".join(reader.answers("image").last.inner_text().split()) == "".join(rendered.split())
        expect(page.locator("#image-chat [data-testid=user]").last).to_have_text(question)
    expect(page.locator("#image-chat img")).to_have_count(1)  # shown to the model once

    page.click("#text-tab-button")
    page.fill("#text-prompt textarea", "word " * 9000)
    page.click("#text-send")
    expect(reader.notice("text")).to_contain_text("shorten it")
    page.click("text=中文")
    expect(reader.notice("text")).to_contain_text("模型无法处理此输入")
    reader.problems = [problem for problem in reader.problems if "400" not in problem]  # Chromium's note of the refusal
    page.click("#source > button")
    expect(page.locator("#head h1")).to_have_text("gemma3-demo")
    expect(page.locator("#source .kind")).to_have_text(text("recording", "zh"))
    reader.close()


def test_it_loads_the_model_of_a_running_demo(
    browser: Browser, static: str, server: str, scripted: Scripted, model: gemma_tpu.Model
) -> None:
    go_on = threading.Event()

    def load(progress: Callable[[int, int], None]) -> gemma_tpu.Model:
        progress(3_000_000, 10_000_000)
        assert go_on.wait(60)
        return model

    scripted.script, scripted.model, scripted.status = [load], None, Status()
    reader = Reader(browser, f"{static}/webui_demo.html", live=f"{server}/fresh")
    reader.page.fill("#image-prompt textarea", "Hello")
    reader.page.click("#image-send")
    expect(reader.notice("image")).to_have_text(text("not_loaded", "en"))
    reader.page.click("#load")
    expect(reader.page.locator("#head .progress")).to_contain_text("3.0 MB of 10.0 MB")
    expect(reader.page.locator("#load")).to_be_disabled()
    go_on.set()
    expect(reader.page.locator("#load")).to_have_text(text("loaded", "en"))
    reader.close()


def test_stopping_and_leaving_stop_the_engine(
    browser: Browser, static: str, server: str, model: gemma_tpu.Model, slow: None
) -> None:
    reader = Reader(browser, f"{static}/webui_demo.html", live=server)
    page = reader.page
    page.click("#text-tab-button")
    set_length(reader, "text", 8000)
    for leave in (False, True):
        page.fill("#text-prompt textarea", "hello there")
        page.click("#text-send")
        expect(reader.stats("text")).to_have_text(text("writing", "en"))
        if leave:
            reader.close()
        else:
            page.click("#text-stop")
            expect(reader.stats("text")).to_contain_text(re.compile(r"tokens · .*stopped"))
        wait_for(lambda: not busy(model))


def test_a_demo_that_cannot_be_reached_is_explained(browser: Browser, static: str, server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    stranger = static.replace("127.0.0.1", "localhost")  # another origin, which the demo has not been told of
    reader = Reader(browser, f"{stranger}/webui_demo.html")
    page, problem = reader.page, reader.page.locator("#source-notice")
    for address, key in (
        (nobody, "server_silent"),
        (server, "server_refuses"),
        (stranger, "server_refuses"),  # a web server that is no demo
        ("ftp://x", "server_malformed"),
    ):
        page.fill("#source input", address)
        page.press("#source input", "Enter")
        expect(problem).to_have_text(text(key, "en", server=address, origin=stranger))
        expect(page.locator("#head h1")).to_have_text("gemma3-demo")
    reader.context.close()  # Chromium notes each request that failed
