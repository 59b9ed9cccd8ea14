"""The chat panel of a tab: conversation, prompt, buttons and status line."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demo.chat import Conversation
from demo.markdown import FORMULAS
from demo.page import Page, notice
from demo.texts import text

Updates = dict[Any, Any]  # component → its update


class ChatPanel:
    """The components of the tab `name` of `page`; create it inside the layout.

    `stored` is hidden and carries the conversation for session storage (`demo.session_storage.pack`).
    """

    def __init__(self, page: Page, name: str) -> None:
        with gr.Column(elem_classes="stage"):
            self.chat = page.add(
                gr.Chatbot,
                texts={"placeholder": f"chat_empty_{name}"},
                show_label=False,
                height=480,
                layout="bubble",
                buttons=["copy"],
                feedback_options=None,
                allow_tags=False,
                latex_delimiters=FORMULAS,
                elem_id=f"{name}-chat",
            )
            self.notice = gr.HTML(elem_id=f"{name}-notice", elem_classes="notice-place")
        with gr.Row(elem_classes="ask"):
            self.prompt = page.add(
                gr.Textbox,
                texts={"placeholder": f"prompt_{name}", "label": f"prompt_{name}"},
                lines=1,
                max_lines=8,
                container=False,
                scale=1,
                elem_id=f"{name}-prompt",
            )
            button = {"scale": 0, "min_width": 96}
            self.send = page.add(
                gr.Button, texts={"value": "send"}, variant="primary", elem_id=f"{name}-send", **button
            )
            self.stop = page.add(
                gr.Button, texts={"value": "stop"}, variant="stop", visible=False, elem_id=f"{name}-stop", **button
            )
        with gr.Row(elem_classes="under"):
            self.stats = gr.HTML(text("prompt_keys", page.lang), elem_classes="stats", elem_id=f"{name}-stats")
            small: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 140}
            self.resume = page.add(
                gr.Button, texts={"value": "go_on"}, visible=False, elem_id=f"{name}-continue", **small
            )
            self.clear = page.add(gr.Button, texts={"value": "clear"}, elem_id=f"{name}-clear", **small)
        self.stored = gr.Textbox(visible="hidden", elem_id=f"{name}-kept")
        self.outputs = [self.chat, self.send, self.stop, self.resume, self.stats, self.notice, self.stored]

    def messages(self, conversation: Conversation) -> Updates:
        return {self.chat: conversation.messages(conversation.lang), self.stats: conversation.footer(conversation.lang)}

    def busy(self, conversation: Conversation) -> Updates:
        """During an answer."""
        return {
            **self.messages(conversation),
            self.send: gr.update(visible=False),
            self.stop: gr.update(visible=True),
            self.resume: gr.update(visible=False),
            self.notice: "",
        }

    def idle(self, conversation: Conversation, problem: str = "") -> Updates:
        """Between answers."""
        return {
            **self.messages(conversation),
            self.send: gr.update(visible=True),
            self.stop: gr.update(visible=False),
            self.resume: gr.update(visible=conversation.can_continue),
            self.notice: notice(problem),
        }
