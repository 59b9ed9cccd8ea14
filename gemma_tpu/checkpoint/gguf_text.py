"""Tokenizer, chat template and generation defaults in the metadata of a GGUF file.

llama.cpp (conversion/base.py, _create_vocab_sentencepiece) writes the pieces of a SentencePiece model with its scores.
Which pieces are special or user-defined it takes from Hugging Face's tokenizer_config.json; without that file all count
as normal, and early files of Google have wrong types. They are told here by name and score too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import Any

import numpy as np

from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.gguf_file import GgufFile
from gemma_tpu.checks import brief
from gemma_tpu.text import AddedToken
from gemma_tpu.text.sentencepiece_proto import model_proto
from gemma_tpu.text.special import IMAGE_SOFT_TOKEN, REQUIRED, control_ids
from gemma_tpu.text.vocabulary import SPACE

_KEY = "tokenizer.ggml."
_TOKENS, _SCORES, _TYPES = (_KEY + name for name in ("tokens", "scores", "token_type"))
_MODEL = "llama"  # llama.cpp's name of SentencePiece
_TEMPLATE = "tokenizer.chat_template"
# Ids that end an answer.
_STOPS = tuple(f"{_KEY}{name}_token_id" for name in ("eos", "eot", "eom"))
# Types of tokens (llama.h, enum llama_token_type), which are those of SentencePiece.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_CONTROLS = ("<pad>", "<eos>", "<bos>")
_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")
_PADDING = re.compile(r"\[PAD\d+\]")  # written for rows of the embedding table that no token has
_SAMPLING = "general.sampling."
# Names of the settings in generation_config.json, from which llama.cpp's converter has them.
_SAMPLING_NAMES = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}


@dataclasses.dataclass(frozen=True)
class EmbeddedText:
    """What the metadata of `file` says of text.

    `rows`: ids that have a token; the rows of the embedding table behind them are padding. `pieces`: the first of them,
    which make a SentencePiece model. `added_tokens`: what fine-tunes have added behind the placeholder of soft tokens,
    or made special.
    """

    file: str
    rows: int
    added_tokens: tuple[AddedToken, ...]
    chat_template: str | None
    generation_config: dict[str, Any]
    pieces: int
    source: GgufFile = dataclasses.field(repr=False)

    @functools.cached_property
    def tokenizer_model(self) -> bytes | None:
        """A SentencePiece model with the file's pieces; None if it has none. Raises `CheckpointError` for others."""
        metadata = self.source.metadata
        if _TOKENS not in metadata:
            return None
        if (kind := self.source.get(f"{_KEY}model")) != _MODEL or _SCORES not in metadata:
            raise CheckpointError(
                f"{self.file}: its tokenizer is of kind {brief(kind)}, not the SentencePiece model ({_MODEL!r}) of "
                "Gemma 3: put the tokenizer.model or tokenizer.json of the model beside it"
            )
        tokens, scores, types = (metadata.get(key, ())[: self.pieces] for key in (_TOKENS, _SCORES, _TYPES))
        types = np.resize(types if len(types) else [_NORMAL], len(tokens))
        return _sentencepiece_model(tokens, np.asarray(scores, np.float32), types, self.file)

    def as_files(self, *, with_tokenizer: bool) -> dict[str, bytes]:
        """The same as the files that lie beside weights of other formats, by name."""
        files = {}
        if with_tokenizer and self.tokenizer_model is not None:
            files["tokenizer.model"] = self.tokenizer_model
            if self.added_tokens:
                settings = {str(t.id): {"content": t.text, "special": t.special} for t in self.added_tokens}
                files["tokenizer_config.json"] = _dump({"added_tokens_decoder": settings})
        if self.chat_template:
            files["chat_template.jinja"] = self.chat_template.encode()
        if self.generation_config:
            files["generation_config.json"] = _dump(self.generation_config)
        return files


def _dump(raw: dict[str, Any]) -> bytes:
    return (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode()


def read_text(file: GgufFile) -> EmbeddedText:
    """Raises `CheckpointError` if the metadata is not as llama.cpp writes it."""
    tokens = file.metadata.get(_TOKENS, [])
    if not _are_texts(tokens):
        raise CheckpointError(f"{file.path}: {_TOKENS} is {brief(tokens)}, no list of texts")
    for key in (_SCORES, _TYPES):
        if key in file.metadata and np.shape(file.metadata[key]) != (len(tokens),):
            raise CheckpointError(f"{file.path}: damaged: {key} has not one value for each of {len(tokens)} tokens")
    rows = len(tokens)
    while rows and (tokens[rows - 1] == IMAGE_SOFT_TOKEN or _PADDING.fullmatch(tokens[rows - 1])):
        rows -= 1
    pieces = tokens.index(IMAGE_SOFT_TOKEN) if IMAGE_SOFT_TOKEN in tokens[:rows] else rows
    types = file.metadata.get(_TYPES, [_NORMAL] * len(tokens))
    controls = control_ids(tokens)
    named = [i for i in range(pieces) if types[i] == _CONTROL and i not in controls]
    behind = [i for i in range(pieces + 1, rows) if not _PADDING.fullmatch(tokens[i])]
    added = [AddedToken(i, tokens[i], bool(types[i] == _CONTROL)) for i in named + behind]
    template = file.metadata.get(_TEMPLATE)
    return EmbeddedText(
        file.path,
        rows,
        tuple(added),
        template if isinstance(template, str) else None,
        _generation_config(file),
        pieces,
        file,
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _generation_config(file: GgufFile) -> dict[str, Any]:
    """What a generation_config.json would say."""
    found: dict[str, Any] = {}
    for key in file.metadata:
        if key.startswith(_SAMPLING):
            name, value = key.removeprefix(_SAMPLING), file.get(key)
            # As short as it was written, before it was float32.
            found[_SAMPLING_NAMES.get(name, name)] = float(f"{value:.6g}") if isinstance(value, float) else value
    if found:
        found["do_sample"] = True
    if stops := [file.get(key) for key in _STOPS if key in file.metadata]:
        found["eos_token_id"] = stops
    return found


def _sentencepiece_model(tokens: list[str], scores: np.ndarray, listed: np.ndarray, path: str) -> bytes:
    try:
        model = model_proto()()
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    trainer = model.trainer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = trainer.BPE, True, len(tokens)
    ids = {token: i for i, token in enumerate(tokens)}
    for role in ("pad", "eos", "bos", "unk"):
        setattr(trainer, f"{role}_piece", f"<{role}>")
        setattr(trainer, f"{role}_id", ids.get(f"<{role}>", -1))
    if missing := [f"<{role}>" for role in REQUIRED if f"<{role}>" not in ids]:
        raise CheckpointError(f"{path}: no Gemma tokenizer: {_TOKENS} lacks {', '.join(missing)}")
    if len(ids) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise CheckpointError(f"{path}: damaged: {_TOKENS} has {brief(twice)} twice")
    for token, score, kind in zip(tokens, scores.tolist(), _types(tokens, scores, listed), strict=True):
        model.pieces.add(piece=token.replace(" ", SPACE), score=score, type=kind)
    return model.SerializeToString()


def _types(tokens: list[str], scores: np.ndarray, listed: np.ndarray) -> list[int]:
    """Types of the pieces of a SentencePiece model of Gemma's kind. `listed`: those in the file."""
    controls = control_ids(tokens)
    # User-defined pieces have score 0, normal ones 0, -1, -2, … in the order of their merges.
    zero = (scores == 0) & ~np.signbit(scores) & (np.append(scores[1:], 0) != -1)
    added = np.isin(listed, (_CONTROL, _USER_DEFINED)) | zero
    types = []
    for i, token in enumerate(tokens):
        if token in _CONTROLS:
            types.append(_CONTROL)
        elif token == "<unk>":
            types.append(_UNKNOWN)
        elif _BYTE_NAME.fullmatch(token):
            types.append(_BYTE)
        else:
            types.append(_USER_DEFINED if i in controls or added[i] else _NORMAL)
    return types
