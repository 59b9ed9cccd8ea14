"""Builds the page and mounts it on a web server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by Gradio when it is imported
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")

import fastapi
import gradio as gr
from starlette.middleware import Middleware

from demo.api import build_api
from demo.chat import ActiveAnswers, Conversation
from demo.chat_page.app import build_chat
from demo.chat_page.tab import chat_tab
from demo.checkpoints import Checkpoints
from demo.header import header, load_controls
from demo.named_api import named_api
from demo.page import Page
from demo.security import ContentSecurityPolicy
from demo.tab import EXAMPLES, ChatTab
from demo.texts import LANGUAGES
from demo.theme import theme
from gemma_tpu import Loader

_STATIC = Path(__file__).parent / "static"
_SCRIPTS = "".join((_STATIC / name).read_text() for name in ("page.js", "session_storage.js"))
_HEAD = f"<style>{(_STATIC / 'frame.css').read_text()}</style><script>{_SCRIPTS}</script>"
_SET_LANGUAGE = "(lang) => { document.documentElement.lang = lang; demoPage.write('language', lang); return lang; }"
_STORED_LANGUAGE = "() => demoPage.read('language') || null"
_DELETE_UPLOADS = (3600, 24 * 3600)  # check every hour, delete after a day (seconds)
_MAX_UPLOAD = "64mb"


def build(loader: Loader, lang: str | None = None, *, allow_urls: bool = False) -> gr.Blocks:
    """The page. `lang` is its initial language; None takes it from the browser's Accept-Language.

    With `allow_urls` the server fetches pictures from any http(s) URL that it can reach.
    """
    page, active = Page(lang or "en"), ActiveAnswers()
    gr.set_static_paths([EXAMPLES])  # else Gradio copies them to its uploads, which it deletes
    with gr.Blocks(title="gemma_tpu", analytics_enabled=False, delete_cache=_DELETE_UPLOADS) as blocks:
        with gr.Row(elem_classes="top"):
            header_html = gr.HTML(header(loader, page.lang), elem_id="head")
            with gr.Column(elem_classes="controls", min_width=190, scale=0):
                language = page.add(
                    gr.Radio,
                    texts={"label": "language"},
                    choices=[(name, code) for code, name in LANGUAGES.items()],
                    value=page.lang,
                    show_label=False,
                    container=False,
                    elem_id="language",
                    interactive=False,  # until the page is restored, which would undo an earlier choice
                )
                button, _ = load_controls(loader.status, page.lang)
                load = gr.Button(button["value"], variant=button["variant"], elem_id="load")
        with gr.Tabs(elem_id="tabs"):
            tabs = [ChatTab(page, name, loader, active, language, allow_urls=allow_urls) for name in ("image", "text")]
            chat_tab(page)
        named_api(loader, active)
        clock = gr.Timer(1.0)

        status_outputs = [header_html, load, clock]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        async def refresh(lang: str) -> list[Any]:
            return [header(loader, lang), *load_controls(loader.status, lang)]

        async def start_loading(lang: str) -> list[Any]:
            loader.start()
            return await refresh(lang)

        async def translate(lang: str, *conversations: Conversation) -> list[Any]:
            chats = [value for chat in conversations for value in (chat.messages(lang), chat.footer(lang))]
            for conversation in conversations:
                conversation.lang = lang
            return [*page.translate(lang), *chats, *await refresh(lang)]

        async def initial_language(stored: str | None, request: gr.Request) -> gr.Radio:
            accepted = request.headers.get("accept-language", "")
            default = lang or ("zh" if accepted.lower().startswith("zh") else "en")
            return gr.Radio(value=stored if stored in LANGUAGES else default)

        unlimited: dict[str, Any] = {**quiet, "concurrency_limit": None}
        load.click(start_loading, language, status_outputs, **unlimited)
        refreshed = [clock.tick(refresh, language, status_outputs, **unlimited)]
        translated = (
            [language, *(tab.conversation for tab in tabs)],
            [*page.outputs, *(output for tab in tabs for output in (tab.panel.chat, tab.panel.stats)), *status_outputs],
        )
        language.input(translate, *translated, trigger_mode="always_last", **unlimited)
        language.change(None, language, None, js=_SET_LANGUAGE, **quiet)
        # Clears notices, which are in the old language; only on the visitor's own switch, not while the page loads.
        notices = [tab.panel.notice for tab in tabs]
        language.input(lambda: [""] * len(notices), None, notices, queue=False, **quiet)

        async def complete(*conversations: Conversation) -> gr.Radio:
            for conversation in conversations:
                conversation.restored.set()
            return gr.Radio(interactive=True)

        async def leave(request: gr.Request) -> None:
            active.stop(request.session_hash or "")

        blocks.unload(leave)
        loaded = blocks.load(initial_language, language, language, js=_STORED_LANGUAGE, **quiet)
        # One after the other: a translation of the empty page must not arrive after the conversation that is restored.
        loaded = loaded.then(translate, *translated, **unlimited)
        for tab in tabs:
            loaded = tab.restore_on(loaded.then, language)
        conversations = [tab.conversation for tab in tabs]
        loaded = loaded.then(complete, conversations, language, queue=False, **quiet)
        refreshed.append(loaded.then(refresh, language, status_outputs, **quiet))
        for event in refreshed:
            for tab in tabs:
                event = event.then(tab.show_defaults, tab.sliders, tab.sliders, **unlimited)
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
    checkpoints: Checkpoints | None = None,
) -> fastapi.FastAPI:
    """Mounts the page (see `build`) on `app` at `path`; at "/" it must follow all other routes.

    `root_path` is the prefix that a reverse proxy strips. Pages of `origins` may use the model through the API of
    `demo.api` at `path`/api. `checkpoints`, which have that loader: those that visitors may load in its place.
    """
    prefix = path.rstrip("/")
    if origins:
        app.mount(f"{prefix}/api", build_api(loader, origins))
    app.mount(f"{prefix}/chat", build_chat(app, loader, checkpoints))
    blocks = build(loader, lang, allow_urls=allow_urls)
    # Before `launch`, which is never called here, Gradio would copy any file of this machine that a request names.
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
