"""What the browser tests of the demo need: a tiny model, a server with the page on it, and a visitor."""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jax
import jax.numpy as jnp
import numpy as np
from playwright.sync_api import Browser, Locator, expect

import gemma_tpu
from demo.app import mount
from demo.auth import BasicAuth
from gemma_tpu import Loader
from gemma_tpu.deployment import Deployment
from gemma_tpu.model import param_shapes
from gemma_tpu.server import Server, build_app
from gemma_tpu.sharding import make_mesh

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--use-fake-device-for-media-stream",  # a camera
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOKENIZER = Path(__file__).parent / "goldens" / "text" / "tokenizer.model"
CONFIG = gemma_tpu.GemmaConfig(
    vocab_size=800,
    embed_dim=32,
    hidden_dim=64,
    layers=gemma_tpu.gemma3_layers(2, window=64),
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    query_scale=0.25,
    max_context=8192,
    vision=gemma_tpu.VisionConfig(16, 1, 32, 2, image_size=56, patch_size=14, num_soft_tokens=4),
)
VIEWPORT = {"width": 1280, "height": 900}
WAIT = 60_000  # ms, on a machine that may be busy
LONG = 60_000  # ms of the page's clock: longer than anything recorded takes to replay
expect.set_options(timeout=WAIT)

Load = Callable[[Callable[[int, int], None]], gemma_tpu.Model]


class Scripted(Loader):
    """A loader whose `load` a test can choose."""

    def __init__(self, name: str) -> None:
        self.script: list[Load] = []
        super().__init__(name, lambda progress: self.script.pop(0)(progress))


@contextlib.contextmanager
def tiny_model() -> Iterator[gemma_tpu.Model]:
    mesh = make_mesh(CONFIG, (1, 1), jax.devices()[:1])
    rng = np.random.default_rng(2)
    shapes = param_shapes(CONFIG)
    params = {name: jnp.asarray(rng.normal(0, 0.1, shape.shape), jnp.float32) for name, shape in shapes.items()}
    tokenizer = gemma_tpu.Tokenizer(TOKENIZER)
    ends = np.array([tokenizer.eos_id, tokenizer.end_of_turn])
    params["embedder.table"] = params["embedder.table"].at[ends].set(0)  # it babbles and never ends an answer
    chunks = (64,)  # fewer programs to compile
    deployment = Deployment(CONFIG, mesh, rows=1, context=8192, dtype=jnp.float32, chunks=chunks)
    with gemma_tpu.Model(deployment, params, tokenizer) as model:
        yield model


@contextlib.contextmanager
def serve(
    model: gemma_tpu.Model,
    scripted: Scripted | None = None,
    origins: Sequence[str] = (),
    *,
    port: int = 0,
    root_path: str | None = None,
    accounts: Sequence[str] = (),
) -> Iterator[str]:
    """The page on a ready model at /, and at /fresh one whose loading is scripted, and that takes addresses.

    `origins` may use their API. With `accounts`, nobody else is let in.
    """
    loader = Loader("checkpoints/gemma3-tiny", lambda progress: model)
    loader.start()
    assert loader.wait(600).phase == "ready"
    app = build_app(loader)
    if scripted is not None:
        app = mount(app, scripted, path="/fresh", allow_urls=True, origins=origins)
    app = mount(app, loader, origins=origins, root_path=root_path)
    if accounts:
        app.add_middleware(BasicAuth, accounts=accounts)
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = Server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(WAIT / 1000)
        assert not thread.is_alive()  # open pages do not keep it


class Quiet(http.server.SimpleHTTPRequestHandler):
    """`python -m http.server`, without its log."""

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """As `python -m http.server` in `folder`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Strip(http.server.BaseHTTPRequestHandler):
    """Hands requests under `prefix` on to `port`, without it, and answers piece by piece."""

    prefix, port = "", 0
    connections: set[socket.socket]

    def setup(self) -> None:
        super().setup()
        self.connections.add(self.connection)

    def finish(self) -> None:
        self.connections.discard(self.connection)
        with contextlib.suppress(OSError):  # it was cut
            super().finish()

    def forward(self) -> None:
        if not self.path.startswith(self.prefix + "/"):
            return self.send_error(404)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        server = http.client.HTTPConnection("127.0.0.1", self.port)
        headers = dict(self.headers) | {"X-Forwarded-Host": self.headers["host"]}
        server.request(self.command, self.path.removeprefix(self.prefix), body, headers)
        answer = server.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # a page that was left
            while piece := answer.read1():
                self.wfile.write(piece)
        server.close()

    do_GET = do_POST = forward

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def proxy(url: str, prefix: str, port: int = 0) -> Iterator[str]:
    """A reverse proxy that has the server at `url` under `prefix`. It ends at once, as if it were killed."""
    connections: set[socket.socket] = set()
    known = {"prefix": prefix, "port": urlsplit(url).port, "connections": connections}
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Strip,), known)) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
        server.shutdown()
        for connection in list(connections):
            connection.shutdown(socket.SHUT_RDWR)


# What Gradio itself says of a stream that it gives up because its page is left.
_LEFT = (
    "AbortError: signal is aborted",
    "AbortError: BodyStreamBuffer was aborted",
    "Unexpected error Connection errored out",
)


class Visit:
    """A visitor's browser tab. `close` fails if anything went wrong in it that a visitor may not see.

    Visitors come one after the other with the browser's first profile, where what one has loaded is at hand for the
    next. With `alone` or `options`, one has a profile of its own.
    """

    def __init__(self, browser: Browser, url: str, *, alone: bool = False, **options: Any) -> None:
        self.problems: list[str] = []
        self.leaves = False  # whether the page is loaded anew while it is in use
        context = browser.new_context(viewport=VIEWPORT, **options) if alone or options else browser.contexts[0]
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("response", lambda r: self.problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        self.page.on("request", lambda request: self._request(request.url, url))
        self.page.goto(url)
        expect(self.page.locator("#image-prompt textarea")).to_be_visible()

    def _console(self, message: Any) -> None:
        if message.type == "error" and not (self.leaves and message.text.startswith(_LEFT)):
            self.problems.append(f"console: {message.text} ({message.location['url']})")

    def _request(self, url: str, home: str) -> None:
        host = urlsplit(home).netloc
        if not url.startswith((f"http://{host}/", "data:", f"blob:http://{host}/")):
            self.problems.append(f"a request to another host: {url}")

    def close(self) -> None:
        self.page.close()
        assert not self.problems, self.problems

    # What visitors do.

    def go(self, tab: str) -> None:
        self.page.click(f"#{tab}-tab-button")
        expect(self.page.locator(f"#{tab}-prompt")).to_be_visible()

    def set(self, tab: str, **settings: float) -> None:
        panel = self.page.locator(f"#{tab}-max_new_tokens")
        if not panel.is_visible():
            self.page.locator(".settings > button").locator("visible=true").click()
        for name, value in settings.items():
            field = self.page.locator(f'#{tab}-{name} input[type="number"]')
            slider = self.page.locator(f'#{tab}-{name} input[type="range"]')  # shows what the page holds
            for _ in range(20):  # a panel just opened may be drawn anew over what was typed into it
                field.fill(str(value))
                field.press("Tab")
                self.page.wait_for_timeout(100)
                if slider.count() == 0 or float(slider.input_value()) == value:
                    break

    def begin(self, tab: str, prompt: str) -> None:
        field = self.page.locator(f"#{tab}-prompt textarea")
        field.fill(prompt)
        field.press("Enter")

    def ask(self, tab: str, prompt: str) -> str:
        """The whole answer."""
        before = self.answers(tab).count()
        self.begin(tab, prompt)
        expect(self.answers(tab)).to_have_count(before + 1)
        self.ended(tab)
        return self.answer(tab)

    def ended(self, tab: str) -> None:
        expect(self.page.locator(f"#{tab}-stop")).to_be_hidden()
        expect(self.stats(tab)).to_contain_text(re.compile("token"))

    def answers(self, tab: str) -> Any:
        return self.page.locator(f"#{tab}-chat [data-testid=bot]")

    def answer(self, tab: str) -> str:
        """The last answer as the model wrote it; on the screen it is rendered as Markdown."""
        label = self.answers(tab).last.get_attribute("aria-label")
        return label.removeprefix("bot's message: ")

    def stats(self, tab: str) -> Any:
        return self.page.locator(f"#{tab}-stats")

    def notice(self, tab: str) -> Any:
        return self.page.locator(f"#{tab}-notice [role=alert]")


class Reader:
    """A browser with webui_demo.html open. `close` fails if anything went wrong, or anything else was asked for."""

    def __init__(self, browser: Browser, url: str, *, live: str = "", width: int = 1280, **options: Any) -> None:
        """With `live`, the page talks to the demo there; without, it replays, and its clock is the test's."""
        self.problems: list[str] = []
        self.allowed = (url, f"{live}/api/" if live else "data:", "data:", "blob:null/")  # a blob of this page
        self.context = browser.new_context(viewport={"width": width, "height": 844}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("request", lambda request: self._request(request.url))
        if not live:
            self.page.clock.install()
        self.page.goto(f"{url}?server={live}" if live else url)

    def _request(self, url: str) -> None:
        if not url.startswith(self.allowed) and not url.endswith("/favicon.ico"):
            self.problems.append(f"a request for {url}")

    def close(self) -> None:
        self.context.close()
        assert not self.problems, self.problems

    def load(self) -> list[str]:
        """The phases that loading goes through, from now on."""
        self.page.evaluate("""() => {
            window.phases = [];
            const look = () => phases.push(document.querySelector("#head .state").dataset.phase);
            new MutationObserver(look).observe(document.getElementById("head"), { childList: true });
        }""")
        self.page.click("#load")
        self.page.clock.run_for(LONG)
        return list(dict.fromkeys(self.page.evaluate("phases")))

    def send(self, tab: str, question: str | None = None) -> None:
        """Asks and, if the answer is recorded, lets it be replayed."""
        if question is not None:
            self.page.fill(f"#{tab}-prompt textarea", question)
        before = self.answers(tab).count()
        self.page.click(f"#{tab}-send")
        expect(self.answers(tab)).to_have_count(before + 1)
        self.page.clock.run_for(LONG)
        expect(self.page.locator(f"#{tab}-stop")).to_be_hidden()

    def answers(self, tab: str) -> Locator:
        return self.page.locator(f"#{tab}-chat [data-testid=bot]")

    def stats(self, tab: str) -> Locator:
        return self.page.locator(f"#{tab}-stats")

    def notice(self, tab: str) -> Locator:
        return self.page.locator(f"#{tab}-notice [role=alert]")


def busy(model: gemma_tpu.Model) -> bool:
    return model.engine._loop.has_work


def wait_for(condition: Callable[[], bool], seconds: float = WAIT / 1000) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
