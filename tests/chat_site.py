"""What the tests of the Chat page need: the demo checkpoint behind it, and a visitor."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fastapi
import jax
import numpy as np
from demo_site import WAIT
from jax.sharding import Mesh
from playwright.sync_api import Browser, Locator, expect

import gemma_tpu
from demo.chat_page.app import build_chat
from demo.chat_page.texts import CHAT_TEXTS
from demo.checkpoints import Checkpoints
from gemma_tpu import Loader
from gemma_tpu.server import Server, build_app
from gemma_tpu.sharding import AXES

EXAMPLES = Path(__file__).parents[1] / "demo" / "examples"
SHAPES = EXAMPLES / "shapes.png"


def demo_model(**options: Any) -> gemma_tpu.Model:
    """The demo checkpoint on one device: programs of several take longer to compile and to run."""
    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    return gemma_tpu.load("gemma3-demo", mesh=mesh, **{"progress": False, **options})


def said(key: str, lang: str = "en", **values: object) -> str:
    return CHAT_TEXTS[key][("en", "zh").index(lang)].format(**values)


def chat_app(loader: Loader, checkpoints: Checkpoints | None = None) -> fastapi.FastAPI:
    """The Chat page alone, without Gradio."""
    app = build_app(loader)
    app.mount("/chat", build_chat(app, loader, checkpoints))
    return app


@contextlib.contextmanager
def serve_chat(app: fastapi.FastAPI) -> Iterator[str]:
    """The address of the Chat page."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(app, reloads=True)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/chat/"
        server.should_exit = True
        thread.join(WAIT / 1000)


class Visitor:
    """A browser tab with the Chat page. `close` fails if anything went wrong in it that a visitor may not see."""

    def __init__(self, browser: Browser, url: str, *, width: int = 1280, height: int = 860, **options: Any) -> None:
        self.problems: list[str] = []
        self.loses = False  # whether the server goes away
        self.url, self.host = url, urlsplit(url).netloc
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.open()

    def open(self) -> Any:
        """Another tab of the same browser."""
        page = self.context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        page.on("request", lambda request: self._request(request.url))
        page.goto(self.url)
        expect(page.locator(".chip-state[data-phase]")).to_be_visible()
        return page

    def _console(self, message: Any) -> None:
        refused = "status of 400" in message.text  # Chromium reports what the page asks about and handles
        if message.type == "error" and not refused and not self.loses:
            self.problems.append(f"console: {message.text}")

    def _request(self, url: str) -> None:
        if not url.startswith((f"http://{self.host}/", "data:", f"blob:http://{self.host}/")):
            self.problems.append(f"a request to another host: {url}")

    def close(self) -> None:
        self.context.close()
        assert not self.problems, self.problems

    # What visitors do.

    def begin(self, text: str, *files: Path) -> None:
        if files:
            self.page.set_input_files(".composer input[multiple]", list(files))
            expect(self.page.locator(".composer .attached")).to_have_count(len(files))
        field = self.page.locator(".composer textarea")
        field.fill(text)
        field.press("Enter")

    def ask(self, text: str, *files: Path) -> str:
        """The whole answer."""
        before = self.answers.count()
        self.begin(text, *files)
        expect(self.answers).to_have_count(before + 1)
        return self.ended()

    def ended(self) -> str:
        expect(self.page.locator(".composer .stop")).to_be_hidden()
        expect(self.answers.last.locator(".state")).to_contain_text("token")
        return self.answer

    @property
    def answers(self) -> Locator:
        return self.page.locator("article.assistant")

    @property
    def answer(self) -> str:
        return self.answers.last.locator(".body").inner_text()

    def press(self, key: str, message: Locator | None = None) -> None:
        """The button of a message that is named so."""
        (message or self.answers.last).get_by_role("button", name=said(key), exact=True).click()

    @contextlib.contextmanager
    def settings(self) -> Iterator[Locator]:
        self.page.click("[data-drawer=settings]")
        yield self.page.locator(".panel")
        self.page.locator(".panel > header button").click()

    def set(self, **values: object) -> None:
        with self.settings() as panel:
            for name, value in values.items():
                place = panel.locator(f"[data-setting={name}]")
                field = place if place.evaluate("e => e.matches('textarea')") else place.locator("input").first
                if isinstance(value, bool):
                    field.set_checked(value)
                else:
                    field.fill(str(value))
                    field.press("Tab")

    def stored(self, name: str) -> list[dict[str, Any]]:
        """The records that the browser keeps."""
        return json.loads(
            self.page.evaluate(
                f"""async () => JSON.stringify(await (await import("./static/store.js")).all("{name}"))"""
            )
        )


def about(question: str, *pictures: Path) -> list[dict]:
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def stored_chat(text: str) -> dict:
    messages = [
        {"id": "q", "parent": None, "role": "user", "created": 1, "parts": [{"text": "Show."}]},
        {"id": "a", "parent": "q", "role": "assistant", "created": 2, "text": text, "state": "done", "tokens": []},
    ]
    conversation = {"id": "c", "title": "Shown", "created": 1, "changed": 1, "leaf": "a", "messages": messages}
    return {"format": "gemma_tpu chat", "version": 1, "conversations": [conversation], "pictures": {}}
