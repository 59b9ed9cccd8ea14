"""Tokens that Hugging Face's files add to a tokenizer's pieces, or rename: fine-tunes bring tokens of their own."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_tpu.checkpoint import storage
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.hf_names import EXTRA_ROWS
from gemma_tpu.checks import brief
from gemma_tpu.config import GemmaConfig
from gemma_tpu.text import AddedToken
from gemma_tpu.text.special import IMAGE_SOFT_TOKEN

TOKENIZER_JSON = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_SPECIAL_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_LIST = re.compile(r'"added_tokens"\s*:\s*(?=\[)')


def read_added_tokens(directories: Sequence[str]) -> tuple[AddedToken, ...]:
    """Of the nearest of `directories` that has any, by id; each once.

    transformers keeps them in three places: tokenizer.json, the tokenizer's settings, and (older versions) a file of
    their own. Where they disagree, the first of these is what its tokenizers follow.

    `CheckpointError` for a file that cannot be read.
    """
    for directory in directories:
        files = {name: storage.join(directory, name) for name in (_ADDED, _CONFIG, TOKENIZER_JSON, _SPECIAL_MAP)}
        files = {name: file for name, file in files.items() if storage.is_file(file)}
        settings = storage.read_json(files[_CONFIG]) if _CONFIG in files else {}
        special = _named_special(settings)
        if _SPECIAL_MAP in files:
            special |= _named_special(storage.read_json(files[_SPECIAL_MAP]))
        found: dict[int, AddedToken] = {}
        for name in (_ADDED, _CONFIG, TOKENIZER_JSON):
            if name not in files:
                continue
            try:
                if name == _ADDED:
                    listed = [AddedToken(token, text, text in special) for text, token in _items(files[name])]
                elif name == _CONFIG:
                    listed = [_token(int(token), entry) for token, entry in _decoder(settings).items()]
                else:
                    listed = [_token(entry["id"], entry) for entry in _list_of_tokenizer_json(files[name])]
                found |= {token.id: token for token in map(_checked, listed)}
            except CheckpointError:
                raise
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise CheckpointError(f"{files[name]}: its added tokens cannot be read: {error!r}") from error
        if found:
            return tuple(found[token] for token in sorted(found))
    return ()


def rows_needed(tokens: Sequence[AddedToken]) -> int:
    """Rows of an embedding table that has one for each token. The stand-in for an image's soft tokens needs none."""
    return 1 + max((token.id for token in tokens if token.text != IMAGE_SOFT_TOKEN), default=-1)


def with_their_rows(config: GemmaConfig, directories: Sequence[str]) -> GemmaConfig:
    """`config` with the rows that Hugging Face appends to a multimodal model's table, if added tokens use them.

    Its tokenizers number a fine-tune's own tokens from there on: the first of those rows is that of the stand-in for
    soft tokens, and the rest are otherwise padding.
    """
    behind = config.vocab_size + EXTRA_ROWS
    if config.vision and config.vocab_size < rows_needed(read_added_tokens(directories)) <= behind:
        return dataclasses.replace(config, vocab_size=behind)
    return config


def _items(file: str) -> list[tuple[str, Any]]:
    return list(storage.read_json(file).items())


def _decoder(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return settings.get("added_tokens_decoder") or {}


def _token(token: int, entry: Mapping[str, Any]) -> AddedToken:
    return AddedToken(token, entry["content"], bool(entry.get("special")))


def _checked(token: AddedToken) -> AddedToken:
    if isinstance(token.id, bool) or not isinstance(token.id, int) or token.id < 0:
        raise ValueError(f"{brief(token.id)} is no token id")
    if not isinstance(token.text, str) or not token.text:
        raise ValueError(f"{brief(token.text)} is no text of a token")
    return token


def _list_of_tokenizer_json(file: str) -> list[Any]:
    """Its "added_tokens", which stand before the vocabulary: tens of megabytes that are not parsed for them."""
    text = storage.read_text(file)
    if found := _LIST.search(text):
        return json.JSONDecoder().raw_decode(text, found.end())[0]
    storage.parse_json(text, file)  # a file that is none of the kind is named
    return []


def _named_special(settings: Mapping[str, Any]) -> set[str]:
    """Texts of the tokens that settings call special: "…_token" entries, and lists of further ones."""

    def texts(value: Any) -> set[str]:
        if isinstance(value, str):
            return {value}
        if isinstance(value, Mapping):
            return texts(value["content"]) if "content" in value else set().union(*map(texts, value.values()))
        return set().union(*map(texts, value)) if isinstance(value, list) else set()

    named = {key: value for key, value in settings.items() if key.endswith(("_token", "special_tokens"))}
    return texts(list(named.values()))
