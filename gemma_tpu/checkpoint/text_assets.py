"""Tokenizer, special ids, chat template and generation defaults, from the files beside a checkpoint's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_tpu.checkpoint import family, storage
from gemma_tpu.checkpoint.added_tokens import read_added_tokens, rows_needed
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.gguf_text import EmbeddedText
from gemma_tpu.checkpoint.open import Checkpoint
from gemma_tpu.checks import brief
from gemma_tpu.config import GemmaConfig
from gemma_tpu.options import MAX_BAD_WORD_LENGTH, MAX_BAD_WORDS, MAX_STOP_TOKENS
from gemma_tpu.text import GEMMA3, AddedToken, Format, Tokenizer, choose_format
from gemma_tpu.text.recognition import writes_gemma3

# Files with a chat template, the Jinja text of a prompt format, in the order of transformers 5.23
# (tokenization_utils_base.py, processing_utils.py).
CHAT_TEMPLATE = "chat_template.jinja"
_WITH_TEMPLATE = ("chat_template.json", "tokenizer_config.json")
_GENERATION_CONFIG = "generation_config.json"
# Defaults of transformers (5.23, configuration_utils.py) for settings that a file with do_sample leaves out.
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
_OPTION_NAMES = {"max_new_tokens": "max_new_tokens", "stop_strings": "stop", "repetition_penalty": "repetition_penalty"}
_ID_OPTION_NAMES = {"eos_token_id": "stop_tokens", "suppress_tokens": "forbidden_tokens"}
# Settings without influence on which tokens are drawn. The context limits prompt and answer instead of max_length.
_IRRELEVANT = {
    *("bos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "do_sample", "transformers_version"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
    *("renormalize_logits", "remove_invalid_values", "low_memory", "prefill_chunk_size"),
    *("early_stopping", "length_penalty"),  # for beam search, which num_beams reports
}
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
class GenerationConfig:
    """`options`: arguments of `gemma_tpu.SamplingParams` that `path` sets. `ignored`: its unsupported settings."""

    path: str | None
    options: Mapping[str, Any]
    ignored: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TextAssets:
    """The text files of a checkpoint.

    `special_ids`: ids by role, from the config.json at `config_path`. `chat_template`: its text and file. `format`:
    the prompt format. `embedded`: the tokenizer of a GGUF file that no other lies beside.
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
    embedded: EmbeddedText | None = None

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
            if (name := self.tokenizer_path) is not None:
                given = storage.read_file(name)
            elif self.embedded is not None and (model := self.embedded.tokenizer_model) is not None:
                name, given = self.embedded.file, model
            else:
                return None
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
        if "bad_words" in options:
            options["bad_words"] = [word for word in options["bad_words"] if all(token in rows for token in word)]
        if tokenizer is not None and "stop_tokens" in options:
            options["stop_tokens"] = sorted({*options["stop_tokens"], tokenizer.eos_id, tokenizer.end_of_turn})
        if (count := len(options.get("stop_tokens", ()))) > MAX_STOP_TOKENS:
            raise CheckpointError(
                f"{self.generation_config.path or self.config_path}: eos_token_id gives {count} stop tokens, with the "
                f"tokenizer's, and an answer has at most {MAX_STOP_TOKENS}: shorten that list"
            )
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
    family.check_parts(config, config_path or "")
    template = read_chat_template(checkpoint.directories)
    generation_config = read_generation_config(checkpoint.directories, config, config_path or "")
    added_tokens = read_added_tokens(checkpoint.directories)
    if (embedded := checkpoint.embedded) is not None:
        if template is None and embedded.chat_template:
            template = embedded.chat_template, embedded.file
        if generation_config.path is None and embedded.generation_config:
            generation_config = _parse_generation_config(embedded.generation_config, embedded.file)
        if checkpoint.tokenizer_path is None:
            added_tokens = added_tokens or embedded.added_tokens
    return TextAssets(
        checkpoint.path,
        checkpoint.config,
        checkpoint.tokenizer_path,
        added_tokens,
        config_path,
        special_ids(config),
        generation_config,
        template,
        choose_format(template and template[0], config),
        embedded if checkpoint.tokenizer_path is None else None,
    )


def read_chat_template(directories: Sequence[str]) -> tuple[str, str] | None:
    """The chat template and its file, from the first of `directories` that has one, else None.

    Raises `CheckpointError` for a file that cannot be read.
    """
    for directory in directories:
        if storage.is_file(file := storage.join(directory, CHAT_TEMPLATE)):
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


def read_generation_config(directories: Sequence[str], config: Mapping[str, Any], config_path: str) -> GenerationConfig:
    """The generation_config.json of the first of `directories` that has one.

    As in transformers, decoding is greedy unless `do_sample` is true, and a checkpoint without the file uses the
    `eos_token_id` of its config.json: `config`, at `config_path`.

    Raises `CheckpointError` for a file that cannot be read.
    """
    if path := storage.find(directories, _GENERATION_CONFIG):
        return _parse_generation_config(storage.read_json(path), path)
    eos = config.get("eos_token_id") or (config.get("text_config") or {}).get("eos_token_id")
    return GenerationConfig(None, {} if eos is None else {"stop_tokens": _ids(eos, "eos_token_id", config_path)}, {})


def _parse_generation_config(raw: Mapping[str, Any], path: str) -> GenerationConfig:
    settings = {key: value for key, value in raw.items() if value is not None}
    options = {key: settings[key] for key in _SAMPLING if key in settings}
    if settings.get("do_sample"):
        options = _SAMPLING | options
    else:
        options["temperature"] = 0.0
    options |= {option: settings[key] for key, option in _OPTION_NAMES.items() if key in settings}
    options |= {option: _ids(settings[key], key, path) for key, option in _ID_OPTION_NAMES.items() if key in settings}
    if _can_be_kept_out(words := settings.get("bad_words_ids", [])):
        options |= {"bad_words": [tuple(word) for word in settings.pop("bad_words_ids")]} if words else {}
    ignored = {
        key: value
        for key, value in settings.items()
        if not key.startswith(("_", "output_", "return_", "num_assistant", "assistant_"))
        and key not in (*_SAMPLING, *_OPTION_NAMES, *_ID_OPTION_NAMES, *_IRRELEVANT)
        and not _is_neutral(value)
    }
    return GenerationConfig(path, options, ignored)


def _can_be_kept_out(words: Any) -> bool:
    """Whether these are sequences of tokens, no more and no longer than an answer can be kept from."""
    if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
        return False
    ids = [token for word in words for token in word]
    fits = all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids)
    several = [word for word in words if len(word) > 1]
    return fits and len(several) <= MAX_BAD_WORDS and all(len(word) <= MAX_BAD_WORD_LENGTH for word in several)


def _is_neutral(value: Any) -> bool:
    """Whether a setting has no effect, as transformers' penalties, counts and lists at 0, at 1 or empty."""
    return value is not True and value in (False, 0, 1, [], {}, "")


def _ids(value: Any, key: str, path: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise CheckpointError(f"{path}: {key} is {brief(value)}, neither a token id nor a list of them")
    return tuple(dict.fromkeys(ids))


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
