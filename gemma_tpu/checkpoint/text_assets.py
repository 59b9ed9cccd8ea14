"""Tokenizer, special ids, chat template and generation defaults, from the files beside a checkpoint's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_tpu.checkpoint import storage
from gemma_tpu.checkpoint.added_tokens import read_added_tokens, rows_needed
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.generation_config import GenerationConfig, read_generation_config
from gemma_tpu.checkpoint.open import Checkpoint
from gemma_tpu.checks import brief
from gemma_tpu.config import GemmaConfig
from gemma_tpu.text import GEMMA3, AddedToken, Format, Tokenizer, choose_format
from gemma_tpu.text.recognition import writes_gemma3

# Files with a chat template, the Jinja text of a prompt format, in the order of transformers 5.23
# (tokenization_utils_base.py, processing_utils.py).
_TEMPLATE = "chat_template.jinja"
_WITH_TEMPLATE = ("chat_template.json", "tokenizer_config.json")
# config.json's names of special ids, by role (`gemma_tpu.text.special`).
_CONFIG_IDS = {
    "bos_token_id": "bos",
    "eos_token_id": "eos",
    "pad_token_id": "pad",
    "boi_token_index": "start_of_image",
    "boi_token_id": "start_of_image",
    "eoi_token_index": "end_of_image",
    "eoi_token_id": "end_of_image",
}


@dataclasses.dataclass(frozen=True)
class TextAssets:
    """The text files of a checkpoint.

    `special_ids`: ids by role, from the config.json at `config_path`. `chat_template`: its text and file. `format`:
    the prompt format.
    """

    path: str
    config: GemmaConfig
    tokenizer_path: str | None
    added_tokens: tuple[AddedToken, ...]
    config_path: str | None
    special_ids: Mapping[str, int]
    generation_config: GenerationConfig
    chat_template: tuple[str, str] | None
    format: Format

    def open_tokenizer(self, given: Tokenizer | str | Path | bytes | None = None) -> Tokenizer | None:
        """Opens `given`, or else the tokenizer beside the weights; None if there is neither.

        Raises ValueError, naming the file, if it cannot be read or does not fit the weights.
        """
        rows, name = self.config.vocab_size, None
        if out_of_range := [token for token in self.added_tokens if rows_needed([token]) > rows]:
            raise CheckpointError(
                f"{self.path}: the files beside the weights, or an adapter, add the token {out_of_range[-1].text!r} "
                f"with id {out_of_range[-1].id}, but the embedding table has {rows} rows: not a pair"
            )
        if given is None:
            if (name := self.tokenizer_path) is None:
                return None
            given = storage.read_file(name)
        if isinstance(given, Tokenizer):
            tokenizer = given
        else:
            try:
                tokenizer = Tokenizer(given, name=name, added=self.added_tokens, config_ids=self.special_ids)
            except ValueError as error:
                raise CheckpointError(str(error)) from error
        if (pieces := tokenizer.vocab_size) > rows:
            raise CheckpointError(f"{tokenizer.name}: the tokenizer has {pieces} pieces, the model {rows}: not a pair")
        return tokenizer

    def sampling_defaults(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """This checkpoint's defaults, as arguments of `gemma_tpu.SamplingParams`.

        Adds <eos> and the end of a turn to the checkpoint's stop tokens, since prompts are written in turns.
        """
        options = dict(self.generation_config.options)
        rows = range(self.config.vocab_size)
        for name in ("stop_tokens", "forbidden_tokens"):
            if name in options:
                options[name] = [token for token in options[name] if token in rows]
        if tokenizer is not None and "stop_tokens" in options:
            options["stop_tokens"] = sorted({*options["stop_tokens"], tokenizer.eos_id, tokenizer.end_of_turn})
        return options

    def notes(self, tokenizer: Tokenizer | None) -> list[str]:
        """A sentence for the user about each setting that is ignored or does not fit the weights."""
        notes = []
        source = self.generation_config.path or self.config_path
        if ignored := self.generation_config.ignored:
            listed = ", ".join(f"{key} {brief(value)}" for key, value in sorted(ignored.items()))
            notes.append(f"{source}: not followed: {listed}")
        if tokenizer is None:
            return notes
        notes += [f"{tokenizer.name}: {warning}" for warning in tokenizer.warnings]
        for token in self.generation_config.options.get("stop_tokens", ()):
            eos = f"{source}: eos_token_id {token}"
            if not tokenizer.has_piece(token):
                notes.append(f"{eos} has no piece in {tokenizer.name}: it ends no answer")
            elif token not in tokenizer.special_ids:
                notes.append(f"{eos} is the piece {tokenizer.piece(token)!r}: it ends an answer")
        if without := tokenizer.ids_without_piece(self.config.vocab_size):
            rows = f"{len(without)} of the {self.config.vocab_size} rows of the embedding table"
            notes.append(f"{tokenizer.name}: {rows} have no piece: the model never writes them")
        images = self.config.vision is not None
        if (
            self.chat_template is not None
            and self.format is GEMMA3
            and not writes_gemma3(self.chat_template[0], tokenizer, images=images)
        ):
            notes.append(
                f"{self.chat_template[1]}: the chat template is not followed: it is not Gemma 3's format, in which "
                "prompts are written; raw prompts are taken as they are"
            )
        return notes


def read_text_assets(checkpoint: Checkpoint) -> TextAssets:
    """Reads all but the tokenizer itself. Raises `CheckpointError` for a file that cannot be read."""
    config_path = storage.find(checkpoint.directories, "config.json")
    config = storage.read_json(config_path) if config_path else {}
    template = read_chat_template(checkpoint.directories)
    return TextAssets(
        checkpoint.path,
        checkpoint.config,
        checkpoint.tokenizer_path,
        read_added_tokens(checkpoint.directories),
        config_path,
        special_ids(config),
        read_generation_config(checkpoint.directories, config, config_path or ""),
        template,
        choose_format(template and template[0], config),
    )


def read_chat_template(directories: Sequence[str]) -> tuple[str, str] | None:
    """The chat template and its file, from the first of `directories` that has one, else None.

    Raises `CheckpointError` for a file that cannot be read.
    """
    for directory in directories:
        if storage.is_file(file := storage.join(directory, _TEMPLATE)):
            return storage.read_text(file), file
        for name in _WITH_TEMPLATE:
            if storage.is_file(file := storage.join(directory, name)) and (template := _template_in(file)):
                return template, file
    return None


def _template_in(file: str) -> str | None:
    template: Any = storage.read_json(file).get("chat_template")
    try:
        if isinstance(template, list):  # named templates
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: its chat_template cannot be read: {error}") from error
    return template if isinstance(template, str) else None


def special_ids(config: Mapping[str, Any]) -> dict[str, int]:
    """Special ids by role, from a config.json."""
    found: dict[str, int] = {}
    for part in (config.get("text_config") or {}, config):
        for key, role in _CONFIG_IDS.items():
            value = part.get(key)
            value = value[0] if isinstance(value, list) and value else value  # of several ends, <eos> is the first
            if isinstance(value, int) and not isinstance(value, bool):
                found[role] = value
    return found
