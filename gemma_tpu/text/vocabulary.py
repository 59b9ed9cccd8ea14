"""Reads both tokenizer file formats, SentencePiece and Hugging Face `tokenizers`, into a `Vocabulary`."""

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

_MAX_ID = 1 << 24  # beyond any vocabulary; bounds the list of pieces
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that a companion file adds to the pieces or renames. `special`: it has no text."""

    id: int
    text: str
    special: bool = False


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The content of a tokenizer file.

    `pieces`: by id, with ▁ for a space; "" where an id has none. `controls`: ids that the file marks as having no text.
    `bytes`: the values of the byte pieces. `roles`: the file's ids for some of `special.REQUIRED`. `encode`: the ids of
    a text, in which it also finds control pieces.
    """

    name: str
    pieces: list[str]
    controls: frozenset[int]
    bytes: Mapping[int, bytes]
    roles: Mapping[str, int]
    encode: Callable[[str], list[int]]


def open_vocabulary(model: bytes | str | Path, name: str | None = None) -> Vocabulary:
    """Reads a SentencePiece model or a tokenizer.json, given as a path or as bytes called `name` in errors.

    ValueError for anything else.
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
    """Whether a tokenizer file's content is JSON."""
    return model.lstrip()[:1] == b"{"


def _from_sentencepiece(data: bytes, name: str) -> Vocabulary:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        all_ids = list(range(processor.vocab_size()))  # one call for all ids is ten times faster
        pieces: list[str] = processor.id_to_piece(all_ids)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: not a SentencePiece model, or a damaged one") from error
    controls = {i for i, control in enumerate(processor.is_control(all_ids)) if control}
    roles = {role: getattr(processor, f"{role}_id")() for role in ("pad", "eos", "bos", "unk")}
    roles = {role: token for role, token in roles.items() if token >= 0}
    return Vocabulary(
        name,
        pieces,
        frozenset([*controls, *(token for role, token in roles.items() if role == "unk")]),
        {i: _byte(pieces[i]) for i, is_byte in enumerate(processor.is_byte(all_ids)) if is_byte},
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
    # A file saved during training may enable truncation or padding.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.get_vocab(with_added_tokens=True)
    ids.pop(IMAGE_SOFT_TOKEN, None)
    if (highest := max(ids.values(), default=-1)) > _MAX_ID:
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
