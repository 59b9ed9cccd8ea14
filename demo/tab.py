"""One tab: pictures and examples at the side, the conversation, the prompt, the settings."""

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

from demo.chat import Conversation, Readers, Turn
from demo.facts import unfit, unready
from demo.kept import pack, unpack
from demo.page import Page
from demo.pictures import check, fetch, picture
from demo.settings import DEFAULTS, chosen, own_defaults, settings_panel
from demo.state import Loader, explain
from demo.talk import Talk, Updates, notice
from demo.texts import text

if TYPE_CHECKING:
    from gemma_tpu import Model

EXAMPLES = Path(__file__).parent / "examples"
_LOOK_EVERY = 0.05  # seconds between two looks at an answer that is being written
_KEEP_EVERY = 1.0  # seconds after which the browser is given what is written since


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
                    self.talk = Talk(page, name)
                    self.settings = settings_panel(page, name)
                    self.sliders = self.settings[: len(DEFAULTS)]
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

    # Events.

    def _wire(self, language: gr.Radio, buttons: list[gr.Button]) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        together: dict[str, Any] = {**quiet, "concurrency_limit": None}
        talk = self.talk
        gr.on(
            [talk.prompt.submit, talk.send.click],
            self._answer,
            [self.conversation, language, talk.prompt, *self.pictures, *self.settings],
            [*talk.changing, talk.prompt],
            trigger_mode="once",
            **together,
        )
        talk.prompt.submit(self._hint, [self.conversation, language, talk.prompt], talk.notice, queue=False, **quiet)
        talk.go_on.click(
            self._continue,
            [self.conversation, language, *self.settings],
            talk.changing,
            trigger_mode="once",
            **together,
        )
        talk.stop.click(_stop, self.conversation, None, queue=False, **quiet)
        talk.clear.click(
            self._clear,
            [self.conversation, language],
            [*talk.changing, talk.prompt, *self.pictures],
            **together,
        )
        talk.kept.change(None, talk.kept, None, js=f"(kept) => demoPage.keep('{self.name}', kept)", **quiet)
        for place in self.pictures:
            place.upload(check, [place, language], [place, talk.notice], **together)
            place.clear(lambda: "", None, talk.notice, queue=False, **quiet)
        if self.address is not None:
            self.address.submit(fetch, [self.address, language], [self.pictures[0], talk.notice], **together)
        for button, example in zip(buttons, examples(self.name), strict=True):
            files = [str(EXAMPLES / file) for file in example.get("pictures", ())]
            files += [None] * (len(self.pictures) - len(files))

            def fill(lang: str, example: dict[str, Any] = example, files: list[str | None] = files) -> list[Any]:
                return [example[lang], "", *files]

            button.click(fill, language, [talk.prompt, talk.notice, *self.pictures], **together)

    def restore_on(self, load: Callable[..., Any], language: gr.Radio) -> None:
        """Takes up, when the page is loaded, the conversation that the visitor's browser has kept."""
        load(
            self._restore,
            [self.conversation, language, self.talk.kept],
            [*self.talk.changing, self.talk.prompt, *self.pictures],
            js=f"(own, lang) => [own, lang, demoPage.stored('{self.name}')]",
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        )

    async def show_defaults(self, *shown: float) -> list[Any]:
        """For `sliders`: the defaults of the checkpoint, once it is loaded."""
        model = self._loader.model  # until there is one, the sliders stay as they are (gr.skip)
        return [gr.skip()] * len(shown) if model is None else own_defaults(self.sliders, shown, model.defaults)

    async def _restore(self, conversation: Conversation, lang: str, stored: str) -> Updates:
        conversation.lang = lang
        draft, remade, whole = await asyncio.to_thread(unpack, stored, conversation)
        problem = "" if whole else text("unrestorable", lang)
        # Nothing else, and gr.skip() where nothing was kept: by now the visitor may have begun.
        updates: Updates = {self.talk.kept: gr.skip()}
        if conversation.question:
            updates |= self.talk.resting(conversation, problem)
            updates |= dict(zip(self.pictures, conversation.laid, strict=False))
            updates[self.talk.kept] = await asyncio.to_thread(pack, conversation, remade)
        if problem:
            updates[self.talk.notice] = notice(problem)
        if draft:
            updates[self.talk.prompt] = draft
        return updates

    async def _clear(self, conversation: Conversation, lang: str) -> Updates:
        conversation.lang = lang
        await asyncio.to_thread(conversation.clear)
        return {
            **self.talk.resting(conversation),
            self.talk.kept: pack(conversation),
            self.talk.prompt: "",
            **dict.fromkeys(self.pictures),
        }

    async def _hint(self, conversation: Conversation, lang: str, prompt: str) -> Any:
        """Why Enter does not send while an answer is being written, if it is not that of this very question."""
        busy = conversation.writing and prompt.strip() and prompt != conversation.question
        return notice(text("busy", lang)) if busy else gr.skip()  # another notice may stand there

    async def _answer(
        self, request: gr.Request, conversation: Conversation, lang: str, prompt: str, *rest: Any
    ) -> AsyncIterator[Updates]:
        pictures, settings = rest[: len(self.pictures)], chosen(*rest[len(self.pictures) :])
        model = self._loader.model
        problem = self._problem(model, conversation, prompt, pictures, lang)
        if model is None or problem:
            yield {self.talk.notice: notice(problem)}
            return
        conversation.lang = lang
        begin = functools.partial(conversation.ask, model, prompt, pictures, settings)
        async with contextlib.aclosing(self._write(request, conversation, begin, {self.talk.prompt: ""})) as updates:
            async for update in updates:
                yield update

    async def _continue(
        self, request: gr.Request, conversation: Conversation, lang: str, *settings: Any
    ) -> AsyncIterator[Updates]:
        model = self._loader.model
        conversation.lang = lang
        if model is None or not conversation.cut:
            yield self.talk.resting(conversation, unready(self._loader.status, lang) if model is None else "")
            return
        begin = functools.partial(conversation.go_on, model, chosen(*settings))
        async with contextlib.aclosing(self._write(request, conversation, begin, {})) as updates:
            async for update in updates:
                yield update

    async def _write(
        self, request: gr.Request, conversation: Conversation, begin: Callable[[], Turn], once_begun: Updates
    ) -> AsyncGenerator[Updates, None]:
        """The page while the answer that `begin` begins is being written."""
        talk = self.talk
        try:
            # Reading and resizing pictures takes a while, which other visitors should not notice.
            turn = await asyncio.to_thread(begin)
        except (ValueError, RuntimeError) as error:
            yield {talk.notice: notice(text("refused", conversation.lang, error=explain(error)))}
            return
        answer, seen, kept_at = turn.answer, {}, time.monotonic()
        with self._readers.reading(request.session_hash or "", answer):
            kept = await asyncio.to_thread(pack, conversation, turn.pictures)
            yield {**talk.writing(conversation), talk.kept: kept, **once_begun}
            while not answer.done:
                await asyncio.sleep(_LOOK_EVERY)
                if (said := talk.said(conversation)) != seen:
                    seen = said
                    if time.monotonic() > kept_at + _KEEP_EVERY:
                        kept_at, said = time.monotonic(), {**said, talk.kept: pack(conversation)}
                    yield said
        # Always: if the conversation has been cleared, what was shown of it since must go.
        broken = text("broke", conversation.lang, error=explain(answer.error)) if answer.error else ""
        yield {**talk.resting(conversation, broken), talk.kept: pack(conversation)}

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


async def _stop(conversation: Conversation) -> None:
    conversation.stop()
