"""The page as a whole, and putting it on a web server."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by Gradio when it is imported
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")

import fastapi
import gradio as gr
import uvicorn
from starlette.middleware import Middleware

from demo.api import build_api
from demo.chat import Conversation, Readers
from demo.header import controls, header
from demo.page import Page
from demo.security import ContentSecurityPolicy
from demo.state import Loader
from demo.tab import EXAMPLES, ChatTab
from demo.texts import LANGUAGES
from demo.theme import theme

_STATIC = Path(__file__).parent / "static"
_SCRIPTS = "".join((_STATIC / name).read_text() for name in ("page.js", "keep.js"))
_HEAD = f"<style>{(_STATIC / 'frame.css').read_text()}</style><script>{_SCRIPTS}</script>"
_SET_LANGUAGE = "(lang) => { document.documentElement.lang = lang; demoPage.write('language', lang); return lang; }"
_SPOKEN = "() => demoPage.read('language') || null"
_KEEP_UPLOADS = (3600, 24 * 3600)  # look every hour, delete after a day (seconds)
_MAX_UPLOAD = "64mb"


def build(loader: Loader, lang: str | None = None, *, allow_urls: bool = False) -> gr.Blocks:
    """The page. `lang` is its language at first; None takes the visitor's, as his browser says.

    With `allow_urls` it takes pictures' http(s) addresses, any that this machine can reach.
    """
    page, readers = Page(lang or "en"), Readers()
    gr.set_static_paths([EXAMPLES])  # else Gradio copies them into its folder of uploads, which are deleted after a day
    with gr.Blocks(title="gemma_tpu", analytics_enabled=False, delete_cache=_KEEP_UPLOADS) as blocks:
        with gr.Row(elem_classes="top"):
            head = gr.HTML(header(loader, page.lang), elem_id="head")
            with gr.Column(elem_classes="controls", min_width=190, scale=0):
                language = page.add(
                    gr.Radio,
                    says={"label": "language"},
                    choices=[(name, code) for code, name in LANGUAGES.items()],
                    value=page.lang,
                    show_label=False,
                    container=False,
                    elem_id="language",
                )
                button, _ = controls(loader.status, page.lang)
                load = gr.Button(button["value"], variant=button["variant"], elem_id="load")
        with gr.Tabs(elem_id="tabs"):
            tabs = [ChatTab(page, name, loader, readers, language, allow_urls=allow_urls) for name in ("image", "text")]
        clock = gr.Timer(1.0)

        shown = [head, load, clock]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        async def look(lang: str) -> list[Any]:
            return [header(loader, lang), *controls(loader.status, lang)]

        async def begin(lang: str) -> list[Any]:
            loader.start()
            return await look(lang)

        async def translate(lang: str, *conversations: Conversation) -> list[Any]:
            talks = [value for one in conversations for value in (one.shown(lang), one.footer(lang))]
            for one in conversations:
                one.lang = lang
            return [*page.say(lang), *talks, *await look(lang)]

        async def greet(spoken: str | None, request: gr.Request) -> str:
            if spoken in LANGUAGES:  # before the page was loaded anew
                return spoken
            wanted = request.headers.get("accept-language", "")
            return lang or ("zh" if wanted.lower().startswith("zh") else "en")

        together: dict[str, Any] = {**quiet, "concurrency_limit": None}
        load.click(begin, language, shown, **together)
        looked = [clock.tick(look, language, shown, **together)]
        language.change(
            translate,
            [language, *(tab.conversation for tab in tabs)],
            [*page.outputs, *(output for tab in tabs for output in (tab.talk.chat, tab.talk.stats)), *shown],
            **together,
        )
        language.change(None, language, None, js=_SET_LANGUAGE, **quiet)
        # A notice says what was wrong a moment ago, and goes rather than stay in the other language. Only when the
        # visitor switches: what is said while the page is loaded must stay.
        notices = [tab.talk.notice for tab in tabs]
        language.input(lambda: [""] * len(notices), None, notices, queue=False, **quiet)

        async def leave(request: gr.Request) -> None:
            readers.leave(request.session_hash or "")

        blocks.unload(leave)
        greeted = blocks.load(greet, language, language, js=_SPOKEN, **quiet)
        for tab in tabs:
            tab.restore_on(greeted.then, language)
        looked.append(greeted.then(look, language, shown, **quiet))
        for event in looked:
            for tab in tabs:
                event = event.then(tab.show_defaults, tab.sliders, tab.sliders, **together)
    return blocks


def mount(
    app: fastapi.FastAPI,
    loader: Loader,
    *,
    lang: str | None = None,
    path: str = "/",
    allow_urls: bool = False,
    origins: Sequence[str] = (),
    root_path: str | None = None,
) -> fastapi.FastAPI:
    """Puts the page (see `build`) on `app` at `path`; at "/" it must come after all other routes.

    `root_path` is where a proxy that strips it from the addresses has the page. Pages of `origins` may use its model
    too, through the API of `demo.api` at `path`/api.
    """
    if origins:
        app.mount(f"{path.rstrip('/')}/api", build_api(loader, origins))
    blocks = build(loader, lang, allow_urls=allow_urls)
    # Else Gradio, which takes an app that it did not launch for one at work on its layout, fetches into its folder of
    # uploads any file of this machine that a request names.
    blocks.has_launched = True
    return gr.mount_gradio_app(
        app,
        blocks,
        path,
        app_kwargs={"middleware": [Middleware(ContentSecurityPolicy)]},
        root_path=root_path,
        theme=theme(),
        css_paths=_STATIC / "style.css",
        head=_HEAD,
        favicon_path=str(_STATIC / "favicon.png") if path == "/" else None,
        footer_links=[],
        max_file_size=_MAX_UPLOAD,
        ssr_mode=False,
        mcp_server=False,
        show_error=True,
    )


class Server(uvicorn.Server):
    """Lets go of open pages when it is stopped: each holds a connection that would not end by itself."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for route in getattr(self.config.app, "routes", ()):
            event = getattr(getattr(route, "app", None), "stop_event", None)  # Gradio's, for its own `launch`
            if event is not None:
                event.set()
        await super().shutdown(sockets)
