"""Where a tab talks: the conversation, the question under it, and what is said about the answer."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from demo.chat import Conversation
from demo.markdown import FORMULAS
from demo.page import Page
from demo.texts import text

Updates = dict[Any, Any]  # what components show next


class Talk:
    """The components of the tab `name` of `page`; create it inside the layout.

    `kept` is what the visitor's browser keeps (`demo.kept.pack`), and is not seen.
    """

    def __init__(self, page: Page, name: str) -> None:
        with gr.Column(elem_classes="stage"):
            self.chat = page.add(
                gr.Chatbot,
                says={"placeholder": f"chat_empty_{name}"},
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
                says={"placeholder": f"prompt_{name}", "label": f"prompt_{name}"},
                lines=1,
                max_lines=8,
                container=False,
                scale=1,
                elem_id=f"{name}-prompt",
            )
            button = {"scale": 0, "min_width": 96}
            self.send = page.add(gr.Button, says={"value": "send"}, variant="primary", elem_id=f"{name}-send", **button)
            self.stop = page.add(
                gr.Button, says={"value": "stop"}, variant="stop", visible=False, elem_id=f"{name}-stop", **button
            )
        with gr.Row(elem_classes="under"):
            self.stats = gr.HTML(text("prompt_keys", page.lang), elem_classes="stats", elem_id=f"{name}-stats")
            small: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 140}
            self.go_on = page.add(
                gr.Button, says={"value": "go_on"}, visible=False, elem_id=f"{name}-continue", **small
            )
            self.clear = page.add(gr.Button, says={"value": "clear"}, elem_id=f"{name}-clear", **small)
        self.kept = gr.Textbox(visible="hidden", elem_id=f"{name}-kept")
        self.changing = [self.chat, self.send, self.stop, self.go_on, self.stats, self.notice, self.kept]

    def said(self, conversation: Conversation) -> Updates:
        return {self.chat: conversation.shown(conversation.lang), self.stats: conversation.footer(conversation.lang)}

    def writing(self, conversation: Conversation) -> Updates:
        """While an answer is being written."""
        return {
            **self.said(conversation),
            self.send: gr.update(visible=False),
            self.stop: gr.update(visible=True),
            self.go_on: gr.update(visible=False),
            self.notice: "",
        }

    def resting(self, conversation: Conversation, problem: str = "") -> Updates:
        """While none is."""
        return {
            **self.said(conversation),
            self.send: gr.update(visible=True),
            self.stop: gr.update(visible=False),
            self.go_on: gr.update(visible=conversation.cut),
            self.notice: notice(problem),
        }


def notice(problem: str) -> str:
    """HTML that says what is wrong, if anything."""
    return f'<p class="notice" role="alert">{escape(problem)}</p>' if problem else ""
