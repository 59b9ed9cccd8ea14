"""One tab: pictures and examples at the side, the conversation, the prompt, the settings."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demo.chat import Conversation, Readers, Turn
from demo.facts import unfit, unready
from demo.markdown import FORMULAS
from demo.page import Page
from demo.pictures import check, fetch, picture
from demo.settings import DEFAULTS, options, own_defaults, settings_panel
from demo.state import Loader, explain
from demo.texts import text

if TYPE_CHECKING:
    from gemma_tpu import Model

EXAMPLES = Path(__file__).parent / "examples"
_LOOK_EVERY = 0.05  # seconds between two looks at an answer that is being written


def examples(name: str) -> list[dict[str, Any]]:
    """Of tab `name`: {"en": prompt, "zh": prompt, "pictures": files in EXAMPLES}."""
    return json.loads((EXAMPLES / "examples.json").read_text())[name]


class ChatTab:
    """The tab `name` ("image" or "text") of `page`; create it inside the layout.

    With `allow_urls` a picture can be given as an address, from which the server fetches it.
    """

    def __init__(
        self, page: Page, name: str, loader: Loader, readers: Readers, language: gr.Radio, *, allow_urls: bool = False
    ) -> None:
        self.name, self._loader, self._readers = name, loader, readers
        self.pictures: list[gr.Image] = []
        self.address: gr.Textbox | None = None
        with page.add(gr.Tab, says={"label": f"tab_{name}"}, id=name, elem_id=f"{name}-tab"):
            self.conversation = gr.State(Conversation(), delete_callback=Conversation.stop)
            with gr.Row(elem_classes="desk"):
                with gr.Column(elem_classes="side", min_width=280, scale=0):
                    if name == "image":
                        self._lay_pictures(page, allow_urls)
                    page.add(gr.Markdown, says={"value": "examples"}, elem_classes="caption")
                    with gr.Column(elem_classes="examples"):
                        buttons = [self._example_button(page, example) for example in examples(name)]
                with gr.Column(elem_classes="talk"):
                    self._lay_talk(page)
        self._wire(language, buttons)

    # Layout.

    def _lay_pictures(self, page: Page, allow_urls: bool) -> None:
        with gr.Row(elem_classes="pictures"):
            for number, suffix in enumerate(("", "_2")):
                self.pictures.append(
                    page.add(
                        picture,
                        says={
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
                says={"placeholder": "picture_address", "label": "picture_address"},
                lines=1,
                max_lines=1,
                container=False,
                elem_id="picture-address",
            )
        page.add(gr.Markdown, says={"value": "picture_hint"}, elem_classes="hint")

    def _example_button(self, page: Page, example: dict[str, Any]) -> gr.Button:
        icon = str(EXAMPLES / example["pictures"][0]) if example.get("pictures") else None
        says = {"value": {lang: example[lang] for lang in ("en", "zh")}}
        return page.add(gr.Button, says=says, icon=icon, size="sm", elem_classes=["example", f"{self.name}-example"])

    def _lay_talk(self, page: Page) -> None:
        self.chat = page.add(
            gr.Chatbot,
            says={"placeholder": f"chat_empty_{self.name}"},
            show_label=False,
            height=480,
            layout="bubble",
            buttons=["copy"],
            feedback_options=None,
            allow_tags=False,
            latex_delimiters=FORMULAS,
            elem_id=f"{self.name}-chat",
        )
        self.notice = gr.HTML(elem_id=f"{self.name}-notice", elem_classes="notice-place")
        with gr.Row(elem_classes="ask"):
            self.prompt = page.add(
                gr.Textbox,
                says={"placeholder": f"prompt_{self.name}", "label": f"prompt_{self.name}"},
                lines=1,
                max_lines=8,
                container=False,
                scale=1,
                autofocus=self.name == "image",
                elem_id=f"{self.name}-prompt",
            )
            button = {"scale": 0, "min_width": 96}
            self.send = page.add(
                gr.Button, says={"value": "send"}, variant="primary", elem_id=f"{self.name}-send", **button
            )
            self.stop = page.add(
                gr.Button, says={"value": "stop"}, variant="stop", visible=False, elem_id=f"{self.name}-stop", **button
            )
        with gr.Row(elem_classes="under"):
            self.stats = gr.HTML(text("prompt_keys", page.lang), elem_classes="stats", elem_id=f"{self.name}-stats")
            self.go_on = page.add(
                gr.Button,
                says={"value": "go_on"},
                size="sm",
                scale=0,
                min_width=140,
                visible=False,
                elem_id=f"{self.name}-continue",
            )
            self.clear = page.add(
                gr.Button, says={"value": "clear"}, size="sm", scale=0, min_width=140, elem_id=f"{self.name}-clear"
            )
        self.settings = settings_panel(page, self.name)
        self.sliders = self.settings[: len(DEFAULTS)]

    # Events.

    def _wire(self, language: gr.Radio, buttons: list[gr.Button]) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        together: dict[str, Any] = {**quiet, "concurrency_limit": None}
        gr.on(
            [self.prompt.submit, self.send.click],
            self._answer,
            [self.conversation, language, self.prompt, *self.pictures, *self.settings],
            [self.chat, self.prompt, self.send, self.stop, self.go_on, self.stats, self.notice],
            trigger_mode="once",
            **together,
        )
        self.go_on.click(
            self._continue,
            [self.conversation, language, *self.settings],
            [self.chat, self.send, self.stop, self.go_on, self.stats, self.notice],
            trigger_mode="once",
            **together,
        )
        self.stop.click(_stop, self.conversation, None, queue=False, **quiet)
        self.clear.click(
            self._clear,
            [self.conversation, language],
            [self.chat, self.prompt, self.send, self.stop, self.go_on, self.stats, self.notice, *self.pictures],
            **together,
        )
        for place in self.pictures:
            place.upload(check, [place, language], [place, self.notice], **together)
            place.clear(lambda: "", None, self.notice, queue=False, **quiet)
        if self.address is not None:
            self.address.submit(fetch, [self.address, language], [self.pictures[0], self.notice], **together)
        for button, example in zip(buttons, examples(self.name), strict=True):
            files = [str(EXAMPLES / file) for file in example.get("pictures", ())]
            files += [None] * (len(self.pictures) - len(files))

            def fill(lang: str, example: dict[str, Any] = example, files: list[str | None] = files) -> list[Any]:
                return [example[lang], "", *files]

            button.click(fill, language, [self.prompt, self.notice, *self.pictures], **together)

    async def show_defaults(self, *shown: float) -> list[Any]:
        """For `sliders`: the defaults of the checkpoint, once it is loaded."""
        model = self._loader.model  # until there is one, the sliders stay as they are
        return [gr.skip()] * len(shown) if model is None else own_defaults(self.sliders, shown, model.defaults)

    async def _clear(self, conversation: Conversation, lang: str) -> dict[Any, Any]:
        await asyncio.to_thread(conversation.clear)
        return {
            self.chat: [],
            self.prompt: "",
            **self._idle(conversation),
            self.stats: conversation.footer(lang),
            self.notice: "",
            **dict.fromkeys(self.pictures),
        }

    async def _answer(
        self, request: gr.Request, conversation: Conversation, lang: str, prompt: str, *rest: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        pictures, settings = rest[: len(self.pictures)], options(*rest[len(self.pictures) :])
        model = self._loader.model
        problem = self._problem(model, conversation, prompt, pictures, lang)
        if model is None or problem:
            yield {self.notice: _notice(problem)}
            return
        begin = functools.partial(conversation.ask, model, prompt, pictures, settings)
        async with contextlib.aclosing(self._write(request, conversation, lang, begin, {self.prompt: ""})) as updates:
            async for update in updates:
                yield update

    async def _continue(
        self, request: gr.Request, conversation: Conversation, lang: str, *settings: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        model = self._loader.model
        if model is None or not conversation.cut:
            yield self._idle(conversation)
            return
        begin = functools.partial(conversation.go_on, model, options(*settings))
        async with contextlib.aclosing(self._write(request, conversation, lang, begin, {})) as updates:
            async for update in updates:
                yield update

    async def _write(
        self,
        request: gr.Request,
        conversation: Conversation,
        lang: str,
        begin: Callable[[], Turn],
        once_begun: dict[Any, Any],
    ) -> AsyncGenerator[dict[Any, Any], None]:
        """The page while the answer that `begin` begins is being written."""
        try:
            # Reading and resizing pictures takes a while, which other visitors should not notice.
            turn = await asyncio.to_thread(begin)
        except (ValueError, RuntimeError) as error:
            yield {self.notice: _notice(text("refused", lang, error=explain(error)))}
            return
        answer, seen = turn.answer, ""
        with self._readers.reading(request.session_hash or "", answer):
            yield {
                self.chat: conversation.shown(lang),
                self.send: gr.update(visible=False),
                self.stop: gr.update(visible=True),
                self.go_on: gr.update(visible=False),
                self.stats: conversation.footer(lang),
                self.notice: "",
                **once_begun,
            }
            while not answer.done:
                await asyncio.sleep(_LOOK_EVERY)
                if answer.text != seen:
                    seen = answer.text
                    yield {self.chat: conversation.shown(lang), self.stats: conversation.footer(lang)}
        # Always: if the conversation has been cleared, what was shown of it since must go.
        broken = text("broke", lang, error=explain(answer.error)) if answer.error else ""
        yield {
            self.chat: conversation.shown(lang),
            **self._idle(conversation),
            self.stats: conversation.footer(lang),
            self.notice: _notice(broken) if broken else "",
        }

    def _problem(
        self,
        model: Model | None,
        conversation: Conversation,
        prompt: str,
        pictures: tuple[str | None, ...],
        lang: str,
    ) -> str:
        """What stands in the way of an answer, or ""."""
        if model is None:
            return unready(self._loader.status, lang)
        if reason := unfit(model, lang):
            return reason
        if conversation.writing:
            return text("busy", lang)
        if not prompt.strip():
            return text("empty_prompt", lang)
        if self.name == "image" and model.config.vision is None:
            return text("no_vision", lang)
        if self.name == "image" and not conversation.has_picture(pictures):
            return text("no_picture", lang)
        return ""

    def _idle(self, conversation: Conversation) -> dict[Any, Any]:
        return {
            self.send: gr.update(visible=True),
            self.stop: gr.update(visible=False),
            self.go_on: gr.update(visible=conversation.cut),
        }


async def _stop(conversation: Conversation) -> None:
    conversation.stop()


def _notice(message: str) -> str:
    return f'<p class="notice" role="alert">{escape(message)}</p>'
