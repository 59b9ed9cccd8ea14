"""One tab of the page: pictures, examples, chat panel and settings."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demo.chat import ActiveAnswers, Conversation, Turn
from demo.chat_panel import ChatPanel, Updates
from demo.facts import not_ready_text, unsupported_text
from demo.page import Page, notice
from demo.pictures import check_upload, fetch_picture, picture_input
from demo.session_storage import pack, unpack
from demo.settings import DEFAULTS, checkpoint_defaults, params_of_controls, settings_panel
from demo.texts import explain, text
from gemma_tpu import Loader

if TYPE_CHECKING:
    from gemma_tpu import Model

EXAMPLES = Path(__file__).parent / "examples"
_POLL_INTERVAL = 0.05  # seconds between reads of an unfinished answer
_STORE_INTERVAL = 1.0  # seconds between updates of the browser's session storage


def examples(name: str) -> list[dict[str, Any]]:
    """The examples of tab `name`: {"en": prompt, "zh": prompt, "pictures": files in EXAMPLES}."""
    return json.loads((EXAMPLES / "examples.json").read_text())[name]


def _params(request: gr.Request, *controls: Any) -> dict[str, Any]:
    """Arguments of `Model.stream`. Each open page is a client."""
    return {**params_of_controls(*controls), "client": request.session_hash}


class ChatTab:
    """The tab `name` ("image" or "text") of `page`; create it inside the layout.

    With `allow_urls` the server also fetches pictures from URLs.
    """

    def __init__(
        self,
        page: Page,
        name: str,
        loader: Loader,
        active: ActiveAnswers,
        language: gr.Radio,
        *,
        allow_urls: bool = False,
    ) -> None:
        self.name, self._loader, self._active = name, loader, active
        self.pictures: list[gr.Image] = []
        self.address: gr.Textbox | None = None
        with page.add(gr.Tab, texts={"label": f"tab_{name}"}, id=name, elem_id=f"{name}-tab"):
            self.conversation = gr.State(Conversation(), delete_callback=Conversation.stop)
            with gr.Row(elem_classes="desk"):
                with gr.Column(elem_classes="side", min_width=280, scale=0):
                    if name == "image":
                        self._picture_inputs(page, allow_urls)
                    page.add(gr.Markdown, texts={"value": "examples"}, elem_classes="caption")
                    with gr.Column(elem_classes="examples"):
                        buttons = [self._example_button(page, example) for example in examples(name)]
                with gr.Column(elem_classes="talk"):
                    self.panel = ChatPanel(page, name)
                    self.settings = settings_panel(page, name)
                    self.sliders = self.settings[: len(DEFAULTS)]
        self._connect_events(language, buttons)

    def _picture_inputs(self, page: Page, allow_urls: bool) -> None:
        with gr.Row(elem_classes="pictures"):
            for number, suffix in enumerate(("", "_2")):
                self.pictures.append(
                    page.add(
                        picture_input,
                        texts={
                            **dict.fromkeys(("label", "alt_text"), f"picture{suffix}"),
                            "placeholder": f"picture_drop{suffix}",
                        },
                        sources=["upload", "clipboard"] if number == 0 else ["upload"],
                        elem_id=f"picture-{number + 1}",
                    )
                )
        if allow_urls:
            self.address = page.add(
                gr.Textbox,
                texts={"placeholder": "picture_address", "label": "picture_address"},
                lines=1,
                max_lines=1,
                container=False,
                elem_id="picture-address",
            )
        page.add(gr.Markdown, texts={"value": "picture_hint"}, elem_classes="hint")

    def _example_button(self, page: Page, example: dict[str, Any]) -> gr.Button:
        icon = str(EXAMPLES / example["pictures"][0]) if example.get("pictures") else None
        texts = {"value": {lang: example[lang] for lang in ("en", "zh")}}
        return page.add(gr.Button, texts=texts, icon=icon, size="sm", elem_classes=["example", f"{self.name}-example"])

    def _connect_events(self, language: gr.Radio, buttons: list[gr.Button]) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        unlimited: dict[str, Any] = {**quiet, "concurrency_limit": None}
        panel = self.panel
        gr.on(
            [panel.prompt.submit, panel.send.click],
            self._answer,
            [self.conversation, language, panel.prompt, *self.pictures, *self.settings],
            [*panel.outputs, panel.prompt],
            trigger_mode="once",
            **unlimited,
        )
        panel.prompt.submit(self._hint, [self.conversation, language, panel.prompt], panel.notice, queue=False, **quiet)
        panel.resume.click(
            self._continue,
            [self.conversation, language, *self.settings],
            panel.outputs,
            trigger_mode="once",
            **unlimited,
        )
        panel.stop.click(_stop, self.conversation, None, queue=False, **quiet)
        panel.clear.click(
            self._clear,
            [self.conversation, language],
            [*panel.outputs, panel.prompt, *self.pictures],
            **unlimited,
        )
        panel.stored.change(None, panel.stored, None, js=f"(kept) => demoPage.keep('{self.name}', kept)", **quiet)
        for picture in self.pictures:
            # The last of several in a row counts, here and below: else one that comes during a check is not checked.
            outputs = [picture, panel.notice]
            picture.upload(check_upload, [picture, language], outputs, trigger_mode="always_last", **unlimited)
            picture.clear(lambda: "", None, panel.notice, queue=False, **quiet)
        if self.address is not None:
            outputs = [self.pictures[0], panel.notice]
            inputs = [self.address, language]
            self.address.submit(fetch_picture, inputs, outputs, trigger_mode="always_last", **unlimited)
        for button, example in zip(buttons, examples(self.name), strict=True):
            files = [str(EXAMPLES / file) for file in example.get("pictures", ())]
            files += [None] * (len(self.pictures) - len(files))

            def fill(lang: str, example: dict[str, Any] = example, files: list[str | None] = files) -> list[Any]:
                return [example[lang], "", *files]

            button.click(fill, language, [panel.prompt, panel.notice, *self.pictures], **unlimited)

    def restore_on(self, load: Callable[..., Any], language: gr.Radio) -> Any:
        """Restores the conversation from session storage when the event `load` fires. Returns that listener."""
        return load(
            self._restore,
            [self.conversation, language, self.panel.stored],
            [*self.panel.outputs, self.panel.prompt, *self.pictures],
            js=f"(own, lang) => [own, lang, demoPage.stored('{self.name}')]",
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        )

    async def show_defaults(self, *values: float) -> list[Any]:
        """Updates that set `sliders` to the checkpoint's defaults, once it is loaded."""
        model = self._loader.model
        return [gr.skip()] * len(values) if model is None else checkpoint_defaults(self.sliders, values, model.defaults)

    async def _restore(self, conversation: Conversation, lang: str, stored: str) -> Updates:
        conversation.lang = lang
        draft, recreated, complete = await asyncio.to_thread(unpack, stored, conversation)
        problem = "" if complete else text("unrestorable", lang)
        # Updates only what was stored, because the visitor may have started to type.
        updates: Updates = {self.panel.stored: gr.skip()}
        if conversation.last_question:
            updates |= self.panel.idle(conversation, problem)
            updates |= dict(zip(self.pictures, conversation.attached, strict=False))
            updates[self.panel.stored] = await asyncio.to_thread(pack, conversation, recreated)
        if problem:
            updates[self.panel.notice] = notice(problem)
        if draft:
            updates[self.panel.prompt] = draft
        return updates

    async def _clear(self, conversation: Conversation, lang: str) -> Updates:
        conversation.lang = lang
        await conversation.wait_until_restored()  # or it would come back
        await asyncio.to_thread(conversation.clear)
        return {
            **self.panel.idle(conversation),
            self.panel.stored: pack(conversation),
            self.panel.prompt: "",
            **dict.fromkeys(self.pictures),
        }

    async def _hint(self, conversation: Conversation, lang: str, prompt: str) -> Any:
        """Why Enter does not send during an answer, unless the answer is to this very prompt."""
        busy = conversation.writing and prompt.strip() and prompt != conversation.last_question
        return notice(text("busy", lang)) if busy else gr.skip()

    async def _answer(
        self, request: gr.Request, conversation: Conversation, lang: str, prompt: str, *rest: Any
    ) -> AsyncIterator[Updates]:
        pictures, params = rest[: len(self.pictures)], _params(request, *rest[len(self.pictures) :])
        model = self._loader.model
        problem = await self._problem(model, conversation, prompt, pictures, lang)
        if model is None or problem:
            yield {self.panel.notice: notice(problem)}
            return
        conversation.lang = lang
        start = functools.partial(conversation.ask, model, prompt, pictures, params)
        async with contextlib.aclosing(self._stream(request, conversation, start, {self.panel.prompt: ""})) as updates:
            async for update in updates:
                yield update

    async def _continue(
        self, request: gr.Request, conversation: Conversation, lang: str, *settings: Any
    ) -> AsyncIterator[Updates]:
        model = self._loader.model
        conversation.lang = lang
        if model is None or not conversation.can_continue:
            yield self.panel.idle(conversation, not_ready_text(self._loader.status, lang) if model is None else "")
            return
        start = functools.partial(conversation.continue_answer, model, _params(request, *settings))
        async with contextlib.aclosing(self._stream(request, conversation, start, {})) as updates:
            async for update in updates:
                yield update

    async def _stream(
        self, request: gr.Request, conversation: Conversation, start: Callable[[], Turn], first_updates: Updates
    ) -> AsyncGenerator[Updates, None]:
        """Updates of the page during the answer that `start` starts."""
        panel = self.panel
        with self._active.track(request.session_hash or "") as asked:
            try:
                # On a thread: reading and resizing pictures would block other visitors.
                turn = await asyncio.to_thread(start)
            except (ValueError, RuntimeError) as error:
                yield {panel.notice: notice(text("refused", conversation.lang, error=explain(error)))}
                return
            answer, shown, stored_at = turn.answer, {}, time.monotonic()
            asked.started(answer)
            stored = await asyncio.to_thread(pack, conversation, turn.pictures)
            yield {**panel.busy(conversation), panel.stored: stored, **first_updates}
            while not answer.done:
                await asyncio.sleep(_POLL_INTERVAL)
                if (updates := panel.messages(conversation)) != shown:
                    shown = updates
                    if time.monotonic() > stored_at + _STORE_INTERVAL:
                        stored_at, updates = time.monotonic(), {**updates, panel.stored: pack(conversation)}
                    yield updates
        # Also after the conversation was cleared, to remove the last of its text.
        problem = text("broke", conversation.lang, error=explain(answer.error)) if answer.error else ""
        yield {**panel.idle(conversation, problem), panel.stored: pack(conversation)}

    async def _problem(
        self,
        model: Model | None,
        conversation: Conversation,
        prompt: str,
        pictures: tuple[str | None, ...],
        lang: str,
    ) -> str:
        """Why the prompt cannot be answered, or ""."""
        if model is None:
            return not_ready_text(self._loader.status, lang)
        if reason := unsupported_text(model, lang):
            return reason
        if not await conversation.wait_until_restored():
            return text("unfinished", lang)
        if conversation.writing:
            return text("busy", lang)
        if not prompt.strip():
            return text("empty_prompt", lang)
        if self.name == "image" and model.config.vision is None:
            return text("no_vision", lang)
        if self.name == "image" and not conversation.has_picture(pictures):
            return text("no_picture", lang)
        return ""


async def _stop(conversation: Conversation) -> None:
    conversation.stop()
