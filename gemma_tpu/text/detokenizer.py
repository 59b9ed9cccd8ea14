"""From token ids to text as they arrive: never half a character, never a lost space, never part of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gemma_tpu.checks import shown
from gemma_tpu.text.tokenizer import Tokenizer, decode_utf8


class Detokenizer:
    """Text of a token stream, piece by piece; all pieces together are `tokenizer.decode` of all ids.

    Gemma's pieces carry their own spaces, so a token's text does not depend on its neighbours; only byte tokens need
    to be held, three at most, until their character is complete or known to be none.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._pending = b""

    def push(self, ids: Iterable[int]) -> str:
        """The text that became certain with these ids; special tokens have none unless `skip_special=False`."""
        parts: list[str] = []
        for text_bytes, name in self._tokenizer.spell(ids):
            if name:
                parts.append(self.flush() + ("" if self._skip_special else name))
            text, self._pending = decode_utf8(self._pending + text_bytes, final=False)
            parts.append(text)
        return "".join(parts)

    def flush(self) -> str:
        """The rest, at the end of the stream: U+FFFD for each byte of an unfinished character."""
        text, self._pending = decode_utf8(self._pending, final=True)
        return text


class StopStrings:
    """Cuts a stream of text before the first of `stops` that is completed in it (of two at once, the longer one).

    The result does not depend on how the stream is cut into pieces. ValueError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]):
        if isinstance(stops, str):
            stops = [stops]
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(f"stop strings must be non-empty strings, got {shown(list(stops))}")
        self._stops = list(stops)
        self._held = ""
        self.stopped: str | None = None  # the stop string that was met

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was met; after that, nothing is emitted any more."""
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
    """Length of the longest end of `text` with which `stop` begins, without being all of it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
