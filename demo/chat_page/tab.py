"""The Chat tab of the demo's page: the Chat page in a frame, which also has an address of its own."""

from __future__ import annotations

import gradio as gr

from demo.page import Page

# The address depends on where the page is served; static/page.js sets it when the tab is first seen.
_FRAME = '<iframe data-chat allow="clipboard-write; camera" title="Chat"></iframe>'


def chat_tab(page: Page) -> None:
    """Create it inside the tabs."""
    with page.add(gr.Tab, texts={"label": "tab_chat"}, id="chat", elem_id="chat-tab"):
        gr.HTML(_FRAME, elem_id="chat-frame", padding=False)
