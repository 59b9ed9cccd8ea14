"""What visitors give the demo page: pictures, addresses, settings, and what is wrong with them."""

from __future__ import annotations

import functools
import http.server
import re
import threading
import uuid
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from demo_site import CHROMIUM, Visit
from PIL import Image
from playwright.sync_api import Browser, expect

import gemma_tpu
from demo.texts import text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
# The RGBA values of the picture at an address.
PIXELS = """async (address) => {
    const bitmap = await createImageBitmap(await (await fetch(address)).blob());
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    return [...context.getImageData(0, 0, bitmap.width, bitmap.height).data];
}"""


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
        seen.extend(placed.image for placed in images)
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


def test_a_file_chosen_while_another_is_looked_at_is_looked_at_too(visit: Visit, red_png: Path, tmp_path: Path) -> None:
    page = visit.page
    page.evaluate(
        """() => {
            const send = window.fetch;
            window.fetch = async (address, options) => {
                const late = String(address).includes("/queue/join") && options.body.includes("red.png");
                if (late) await new Promise((done) => setTimeout(done, 2000));
                return send(address, options);
            };
        }"""
    )
    page.set_input_files("#picture-1 input[type=file]", red_png)
    expect(page.locator("#picture-1 img")).to_be_visible()
    (tmp_path / "notes.png").write_bytes(b"hello")
    page.set_input_files("#picture-1 input[type=file]", tmp_path / "notes.png")
    expect(visit.notice("image")).to_contain_text("notes.png")
    expect(page.locator("#picture-1 img")).to_have_count(0)


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
