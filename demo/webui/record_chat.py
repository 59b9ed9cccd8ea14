"""Records a visit to the Chat page: every request that its scripts make, and the answer with its pace.

The visit asks each example in both languages, and opens what the first one has: tokens, where the model looked, what is
inside, a plan. Needs Chromium and Playwright.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastapi

from demo.chat_page.app import build_chat
from demo.checkpoints import Checkpoints
from demo.texts import LANGUAGES
from demo.webui.browser import open_browser
from gemma_tpu.server import Server, build_app, listen

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_HERE = Path(__file__).parent
_LOCALES = {"en": "en-GB", "zh": "zh-CN"}
_WAIT = 600_000  # milliseconds, for a plan
_LOOKED_AT = ("circle", "star", "square")  # the words of the first answer in English whose attention is recorded
SLICE = "v5e:1x1"


def record_chat(checkpoints: Checkpoints) -> dict[str, Any]:
    """`status`, what the page is told of the model, and `exchanges`: `key` (chat_key.js), HTTP `status`, `chunks`.

    A chunk is [seconds since the request, text]. The model is loaded.
    """
    with _serve(checkpoints) as url, open_browser() as browser:
        visits = [_visit(browser, url, lang) for lang in LANGUAGES]
    found = {exchange["key"]: exchange for _, exchanges in visits for exchange in exchanges}
    return {"status": visits[-1][0], "exchanges": list(found.values())}


def _visit(browser: Browser, url: str, lang: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    page = browser.new_page(locale=_LOCALES[lang])
    page.set_default_timeout(_WAIT)
    page.add_init_script((_HERE / "chat_key.js").read_text() + (_HERE / "chat_record.js").read_text())
    page.goto(url)
    page.locator('.chip-state[data-phase="ready"]').wait_for()
    for number in range(page.locator(".card").count()):
        if number:
            page.locator(".sidebar .new").click()
        page.locator(".card").nth(number).click()
        page.locator(".composer .send").first.click()
        page.locator("article.assistant[aria-busy=false] .body").wait_for()
        if number == 0:
            _look_inside(page, lang)
    status = page.evaluate("async () => (await fetch('status')).json()")
    exchanges = page.evaluate("exchanges")
    page.close()
    return status, exchanges


def _look_inside(page: Page, lang: str) -> None:
    page.locator("[data-drawer=inside]").click()
    page.locator("[data-section=pictures] img").wait_for()
    page.locator("[data-section=sequence] .sequence").wait_for()
    page.locator(".prediction select").select_option(SLICE)
    page.locator(".prediction button").click()
    page.locator(".prediction .facts").wait_for()
    page.locator("[data-drawer=inside]").click()
    if lang == "zh":
        return
    page.locator(".actions [aria-pressed]").click()
    for word in _LOOKED_AT:
        page.locator(".token", has_text=re.compile(rf"^\s*{word}$")).first.click()
        page.locator(".alternatives, .look").first.wait_for()
        page.get_by_role("button", name="Where in the pictures the model looked").click()
        page.locator("dialog.attention").wait_for()
        page.keyboard.press("Escape")


@contextlib.contextmanager
def _serve(checkpoints: Checkpoints) -> Iterator[str]:
    """The address of the Chat page, on a server of its own."""
    app: fastapi.FastAPI = build_app(checkpoints.loader)
    app.mount("/chat", build_chat(app, checkpoints.loader, checkpoints))
    listener: socket.socket = listen("127.0.0.1", 0)
    server = Server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/chat/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def trimmed(recorded: dict[str, Any], pictures: dict[str, str]) -> dict[str, Any]:
    """Without what the page does not read, and with the names of `pictures` in place of their data URLs."""
    exchanges = []
    for exchange in recorded["exchanges"]:
        key = exchange["key"]
        for name, data_url in pictures.items():
            key = key.replace(data_url, f"picture:{name}")
        if '"api/v1/' in key:
            chunks = [[seconds, _events(text)] for seconds, text in _whole_events(exchange["chunks"])]
        else:
            text = json.dumps(
                _shorter(json.loads("".join(text for _, text in exchange["chunks"]))), separators=(",", ":")
            )
            chunks = [[exchange["chunks"][-1][0], text]]
        exchanges.append({"key": key, "status": exchange["status"], "chunks": chunks})
    status = {**recorded["status"], "slices": [SLICE]}
    del status["checkpoints"]  # there is nothing to load
    return {"status": status, "exchanges": exchanges}


def _whole_events(chunks: list[Any]) -> Iterator[tuple[float, str]]:
    rest = ""
    for seconds, text in chunks:
        whole, _, rest = (rest + text).rpartition("\n\n")
        if whole:
            yield seconds, whole


def _events(text: str) -> str:
    """Server-sent events with what ../chat_page/static/answering.js takes of them."""
    shorter = []
    for event in text.split("\n\n"):
        data = event.removeprefix("data: ")
        if not event.startswith("data: ") or data == "[DONE]":
            shorter.append(event)
            continue
        chunk = json.loads(data)
        chunk = {"choices": [_choice(choice) for choice in chunk["choices"]], "usage": chunk.get("usage")}
        shorter.append("data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")))
    return "\n\n".join(shorter) + "\n\n"


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    logprobs = choice["logprobs"] and {"content": [_token(one) for one in choice["logprobs"]["content"]]}
    return {"delta": choice["delta"], "logprobs": logprobs, "finish_reason": choice["finish_reason"]}


def _token(token: dict[str, Any]) -> dict[str, Any]:
    others = [{"token": one["token"], "logprob": round(one["logprob"], 4)} for one in token["top_logprobs"]]
    return {**token, "logprob": round(token["logprob"], 4), "top_logprobs": others}


def _shorter(value: Any) -> Any:
    """Numbers with four digits after the point: shares and weights, of which no more is drawn; seconds of steps not."""
    if isinstance(value, dict):
        return {name: one if name in ("seconds", "roofline") else _shorter(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_shorter(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value
