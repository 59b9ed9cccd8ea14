"""Separates the reasoning trace of thinking models (MedGemma) from the answer."""

from __future__ import annotations

from collections.abc import Iterable

from gemma_tpu.text.detokenizer import Detokenizer
from gemma_tpu.text.tokenizer import Tokenizer

# MedGemma writes <unused94>thought … <unused95> before its answer (model card, "thinking").
_BEGIN, _END, _TITLE = "<unused94>", "<unused95>", "thought"


class Thoughts:
    """Removes the reasoning trace from a token stream; `text` is the trace so far."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._begin, self._end = (tokenizer.find(piece) for piece in (_BEGIN, _END))
        self._detokenizer = Detokenizer(tokenizer)
        self._inside = False
        self._parts: list[str] = []

    def split(self, tokens: Iterable[int]) -> list[int]:
        """The tokens that belong to the answer."""
        answer = []
        for token in tokens:
            if token == self._begin or (token == self._end and self._inside):
                self._inside = token == self._begin
                self._parts.append(self._detokenizer.flush())
            elif self._inside:
                self._parts.append(self._detokenizer.push([token]))
            else:
                answer.append(token)
        return answer

    @property
    def text(self) -> str:
        return "".join(self._parts).removeprefix(_TITLE).strip()
