"""A tokenizer.json made from a SentencePiece model with the `tokenizers` package, as fine-tunes come with."""

from __future__ import annotations

import json
from collections.abc import Iterable

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import decoders, models, normalizers, pre_tokenizers

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]


def parse(model: bytes) -> proto.ModelProto:
    parsed = proto.ModelProto()
    parsed.ParseFromString(model)
    return parsed


def renamed(model: bytes, names: dict[int, str]) -> bytes:
    """A SentencePiece model with other names for some pieces."""
    parsed = parse(model)
    for token, name in names.items():
        parsed.pieces[token].piece = name
    return parsed.SerializeToString()


def tokenizer_json(model: bytes, added: Iterable[tuple[str, bool]] = ()) -> bytes:
    """`added`: further tokens behind the pieces, and whether each is special."""
    pieces = parse(model).pieces
    ids = {piece.piece: i for i, piece in enumerate(pieces)}
    kind = proto.ModelProto.SentencePiece
    merges = [
        (-piece.score, ids[left], ids[right])
        for piece in pieces
        if piece.type == kind.NORMAL
        for cut in range(1, len(piece.piece))
        if (left := piece.piece[:cut]) in ids and (right := piece.piece[cut:]) in ids
    ]
    named = [piece.piece for piece in pieces]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[(named[left], named[right]) for _, left, right in sorted(merges)],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    own = [(piece.piece, piece.piece in SPECIAL) for piece in pieces if piece.type not in (kind.NORMAL, kind.BYTE)]
    for text, special in [*own, *added]:  # a space in the text is "▁" only once it is normalised
        token = tokenizers.AddedToken(text, normalized="▁" in text, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    return tokenizer.to_str().encode()


def with_settings(file: bytes, **settings: object) -> bytes:
    """A tokenizer.json with some of its top-level entries replaced."""
    return json.dumps(json.loads(file) | settings).encode()
