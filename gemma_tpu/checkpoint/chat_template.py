"""Reads a checkpoint's chat template, the Jinja text in which Hugging Face tokenizers store the prompt format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemma_tpu.checkpoint import storage
from gemma_tpu.checkpoint.errors import CheckpointError

# The order of transformers 5.23 (tokenization_utils_base.py, processing_utils.py).
_JINJA = "chat_template.jinja"
_JSON = ("chat_template.json", "tokenizer_config.json")


def read_chat_template(directories: Sequence[str]) -> tuple[str, str] | None:
    """The template and its file, from the first of `directories` that has one, else None.

    Raises `CheckpointError` for a file that cannot be read.
    """
    for directory in directories:
        if storage.is_file(file := storage.join(directory, _JINJA)):
            return storage.read_text(file), file
        for name in _JSON:
            if storage.is_file(file := storage.join(directory, name)) and (template := _from_json(file)):
                return template, file
    return None


def _from_json(file: str) -> str | None:
    template: Any = storage.read_json(file).get("chat_template")
    try:
        if isinstance(template, list):  # named templates
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: its chat_template cannot be read: {error}") from error
    return template if isinstance(template, str) else None
