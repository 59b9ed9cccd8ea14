"""Gemma's tokenizer: text ↔ token ids, from either format of tokenizer file."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gemma_tpu.checks import as_tuple, brief, check_integer
from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.text.special import FUNCTION_PIECES, IMAGE_SOFT_TOKEN, REQUIRED, control_ids, find_special_ids
from gemma_tpu.text.vocabulary import SPACE, AddedToken, open_vocabulary

# Changed by a tokenizer that normalises, strips or adds a prefix.
_PROBE = " a  \n\t＜ﬁé😀 "
_BRACKETED = r"<[^<>]+>|\[[^\[\]]+\]"


class Tokenizer:
    """Text ↔ token ids. `model` is a SentencePiece model or a tokenizer.json: a path, or bytes called `name` in errors.

    `added`: tokens from companion files, which add pieces or rename them. `config_ids`: special ids by role ("bos",
    "end_of_image", …) from config.json. `warnings`: a sentence for each of either that contradicts the pieces.

    Ids: `pad_id`, `eos_id`, `bos_id`, `unk_id`, `start_of_turn`, `end_of_turn`; `start_of_image` and `end_of_image`
    are None in a text-only vocabulary (Gemma 2). `double_newline`: the ids of "\\n\\n", one in Gemma's vocabulary, more
    in one without that piece. `special_ids`: all ids without text. `vocab_size`: the highest id plus one, though not
    every id below it has a piece (`has_piece`).

    Raises ValueError for anything but a tokenizer file like Gemma's.
    """

    def __init__(
        self,
        model: bytes | str | Path,
        *,
        name: str | None = None,
        added: Iterable[AddedToken] = (),
        config_ids: Mapping[str, int] | None = None,
    ):
        vocabulary = open_vocabulary(model, name)
        self.name, self._encode, self._bytes = vocabulary.name, vocabulary.encode, vocabulary.bytes
        self._pieces = list(vocabulary.pieces)
        self.warnings: list[str] = []
        self._replaced: set[str] = set()  # former names, which the encoder still finds
        controls = set(vocabulary.controls)
        ordinary = self._add(added, controls)
        controls |= control_ids(self._pieces)
        special, warnings = find_special_ids(self._pieces, controls, vocabulary.roles, config_ids or {})
        self.warnings += warnings
        if missing := [f"<{role}>" for role in REQUIRED if role not in special]:
            raise ValueError(f"{self.name}: no Gemma tokenizer: its vocabulary lacks {', '.join(missing)}")
        self.pad_id, self.eos_id, self.bos_id, self.unk_id, self.start_of_turn, self.end_of_turn = (
            special[role] for role in REQUIRED
        )
        self.start_of_image: int | None = special.get("start_of_image")
        self.end_of_image: int | None = special.get("end_of_image")
        for role, token in special.items():
            self._rename(token, f"<{role}>")
        self.vocab_size = len(self._pieces)
        self._ids = {piece: i for i, piece in enumerate(self._pieces) if piece}
        functions = {piece: self._ids[piece] for piece in FUNCTION_PIECES if piece in self._ids}
        self.special_ids = frozenset({*controls, *special.values()} - {*functions.values()})
        self._index_names(ordinary, functions)
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise ValueError(
                f"{self.name}: no Gemma tokenizer: it changes the text it encodes. Gemma's have byte fallback, "
                "identity normalisation and no dummy prefix, and keep extra whitespace"
            )
        self.double_newline: list[int] = self.encode("\n\n")

    def _add(self, tokens: Iterable[AddedToken], controls: set[int]) -> dict[str, int]:
        """Adds `tokens` to the pieces and `controls`. Returns the ordinary ones, which the encoder does not find."""
        reserved = controls | control_ids(self._pieces)
        ordinary: dict[str, int] = {}
        for token in tokens:
            if token.text == IMAGE_SOFT_TOKEN:
                continue
            old = self._rename(token.id, token.text.replace(" ", SPACE))
            if old and token.id not in reserved:
                self.warnings.append(
                    f"the added token {token.text!r} takes the place of the piece {old!r}, id {token.id}"
                )
            if token.special:
                controls.add(token.id)
            elif old is not None:
                controls.discard(token.id)
                ordinary[token.text] = token.id
        return ordinary

    def _rename(self, token: int, piece: str) -> str | None:
        """Names `token` and returns its previous name, "" if it had none; None if the name is unchanged."""
        self._pieces += [""] * (token + 1 - len(self._pieces))
        if (old := self._pieces[token]) == piece:
            return None
        self._pieces[token] = piece
        if old:
            self._replaced.add(old.replace(SPACE, " "))
        return old

    def _index_names(self, ordinary: dict[str, int], functions: dict[str, int]) -> None:
        """Maps the names that `encode` looks for to their ids, or to None where the encoder must not find the piece."""
        names = {self._pieces[i].replace(SPACE, " "): i for i in self.special_ids if self.has_piece(i)} | functions
        hidden: dict[str, int | None] = dict.fromkeys([IMAGE_SOFT_TOKEN, *(self._replaced - self._ids.keys())])
        self._with_control: dict[str, int | None] = hidden | ordinary | names
        self._without_control: dict[str, int | None] = hidden | ordinary | dict.fromkeys(names)
        others = [re.escape(name) for name in self._with_control if not re.fullmatch(_BRACKETED, name)]
        # The lookahead also finds candidates that begin inside another one.
        self._candidate = re.compile(f"(?=({'|'.join([*sorted(others, key=len, reverse=True), _BRACKETED])}))")

    def has_piece(self, token: int) -> bool:
        """Whether the vocabulary has a piece for `token`."""
        return 0 <= token < self.vocab_size and self._pieces[token] != ""

    def ids_without_piece(self, rows: int) -> list[int]:
        """Ids below `rows` without a piece: an embedding table may have more rows than its tokenizer has pieces."""
        holes = [token for token, piece in enumerate(self._pieces[:rows]) if not piece]
        return [*holes, *range(self.vocab_size, rows)]

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
        """Token ids of `text`, preceded by <bos> if `bos`.

        With `control`, control pieces spelled out in the text (<start_of_turn>, <bos>, <unused7>, …) become their ids.
        Otherwise they are ordinary text: the result has no control id and decodes to the same characters. As with every
        SentencePiece model, "▁" (U+2581) decodes to a space.
        """
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {brief(text)}")
        ids = [self.bos_id] if bos else []
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text has half a surrogate pair ({text[error.start]!r}): decode it properly, or replace it"
            ) from error
        known, start = self._with_control if control else self._without_control, 0
        for match in self._candidate.finditer(text):
            at, piece = match.start(), match[1]
            if at < start or piece not in known:
                continue
            if (token := known[piece]) is None:
                # Split after the first character, so that the encoder does not find the piece.
                ids += self._encode(text[start : at + 1])
                start = at + 1
            else:
                ids += self._encode(text[start:at])
                ids.append(token)
                start = at + len(piece)
        return ids + self._encode(text[start:])

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`. Each invalid UTF-8 byte becomes U+FFFD.

        Special tokens (see `special_ids`) and SOFT_TOKEN are skipped; with `skip_special=False` they appear by name.
        ValueError for an id outside the vocabulary.
        """
        ids = as_tuple("ids", ids)
        for token in ids:
            if token != SOFT_TOKEN:
                self._check(token)
        parts: list[str] = []
        run = bytearray()
        for text_bytes, name in self.spell(ids):
            if name:  # a special token ends a run of bytes
                parts.append(decode_utf8(bytes(run), final=True)[0] + ("" if skip_special else name))
                run.clear()
            run += text_bytes
        return "".join(parts) + decode_utf8(bytes(run), final=True)[0]

    def spell(self, ids: Iterable[int]) -> Iterator[tuple[bytes, str]]:
        """For each id its text as bytes, and its name if it is a special token (else "").

        An id without a piece, which a model may sample, has neither.
        """
        for token in ids:
            if token == SOFT_TOKEN:
                yield b"", IMAGE_SOFT_TOKEN
            elif not self.has_piece(token):
                yield b"", ""
            elif token in self.special_ids:
                yield b"", self._pieces[token]
            else:
                yield self._bytes.get(token) or self._pieces[token].replace(SPACE, " ").encode(), ""

    def _check(self, token: int) -> None:
        check_integer("a token id", token, -(2**63), 2**64)
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size} pieces ({self.name})")


def decode_utf8(data: bytes, *, final: bool) -> tuple[str, bytes]:
    """The text of `data`, and the trailing bytes of an incomplete character (none if `final`).

    Each invalid byte becomes one U+FFFD, as in SentencePiece; Python's "replace" merges several.
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
