"""Reads LoRA adapters of Hugging Face's peft: adapter_config.json and adapter_model.safetensors.

After "base_model.model.", names are those of the adapted model (peft 0.21, utils/save_and_load.py):

| name | effect |
|---|---|
| X.lora_A.weight [R,in], X.lora_B.weight [out,R] | X.weight += scale · B·A; of a convolution, A is [R,in,p,p] |
| X.lora_embedding_A [R,V], X.lora_embedding_B [D,R] | X.weight += scale · (B·A)ᵀ |
| X.base_layer.weight, X.modules_to_save.weight, X.weight | X.weight is replaced |

scale is lora_alpha / r, or lora_alpha / √r with use_rslora; rank_pattern and alpha_pattern override both for some X.
In memory and in unmerged files, each part is followed by the adapter's name ("default"). `fan_in_fan_out` is for
GPT-2's layers; peft resets it for Gemma's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from gemma_tpu.checkpoint import flax_lora, hf, hf_names, lazy, storage
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checks import brief, one_line

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LORA = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.(?!bias)\w+)??(?:\.weight)?")
_WRAPPER = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")
# LoRA variants whose delta is not scale · B·A, or does not apply to a weight.
_VARIANTS = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("monteclora_config", "velora_config", "layer_replication", "target_parameters", "trainable_token_indices"),
)
# Initializations that also change the base model, so that the adapter does not fit the stored base.
_BASE_CHANGING_INITS = ("pissa", "corda", "olora", "loftq", "lora_ga", "mica")
_WAY_OUT = "merge it with peft (merge_and_unload, save_pretrained), and load what that writes"


class Changes(NamedTuple):
    """Weights that replace the base's, and deltas to add, by core (`hf_names`)."""

    replaced: Mapping[str, LazyArray]
    deltas: Mapping[str, LazyArray]


def is_adapter(names: set[str]) -> bool:
    """Whether a directory with these entries is a peft adapter."""
    return flax_lora.CONFIG in names and any(name.startswith("adapter_model.") for name in names)


def refuse_alone(path: str) -> NoReturn:
    """Raises `CheckpointError` naming the base model of the adapter at `path`."""
    base = storage.read_json(storage.join(path, flax_lora.CONFIG)).get("base_model_name_or_path")
    wanted = base or "the model it was trained on"
    raise CheckpointError(
        f"{path}: is a LoRA adapter, without the model: load {wanted} with adapter={path!r} (--adapter {path})"
    )


def read(path: str) -> Changes:
    """Reads the adapter directory `path`. Raises `CheckpointError` naming what is unsupported."""
    file = storage.join(path, flax_lora.CONFIG)
    config = storage.read_json(file)
    _refuse_variants(config, file)
    weights = storage.join(path, WEIGHTS)
    if not storage.is_file(weights):
        raise CheckpointError(f"{path}: has no {WEIGHTS}: save the adapter with safe_serialization=True")
    pairs: dict[str, dict[str, LazyArray]] = {}
    replaced: dict[str, LazyArray] = {}
    deltas: dict[str, LazyArray] = {}

    def add(to: dict[str, LazyArray], name: str, array: LazyArray) -> None:
        if (core := hf_names.core(name)) in to:
            raise CheckpointError(f"{weights}: has {core} twice, the second time as {name}")
        to[core] = array

    for name, array in hf.read_file(weights).items():
        stripped = name.removeprefix(_PREFIX)
        if match := _LORA.fullmatch(stripped):
            part = (match[2] or "") + match[3]
            if part in pairs.setdefault(match[1], {}):
                raise CheckpointError(f"{weights}: has several adapters for {match[1]}: save one of them alone")
            pairs[match[1]][part] = array
        elif ".lora_" in stripped:
            raise CheckpointError(f"{weights}: {name} is of a kind of LoRA that is not read here: {_WAY_OUT}")
        else:
            add(replaced, _WRAPPER.sub("", stripped), array)
    for module, pair in pairs.items():
        add(deltas, f"{module}.weight", _delta(module, pair, config, weights))
    if not replaced and not deltas:
        raise CheckpointError(f"{weights}: holds no parameters")
    return Changes(replaced, deltas)


def _refuse_variants(config: Mapping[str, Any], file: str) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{file}: peft_type is {one_line(kind)[:80]}; only LORA is read here: {_WAY_OUT}")
    for key in _VARIANTS:
        if config.get(key):
            raise CheckpointError(f"{file}: {key} is not read here: {_WAY_OUT}")
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_BASE_CHANGING_INITS):
        raise CheckpointError(f"{file}: init_lora_weights {brief(init)} changes the base model as well: {_WAY_OUT}")


def _delta(module: str, pair: Mapping[str, LazyArray], config: Mapping[str, Any], file: str) -> LazyArray:
    embedding = pair.keys() == {"embedding_A", "embedding_B"}
    if not embedding and pair.keys() != {"A", "B"}:
        raise CheckpointError(f"{file}: {module} has {', '.join(sorted(pair))} and lacks the counterpart")
    a, b = pair["embedding_A" if embedding else "A"], pair["embedding_B" if embedding else "B"]
    rank = _match_pattern(config, "rank_pattern", module, config.get("r"))
    if not len(a.shape) >= 2 <= len(b.shape) or not 0 < a.shape[0] == b.shape[1] == rank:
        raise CheckpointError(
            f"{file}: {module} has A {list(a.shape)} and B {list(b.shape)}, but rank {brief(rank)} by "
            f"{flax_lora.CONFIG}"
        )
    alpha = _match_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    alpha = flax_lora.check_alpha(alpha, f"{file}: lora_alpha of {module}")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    if embedding:
        return lazy.product(a.transpose(1, 0), b.transpose(1, 0), scale)
    for _ in range(len(b.shape) - 2):  # a convolution's B is [out,R,1,1]
        b = b.take(2, 0)
    return lazy.product(b, a, scale)


def _match_pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, like peft's `get_pattern_key`."""
    patterns = config.get(key) or {}
    try:
        for pattern, value in patterns.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
    except (AttributeError, OverflowError, re.error) as error:
        raise CheckpointError(f"{key} in {flax_lora.CONFIG} is {brief(patterns)}, not an object of patterns") from error
    return default
