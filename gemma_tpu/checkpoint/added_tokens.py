"""Tokens that Hugging Face's tokenizer files add to the vocabulary or rename, as fine-tunes do."""

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
    """The added tokens of the first of `directories` that has any, sorted by id.

    transformers stores them in tokenizer.json, tokenizer_config.json and (older versions) added_tokens.json. On
    conflict, earlier files in this list win, as in transformers.

    Raises `CheckpointError` for a file that cannot be read.
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
                    entries = storage.read_json(files[name]).items()
                    listed = [_token(token, text, text in special) for text, token in entries]
                elif name == _CONFIG:
                    entries = (settings.get("added_tokens_decoder") or {}).items()
                    listed = [_token(int(token), entry["content"], entry.get("special")) for token, entry in entries]
                else:
                    entries = _parse_tokenizer_json(files[name])
                    listed = [_token(entry["id"], entry["content"], entry.get("special")) for entry in entries]
                found |= {token.id: token for token in listed}
            except CheckpointError:
                raise
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise CheckpointError(f"{files[name]}: its added tokens cannot be read: {error!r}") from error
        if found:
            return tuple(found[token] for token in sorted(found))
    return ()


def rows_needed(tokens: Sequence[AddedToken]) -> int:
    """Embedding table rows that these tokens require. The image soft token is a placeholder without a row."""
    return 1 + max((token.id for token in tokens if token.text != IMAGE_SOFT_TOKEN), default=-1)


def extend_vocabulary(config: GemmaConfig, directories: Sequence[str]) -> GemmaConfig:
    """Counts Hugging Face's extra rows of a multimodal embedding table as vocabulary if added tokens use them.

    The first extra row belongs to the image soft token; a fine-tune's own tokens follow, the rest is padding.
    """
    extended = config.vocab_size + EXTRA_ROWS
    if config.vision and config.vocab_size < rows_needed(read_added_tokens(directories)) <= extended:
        return dataclasses.replace(config, vocab_size=extended)
    return config


def _token(token: Any, text: Any, special: Any) -> AddedToken:
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise ValueError(f"{brief(token)} is no token id")
    if not isinstance(text, str) or not text:
        raise ValueError(f"{brief(text)} is no text of a token")
    return AddedToken(token, text, bool(special))


def _parse_tokenizer_json(file: str) -> list[Any]:
    """Parses "added_tokens" alone, since the vocabulary after it is tens of megabytes."""
    text = storage.read_text(file)
    if found := _LIST.search(text):
        return json.JSONDecoder().raw_decode(text, found.end())[0]
    storage.parse_json(text, file)  # raises if the file is not JSON
    return []


def _named_special(settings: Mapping[str, Any]) -> set[str]:
    """Texts of the tokens under "*_token" and "*special_tokens" keys."""

    def texts(value: Any) -> set[str]:
        if isinstance(value, str):
            return {value}
        if isinstance(value, Mapping):
            return texts(value["content"]) if "content" in value else set().union(*map(texts, value.values()))
        return set().union(*map(texts, value)) if isinstance(value, list) else set()

    named = {key: value for key, value in settings.items() if key.endswith(("_token", "special_tokens"))}
    return texts(list(named.values()))
