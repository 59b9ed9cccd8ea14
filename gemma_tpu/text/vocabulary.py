"""The two formats of a tokenizer file, SentencePiece's and that of Hugging Face's `tokenizers`, behind one value."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import sentencepiece
import tokenizers

from gemma_tpu.checks import as_path, one_line
from gemma_tpu.text.special import IMAGE_SOFT_TOKEN

SPACE = "▁"  # how a space is spelled inside a piece

_MOST = 1 << 24  # no vocabulary has so many pieces, and a list of them is made
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that the files beside a tokenizer add to its pieces, or give another name. `special`: without text."""

    id: int
    text: str
    special: bool = False


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer file says.

    `pieces`: by id, spelled with ▁ for a space; "" where an id has none. `controls`: ids that the file marks as
    standing for no text. `bytes`: what the byte pieces stand for. `roles`: ids that the file gives to some of
    `special.REQUIRED`. `encode`: ids of a text; every piece that is spelled out in it is found, a control piece too.
    """

    name: str
    pieces: list[str]
    controls: frozenset[int]
    bytes: Mapping[int, bytes]
    roles: Mapping[str, int]
    encode: Callable[[str], list[int]]


def open_vocabulary(model: bytes | str | Path, name: str | None = None) -> Vocabulary:
    """A SentencePiece model (tokenizer.model) or a tokenizer.json, by its path or content. ValueError for neither.

    `name` is what errors call content.
    """
    if isinstance(model, bytes):
        if not model:
            raise ValueError(f"{name or 'tokenizer'}: empty")
        name = name or f"{'tokenizer.json' if is_json(model) else 'tokenizer model'} ({len(model)} bytes)"
        return _from_json(model, name) if is_json(model) else _from_sentencepiece(model, name)
    path = Path(as_path("a tokenizer", model))
    if path.is_dir():
        raise ValueError(f"{path}: a directory: name the tokenizer.model (SentencePiece) or tokenizer.json in it")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a tokenizer.model (SentencePiece) or a tokenizer.json")
    read = _from_json if path.suffix == ".json" else _from_sentencepiece
    return read(path.read_bytes(), str(path))


def is_json(model: bytes) -> bool:
    """Whether the content of a tokenizer file is that of a tokenizer.json."""
    return model.lstrip()[:1] == b"{"


def _from_sentencepiece(data: bytes, name: str) -> Vocabulary:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        every = list(range(processor.vocab_size()))  # it answers for a list ten times faster than one by one
        pieces: list[str] = processor.id_to_piece(every)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: not a SentencePiece model, or a damaged one") from error
    controls = {i for i, control in enumerate(processor.is_control(every)) if control}
    roles = {role: getattr(processor, f"{role}_id")() for role in ("pad", "eos", "bos", "unk")}
    roles = {role: token for role, token in roles.items() if token >= 0}
    return Vocabulary(
        name,
        pieces,
        frozenset([*controls, *(token for role, token in roles.items() if role == "unk")]),
        {i: _byte(pieces[i]) for i, is_byte in enumerate(processor.is_byte(every)) if is_byte},
        roles,
        processor.encode,
    )


def _from_json(data: bytes, name: str) -> Vocabulary:
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(
            f"{name}: not a tokenizer.json that tokenizers {tokenizers.__version__} reads: {one_line(error)}"
        ) from error
    # A file that was saved while training may cut or pad what it encodes.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.get_vocab(with_added_tokens=True)
    ids.pop(IMAGE_SOFT_TOKEN, None)
    if (highest := max(ids.values(), default=-1)) > _MOST:
        raise ValueError(f"{name}: {highest} is no token id")
    pieces = [""] * (1 + highest)
    for piece, token in ids.items():
        pieces[token] = piece.replace(" ", SPACE)
    added = tokenizer.get_added_tokens_decoder()
    has_bytes = getattr(tokenizer.model, "byte_fallback", False)
    unknown = ids.get(getattr(tokenizer.model, "unk_token", None) or "")
    roles = {} if unknown is None else {"unk": unknown}
    special = {token for token, entry in added.items() if entry.special and token < len(pieces)}
    return Vocabulary(
        name,
        pieces,
        frozenset(special | set(roles.values())),
        {i: _byte(piece) for i, piece in enumerate(pieces) if has_bytes and _BYTE.fullmatch(piece)},
        roles,
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    )


def _byte(piece: str) -> bytes:
    return bytes([int(piece[1:-1], 16)])
