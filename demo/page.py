"""Components that say what they say in the visitor's language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import gradio as gr
from gradio.blocks import Block

from demo.texts import text

# A key of `texts`, or the texts themselves by language.
Says = Mapping[str, str | Mapping[str, str]]
AnyBlock = TypeVar("AnyBlock", bound=Block)


class Page:
    """Collects the components whose texts change with the language."""

    def __init__(self, lang: str) -> None:
        self.lang = lang
        self.translated: list[tuple[Any, Says]] = []

    def add(self, kind: Callable[..., AnyBlock], *, says: Says, **options: Any) -> AnyBlock:
        """A component made by `kind`; `says` maps its properties (label, value, placeholder, …) to keys of `texts`."""
        block = kind(**options, **_spoken(says, self.lang))
        self.translated.append((block, says))
        return block

    @property
    def outputs(self) -> list[Any]:
        return [block for block, _ in self.translated]

    def say(self, lang: str) -> list[dict[str, Any]]:
        """Updates that put `outputs` into `lang`."""
        return [gr.update(**_spoken(says, lang)) for _, says in self.translated]


def _spoken(says: Says, lang: str) -> dict[str, Any]:
    return {name: text(key, lang) if isinstance(key, str) else key[lang] for name, key in says.items()}
