"""The page that needs no server, connected to a running demo."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from demo_site import CHROMIUM, Reader, Scripted, busy, wait_for
from PIL import Image
from playwright.sync_api import Browser, expect
from ports import free_port
from small_models import Gate

import gemma_tpu
from demo.texts import text
from demo.webui.build import PAGE
from gemma_tpu import LoadStatus

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")


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

    reader.allowed = (*reader.allowed, f"{server}/chat/", f"blob:{server}/")
    page.click("#chat-tab-button")
    frame = page.frame_locator("#chat-frame iframe")
    expect(frame.locator(".chip-state")).to_contain_text("gemma3-tiny")

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

    scripted.script, scripted.model, scripted.status = [load], None, LoadStatus()
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
    browser: Browser, static: str, server: str, model: gemma_tpu.Model, gate: Gate
) -> None:
    reader = Reader(browser, f"{static}/webui_demo.html", live=server)
    page = reader.page
    expect(page.locator("#source .about")).to_contain_text(server)
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
    nobody = f"http://127.0.0.1:{free_port()}"
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
