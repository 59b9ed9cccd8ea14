"""SentencePiece tokenizer with Gemma's special pieces, found by name because their ids differ between vocabularies."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from gemma_tpu.config import SOFT_TOKEN

SPACE = "▁"  # how SentencePiece spells a space inside a piece

# What a control piece may look like. Ordinary user-defined pieces (newline runs, tabs, <table>, </b>) do not match.
_CONTROL = re.compile(
    r"<(?:pad|eos|bos|unk|mask|2mass|unused\d+|(?:start|end)_of_\w+|\w+_soft_token)>|\[(?:@BOS@|multimodal)\]"
)
# FunctionGemma's own pieces: never what a user types, like those above, but part of the text that the model writes.
FUNCTION_PIECES = (
    *(f"<{end}_function_{what}>" for what in ("declaration", "call", "response") for end in ("start", "end")),
    "<escape>",
)
# Where one may stand in a text; looking ahead finds those that begin inside another candidate as well.
_CANDIDATE = re.compile(r"(?=(<[^<>]+>|\[[^\[\]]+\]))")

# Text that a tokenizer which normalises, strips or prefixes would change.
_PROBE = " a  \n\t＜ﬁé😀 "


class Tokenizer:
    """Gemma's text ↔ token ids. `model` is a serialized SentencePiece model, or the path of one.

    Ids: `pad_id`, `eos_id`, `bos_id`, `unk_id`, `start_of_turn`, `end_of_turn`; `start_of_image` and `end_of_image`
    are None in a vocabulary for text only (Gemma 2). `double_newline` is the ids of "\\n\\n": one id in Gemma's
    vocabulary, two or more in one that lacks the piece. `special_ids` are all ids that stand for no text.

    Raises ValueError for something that is no SentencePiece model, or not one like Gemma's.
    """

    def __init__(self, model: bytes | str | Path):
        if isinstance(model, bytes):
            self.name, self.model_bytes = f"tokenizer model ({len(model)} bytes)", model
        else:
            self.name, self.model_bytes = str(model), _read(Path(model))
        try:
            self._sp = sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)
        except RuntimeError as error:
            raise ValueError(f"{self.name}: not a SentencePiece model, or a damaged one") from error
        self.vocab_size: int = self._sp.vocab_size()
        every = list(range(self.vocab_size))  # SentencePiece answers for a list ten times faster than one by one
        self._pieces: list[str] = self._sp.id_to_piece(every)
        self._ids = dict(zip(self._pieces, every, strict=True))

        required = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
        if missing := [piece for piece in required if piece not in self._ids]:
            raise ValueError(f"{self.name}: no Gemma tokenizer: its vocabulary lacks {', '.join(missing)}")
        self.pad_id, self.eos_id, self.bos_id, self.unk_id, self.start_of_turn, self.end_of_turn = (
            self._ids[piece] for piece in required
        )
        self.start_of_image: int | None = self._ids.get("<start_of_image>")
        self.end_of_image: int | None = self._ids.get("<end_of_image>")
        named = [
            i for i, piece in enumerate(self._pieces) if piece.startswith(("<", "[")) and _CONTROL.fullmatch(piece)
        ]
        by_type = [i for i, control in enumerate(self._sp.is_control(every)) if control]
        self.special_ids = frozenset([*named, *by_type, self.unk_id])
        self._controls = {self._pieces[i]: i for i in self.special_ids}
        self._controls |= {piece: self._ids[piece] for piece in FUNCTION_PIECES if piece in self._ids}
        self._bytes = {
            i: bytes([int(self._pieces[i][1:-1], 16)]) for i, is_byte in enumerate(self._sp.is_byte(every)) if is_byte
        }
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise ValueError(
                f"{self.name}: no Gemma tokenizer: it changes the text it encodes. Gemma's have byte fallback, "
                "identity normalisation and no dummy prefix, and keep extra whitespace"
            )
        self.double_newline: list[int] = self.encode("\n\n")

    def find(self, piece: str) -> int | None:
        """The id of `piece`, or None if the vocabulary lacks it."""
        return self._ids.get(piece)

    def id(self, piece: str) -> int:
        """The id of `piece` (spelled with ▁ for a space). ValueError if the vocabulary lacks it."""
        if piece not in self._ids:
            raise ValueError(f"{self.name}: the vocabulary lacks the piece {piece!r}")
        return self._ids[piece]

    def piece(self, token: int) -> str:
        """The piece of an id, as the vocabulary spells it. ValueError for an id outside the vocabulary."""
        self._check(token)
        return self._pieces[token]

    def encode(self, text: str, *, bos: bool = False, control: bool = False) -> list[int]:
        """Token ids of `text`, with the id of <bos> in front if `bos`.

        Control pieces that the text spells out (<start_of_turn>, <bos>, <unused7>, …) become their ids only if
        `control`; otherwise they are text like any other: no control id is in the result, and it decodes to the same
        characters. As with every SentencePiece model, "▁" (U+2581) comes back as a space.
        """
        ids = [self.bos_id] if bos else []
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text has half a surrogate pair at character {error.start} ({text[error.start]!r}): "
                "decode it properly, or replace it"
            ) from error
        start = 0
        for at, piece in self._find_controls(text):
            if control:
                ids += self._sp.encode(text[start:at])
                ids.append(self._controls[piece])
                start = at + len(piece)
            else:
                # A piece cut after its first character is no piece any more, and each part is encoded as text.
                ids += self._sp.encode(text[start : at + 1])
                start = at + 1
        return ids + self._sp.encode(text[start:])

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that form no UTF-8 become U+FFFD, one each.

        Special tokens (see `special_ids`) and SOFT_TOKEN are skipped; with `skip_special=False` they appear by name.
        ValueError for an id outside the vocabulary.
        """
        parts: list[str] = []
        run = bytearray()
        for text_bytes, name in self.spell(ids):
            if name:  # a special token ends a run of bytes
                parts.append(decode_utf8(bytes(run), final=True)[0] + ("" if skip_special else name))
                run.clear()
            run += text_bytes
        return "".join(parts) + decode_utf8(bytes(run), final=True)[0]

    def spell(self, ids: Iterable[int]) -> Iterator[tuple[bytes, str]]:
        """For each id the bytes of its text, and the name of a special token (otherwise "")."""
        for token in ids:
            if token == SOFT_TOKEN:
                yield b"", "<image_soft_token>"
                continue
            self._check(token)
            piece = self._pieces[token]
            if token in self.special_ids:
                yield b"", piece
            else:
                yield self._bytes.get(token) or piece.replace(SPACE, " ").encode(), ""

    def _check(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size} pieces ({self.name})")

    def _find_controls(self, text: str) -> Iterator[tuple[int, str]]:
        for match in _CANDIDATE.finditer(text):
            if match[1] in self._controls:
                yield match.start(), match[1]


def decode_utf8(data: bytes, *, final: bool) -> tuple[str, bytes]:
    """Text of `data`, and the last bytes that may yet become a character (none if `final`).

    Each byte that cannot be part of a character becomes one U+FFFD, as in SentencePiece; Python's own "replace" would
    make one of several.
    """
    parts: list[str] = []
    while data:
        try:
            text, used = codecs.utf_8_decode(data, "strict", final)
            parts.append(text)
            return "".join(parts), data[used:]
        except UnicodeDecodeError as error:
            parts.append(data[: error.start].decode() + "\ufffd")
            data = data[error.start + 1 :]
    return "".join(parts), b""


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a SentencePiece model (tokenizer.model)")
    return path.read_bytes()
