"""What the tests of the demo page share: a browser, a served page, a model whose answers can be held, a picture.

Imports wait until a fixture is used: other tests need no Gradio.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from chat_site import Visitor
    from demo_site import Scripted, Visit
    from playwright.sync_api import Browser
    from small_models import Gate

    import gemma_tpu


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from demo_site import CHROMIUM, FLAGS, VIEWPORT
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        browser.new_context(viewport=VIEWPORT)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    from demo_site import tiny_model

    with tiny_model() as model:
        yield model


@pytest.fixture
def gate(model: gemma_tpu.Model) -> Iterator[Gate]:
    """From 100 tokens on, answers are too slow to end before a visitor stops them: 8,000 tokens take a quarter hour.

    They do not stand still, as the server notices that a visitor has left when it sends the next piece.
    """
    from small_models import gated

    with gated(model.engine, 100, pause=1) as gate:
        yield gate


@pytest.fixture(scope="module")
def scripted() -> Scripted:
    from demo_site import Scripted

    return Scripted("path/to/gemma3-tiny")


@pytest.fixture(scope="module")
def static() -> Iterator[str]:
    """Where webui_demo.html is."""
    from demo_site import serve_folder

    from demo.webui.build import PAGE

    with serve_folder(PAGE.parent) as url:
        yield url


@pytest.fixture(scope="module")
def server(model: gemma_tpu.Model, scripted: Scripted, static: str) -> Iterator[str]:
    from demo_site import serve

    with serve(model, scripted, origins=[static, "null"]) as url:
        yield url


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Visit]:
    from demo_site import Visit

    visit = Visit(browser, server)
    yield visit
    visit.close()


@pytest.fixture(scope="module")
def chat_model() -> Iterator[gemma_tpu.Model]:
    """The demo checkpoint."""
    from chat_site import demo_model

    with demo_model(max_context=1024, max_rows=4) as model:
        yield model


@pytest.fixture(scope="module")
def chat(chat_model: gemma_tpu.Model) -> Iterator[str]:
    """The address of the Chat page."""
    from chat_site import chat_app, serve_chat

    from gemma_tpu import Loader

    loader = Loader("gemma3-demo", lambda progress: chat_model)
    loader.start()
    assert loader.wait(600).phase == "ready"
    with serve_chat(chat_app(loader)) as url:
        yield url


@pytest.fixture
def visitor(browser: Browser, chat: str) -> Iterator[Visitor]:
    from chat_site import Visitor

    visitor = Visitor(browser, chat)
    yield visitor
    visitor.close()


@pytest.fixture
def red_png(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Of a colour that no other test's picture has, the same in each run: its uploaded copy is this test's alone."""
    from PIL import Image

    path = tmp_path / "red.png"
    Image.new("RGB", (60, 40), (200, zlib.crc32(request.node.name.encode()) % 256, 30)).save(path)
    return path
