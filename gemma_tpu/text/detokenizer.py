"""Incremental detokenization: complete characters only, spaces kept, stop strings held back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gemma_tpu.checks import brief
from gemma_tpu.text.tokenizer import Tokenizer, decode_utf8


class Detokenizer:
    """Decodes a token stream incrementally; the concatenated text equals `tokenizer.decode` of all ids.

    Gemma's pieces contain their own spaces, so a token's text does not depend on its neighbours. Only byte tokens are
    held back, at most three, until their character is complete or invalid.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._pending = b""

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete. Special tokens have none unless `skip_special=False`."""
        parts: list[str] = []
        for text_bytes, name in self._tokenizer.spell(ids):
            if name:
                parts.append(self.flush() + ("" if self._skip_special else name))
            self._pending += text_bytes
        text, self._pending = decode_utf8(self._pending, final=False)
        return "".join(parts) + text

    def flush(self) -> str:
        """The remaining text at the end of the stream: U+FFFD for each byte of an incomplete character."""
        text, self._pending = decode_utf8(self._pending, final=True)
        return text


class StopStrings:
    """Truncates a text stream before the first stop string that it completes (the longer of two at once).

    The result does not depend on how the stream is split. ValueError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]):
        if isinstance(stops, str):
            stops = [stops]
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(f"stop strings must be non-empty strings, got {brief(list(stops))}")
        self._stops = list(stops)
        self._held = ""
        self.stopped: str | None = None  # the stop string that was found

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._stops)

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to emit, and whether a stop string was found; later calls emit nothing."""
        if self.stopped is not None:
            return "", True
        text = self._held + text
        matches = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            _, at, self.stopped = min(matches)
            self._held = ""
            return text[:at], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        safe = len(text) - keep
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """The text held back, at the end of the stream."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
