"""generation_config.json: how the makers of a checkpoint mean it to be sampled, as options of this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_tpu.checkpoint import storage
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checks import brief

_FILE = "generation_config.json"
# What transformers (5.23, configuration_utils.py) takes for a setting that a file with do_sample leaves out.
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
_OPTION_OF = {"max_new_tokens": "max_new_tokens", "stop_strings": "stop"}
_IDS_OF = {"eos_token_id": "stop_tokens", "suppress_tokens": "forbidden_tokens"}
# They say nothing about which tokens are drawn: other ids, bookkeeping, caches, what `generate` returns. The length
# limit of prompt and answer together is the context's.
_NO_MATTER = {
    *("bos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "do_sample", "transformers_version"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
    *("renormalize_logits", "remove_invalid_values", "low_memory", "prefill_chunk_size"),
    *("early_stopping", "length_penalty"),  # of beams, which are named if there are any
}


@dataclasses.dataclass(frozen=True)
class Generation:
    """`options`: what `path` sets of `gemma_tpu.SamplingParams`. `ignored`: what it sets without effect here."""

    path: str | None
    options: Mapping[str, Any]
    ignored: Mapping[str, Any]


def read_generation(directories: Sequence[str], config: Mapping[str, Any], config_path: str) -> Generation:
    """The generation_config.json of the nearest of `directories` that has one.

    As in transformers, sampling is greedy unless `do_sample` is true, and a checkpoint without the file ends an answer
    with the `eos_token_id` of its config.json: `config`, at `config_path`.

    `CheckpointError` for a file that cannot be read.
    """
    for directory in directories:
        if storage.is_file(path := storage.join(directory, _FILE)):
            return _parse(storage.read_json(path), path)
    ends = config.get("eos_token_id") or (config.get("text_config") or {}).get("eos_token_id")
    return Generation(None, {} if ends is None else {"stop_tokens": _ids(ends, "eos_token_id", config_path)}, {})


def _parse(raw: Mapping[str, Any], path: str) -> Generation:
    given = {key: value for key, value in raw.items() if value is not None}
    options = {key: given[key] for key in _SAMPLING if key in given}
    if given.get("do_sample"):
        options = _SAMPLING | options
    else:
        options["temperature"] = 0.0
    options |= {option: given[key] for key, option in _OPTION_OF.items() if key in given}
    options |= {option: _ids(given[key], key, path) for key, option in _IDS_OF.items() if key in given}
    ignored = {
        key: value
        for key, value in given.items()
        if not key.startswith(("_", "output_", "return_", "num_assistant", "assistant_"))
        and key not in (*_SAMPLING, *_OPTION_OF, *_IDS_OF, *_NO_MATTER)
        and not _off(value)
    }
    return Generation(path, options, ignored)


def _off(value: Any) -> bool:
    """Whether a setting asks for nothing: transformers' penalties, counts and lists do so at 0, at 1 or empty."""
    return value is not True and value in (False, 0, 1, [], {}, "")


def _ids(value: Any, key: str, path: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise CheckpointError(f"{path}: {key} is {brief(value)}, neither a token id nor a list of them")
    return tuple(dict.fromkeys(ids))
