"""The small vocabulary of the goldens, with the pieces that the relatives of Gemma 3 have."""

from __future__ import annotations

from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as proto

from gemma_tpu.text import Tokenizer
from gemma_tpu.text.special import FUNCTION_PIECES

MODEL = Path(__file__).parent / "goldens" / "text" / "tokenizer.model"


def tokenizer(*extra: str, model: bytes | None = None, first: int | None = None) -> Tokenizer:
    """A vocabulary with the pieces `extra`, at its end, or in place of those from id `first` on."""
    parsed = proto.ModelProto.FromString(MODEL.read_bytes() if model is None else model)
    for i, name in enumerate(extra):
        piece = parsed.pieces.add() if first is None else parsed.pieces[first + i]
        piece.piece, piece.type, piece.score = name, proto.ModelProto.SentencePiece.USER_DEFINED, 0.0
    return Tokenizer(parsed.SerializeToString())


def function_gemma() -> Tokenizer:
    return tokenizer(*FUNCTION_PIECES)


def spelled(of: Tokenizer, tokens: list[int]) -> str:
    return of.decode(tokens, skip_special=False).replace("<image_soft_token>", "*")
