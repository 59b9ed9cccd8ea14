"""Reads generation_config.json, the sampling defaults of a checkpoint, as arguments of `SamplingParams`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_tpu.checkpoint import storage
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checks import brief

_FILE = "generation_config.json"
# Defaults of transformers (5.23, configuration_utils.py) for settings that a file with do_sample leaves out.
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
_OPTION_NAMES = {"max_new_tokens": "max_new_tokens", "stop_strings": "stop"}
_ID_OPTION_NAMES = {"eos_token_id": "stop_tokens", "suppress_tokens": "forbidden_tokens"}
# Settings without influence on which tokens are drawn. The context limits prompt and answer instead of max_length.
_IRRELEVANT = {
    *("bos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "do_sample", "transformers_version"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
    *("renormalize_logits", "remove_invalid_values", "low_memory", "prefill_chunk_size"),
    *("early_stopping", "length_penalty"),  # for beam search, which num_beams reports
}


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """`options`: arguments of `gemma_tpu.SamplingParams` that `path` sets. `ignored`: its unsupported settings."""

    path: str | None
    options: Mapping[str, Any]
    ignored: Mapping[str, Any]


def read_generation_config(directories: Sequence[str], config: Mapping[str, Any], config_path: str) -> GenerationConfig:
    """The generation_config.json of the first of `directories` that has one.

    As in transformers, decoding is greedy unless `do_sample` is true, and a checkpoint without the file uses the
    `eos_token_id` of its config.json: `config`, at `config_path`.

    Raises `CheckpointError` for a file that cannot be read.
    """
    if path := storage.find(directories, _FILE):
        return _parse(storage.read_json(path), path)
    eos = config.get("eos_token_id") or (config.get("text_config") or {}).get("eos_token_id")
    return GenerationConfig(None, {} if eos is None else {"stop_tokens": _ids(eos, "eos_token_id", config_path)}, {})


def _parse(raw: Mapping[str, Any], path: str) -> GenerationConfig:
    settings = {key: value for key, value in raw.items() if value is not None}
    options = {key: settings[key] for key in _SAMPLING if key in settings}
    if settings.get("do_sample"):
        options = _SAMPLING | options
    else:
        options["temperature"] = 0.0
    options |= {option: settings[key] for key, option in _OPTION_NAMES.items() if key in settings}
    options |= {option: _ids(settings[key], key, path) for key, option in _ID_OPTION_NAMES.items() if key in settings}
    ignored = {
        key: value
        for key, value in settings.items()
        if not key.startswith(("_", "output_", "return_", "num_assistant", "assistant_"))
        and key not in (*_SAMPLING, *_OPTION_NAMES, *_ID_OPTION_NAMES, *_IRRELEVANT)
        and not _is_neutral(value)
    }
    return GenerationConfig(path, options, ignored)


def _is_neutral(value: Any) -> bool:
    """Whether a setting has no effect, as transformers' penalties, counts and lists at 0, at 1 or empty."""
    return value is not True and value in (False, 0, 1, [], {}, "")


def _ids(value: Any, key: str, path: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise CheckpointError(f"{path}: {key} is {brief(value)}, neither a token id nor a list of them")
    return tuple(dict.fromkeys(ids))
