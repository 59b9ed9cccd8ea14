"""Low-rank adapters as Flax programs keep them: two leaves in the tree for each weight that they adapt.

| written by | names, in a tree with or without the weights | adds |
|---|---|---|
| gemma, Einsum (gm/nn/_lora.py) | X/_LoRAEinsum_0/lora/{a,b} for X/w, X/_LoRAEinsum_{w}/lora/{a,b} for X/{w} | a·b |
| gemma, Dense (peft/_lora.py) | X/lora/{a,b} for X/kernel | a·b |
| qwix, as tunix uses it (_src/providers/lora.py) | X_lora_{a,b} for X | a·b · alpha / rank |

`a` has the weight's contracted axes, then the rank; `b` has the rank, then the others. qwix stores no alpha.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from gemma_tpu.checkpoint import storage
from gemma_tpu.checkpoint.arithmetic import Product, Sum, move_first_axis
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checks import brief

CONFIG = "adapter_config.json"
_EINSUM = re.compile(r"(.+)/_LoRAEinsum_(\w+)/lora/([ab])")
_DENSE = re.compile(r"(.+)/lora/([ab])")
_QWIX = re.compile(r"(.+)_lora_([ab])")
# Where the contracted axis of a weight is not the first.
_CONTRACTED = {"q_einsum/w": 1, "kv_einsum/w": 2, "qkv_einsum/w": 2, "mlp/gating_einsum": 2}


def adapted(name: str) -> tuple[str, str] | None:
    """The weight that the leaf `name` adapts, and whether it is "a" or "b" of the pair; `None` for other leaves."""
    if match := _EINSUM.fullmatch(name):
        return f"{match[1]}/{'w' if match[2].isdigit() else match[2]}", match[3]
    if match := _DENSE.fullmatch(name):
        return f"{match[1]}/kernel", match[2]
    if match := _QWIX.fullmatch(name):
        return match[1], match[2]
    return None


def needs_alpha(found: Iterable[str]) -> bool:
    return any(_QWIX.fullmatch(name) for name in found)


def stored_alpha(directories: Iterable[str]) -> float | None:
    """`lora_alpha` of an adapter_config.json in the first of `directories` that has one."""
    for directory in directories:
        if storage.is_file(file := storage.join(directory, CONFIG)):
            return _number(read_config(file).get("lora_alpha"), file)
    return None


def _number(value: object, file: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise CheckpointError(f"{file}: lora_alpha is {brief(value)}, not a number")
    return float(value)


def read_config(file: str) -> dict:
    """An adapter_config.json."""
    try:
        raw = json.loads(storage.read_file(file))
        if not isinstance(raw, dict):
            raise ValueError("no JSON object")
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: is no config of an adapter: {error}") from error
    return raw


def split(
    arrays: Mapping[str, LazyArray], alpha: float | None, where: str
) -> tuple[dict[str, LazyArray], dict[str, LazyArray]]:
    """Parts a tree into its weights, and what adapters add to weights, by the names of those."""
    weights: dict[str, LazyArray] = {}
    pairs: dict[str, dict[str, str]] = {}
    for name, array in arrays.items():
        if (found := adapted(name)) is None:
            weights[name] = array
        else:
            pairs.setdefault(found[0], {})[found[1]] = name
    return weights, {name: _delta(name, pair, arrays, alpha, where) for name, pair in pairs.items()}


def _delta(
    name: str, pair: Mapping[str, str], arrays: Mapping[str, LazyArray], alpha: float | None, where: str
) -> LazyArray:
    if len(pair) != 2:
        raise CheckpointError(f"{where}: {next(iter(pair.values()))} has no counterpart")
    a, b = arrays[pair["a"]], arrays[pair["b"]]
    if a.shape[-1] != b.shape[0]:
        raise CheckpointError(f"{where}: {pair['a']} {list(a.shape)} and {pair['b']} {list(b.shape)} are not a pair")
    scale = 1.0
    if _QWIX.fullmatch(pair["a"]):
        if alpha is None:
            raise CheckpointError(
                f"{where}: {pair['a']} is scaled by an alpha that is not stored: say it as lora_alpha= of from_params, "
                f'or for files as {{"lora_alpha": …}} in an {CONFIG} beside them'
            )
        scale = alpha / a.shape[-1]
    module = "/".join(name.split("/")[-2:])
    return move_first_axis(Product(a, b, scale), _CONTRACTED.get(module, 0))


def merge(arrays: Mapping[str, LazyArray], deltas: Mapping[str, LazyArray], where: str) -> dict[str, LazyArray]:
    """`arrays` with `deltas` added. `CheckpointError` for what adapts no weight, or one of another shape."""
    problems = [
        f"{name} {list(delta.shape)}"
        for name, delta in deltas.items()
        if name not in arrays or arrays[name].shape != delta.shape
    ]
    if problems:
        raise CheckpointError(f"{where}: adapts what this model does not have: {', '.join(sorted(problems)[:6])}")
    return {name: Sum(array, deltas[name]) if name in deltas else array for name, array in arrays.items()}
