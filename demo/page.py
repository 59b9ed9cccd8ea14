"""Gradio components whose texts follow the page's language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any, TypeVar

import gradio as gr
from gradio.blocks import Block

from demo.texts import text

# Property → a key of `demo.texts`, or the texts themselves by language.
Texts = Mapping[str, str | Mapping[str, str]]
AnyBlock = TypeVar("AnyBlock", bound=Block)


class Page:
    """Collects the components whose texts change with the language."""

    def __init__(self, lang: str) -> None:
        self.lang = lang
        self.translated: list[tuple[Any, Texts]] = []

    def add(self, kind: Callable[..., AnyBlock], *, texts: Texts, **options: Any) -> AnyBlock:
        """Creates a component; `texts` maps its properties (label, value, placeholder, …) to keys of `demo.texts`."""
        block = kind(**options, **_properties(texts, self.lang))
        self.translated.append((block, texts))
        return block

    @property
    def outputs(self) -> list[Any]:
        return [block for block, _ in self.translated]

    def translate(self, lang: str) -> list[dict[str, Any]]:
        """Updates that translate `outputs` to `lang`."""
        return [gr.update(**_properties(texts, lang)) for _, texts in self.translated]


def _properties(texts: Texts, lang: str) -> dict[str, Any]:
    return {name: text(key, lang) if isinstance(key, str) else key[lang] for name, key in texts.items()}


def notice(problem: str) -> str:
    """HTML of an error message, "" for none."""
    return f'<p class="notice" role="alert">{escape(problem)}</p>' if problem else ""
