"""LoRA adapters of Flax programs, with two leaves in the tree for each adapted weight.

| written by | names, in a tree with or without the weights | delta |
|---|---|---|
| gemma, Einsum (gm/nn/_lora.py) | X/_LoRAEinsum_0/lora/{a,b} for X/w, X/_LoRAEinsum_{w}/lora/{a,b} for X/{w} | a·b |
| gemma, Dense (peft/_lora.py) | X/lora/{a,b} for X/kernel | a·b |
| qwix, as tunix uses it (_src/providers/lora.py) | X_lora_{a,b} for X | a·b · alpha / rank |

`a` has the weight's contracted axes, then the rank; `b` has the rank, then the output axes. qwix stores no alpha.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gemma_tpu.checkpoint import lazy, storage
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checks import brief

CONFIG = "adapter_config.json"
_EINSUM = re.compile(r"(.+)/_LoRAEinsum_(\w+)/lora/([ab])")
_DENSE = re.compile(r"(.+)/lora/([ab])")
_QWIX = re.compile(r"(.+)_lora_([ab])")
# The contracted axis of a weight where it is not axis 0.
_CONTRACTED_AXIS = {"q_einsum/w": 1, "kv_einsum/w": 2, "qkv_einsum/w": 2, "mlp/gating_einsum": 2}


def adapted_weight(name: str) -> tuple[str, str] | None:
    """The weight that the leaf `name` adapts, and the leaf's part, "a" or "b"; None for other leaves."""
    if match := _EINSUM.fullmatch(name):
        return f"{match[1]}/{'w' if match[2].isdigit() else match[2]}", match[3]
    if match := _DENSE.fullmatch(name):
        return f"{match[1]}/kernel", match[2]
    if match := _QWIX.fullmatch(name):
        return match[1], match[2]
    return None


def stored_alpha(leaf_names: Iterable[str], directories: Iterable[str]) -> float | None:
    """`lora_alpha` from the first adapter_config.json in `directories`, if there is one and a leaf needs it."""
    needed = any(_QWIX.fullmatch(name) for name in leaf_names)
    if not needed or (file := storage.find(directories, CONFIG)) is None:
        return None
    return check_alpha(storage.read_json(file).get("lora_alpha"), f"{storage.parent(file)}: lora_alpha")


def check_alpha(alpha: object, label: str) -> float:
    """Raises `CheckpointError`, beginning with `label`, if `alpha` is not a finite number."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 2**53:
        raise CheckpointError(f"{label} is {brief(alpha)} in {CONFIG}, not a number")
    return float(alpha)


def split(
    arrays: Mapping[str, LazyArray], alpha: float | None, path: str
) -> tuple[dict[str, LazyArray], dict[str, LazyArray]]:
    """Separates a tree into weights and LoRA deltas, both by weight name."""
    weights: dict[str, LazyArray] = {}
    pairs: dict[str, dict[str, str]] = {}
    for name, array in arrays.items():
        if (found := adapted_weight(name)) is None:
            weights[name] = array
        else:
            weight, part = found
            pairs.setdefault(weight, {})[part] = name
    return weights, {name: _delta(name, pair, arrays, alpha, path) for name, pair in pairs.items()}


def _delta(
    name: str, pair: Mapping[str, str], arrays: Mapping[str, LazyArray], alpha: float | None, path: str
) -> LazyArray:
    if len(pair) != 2:
        raise CheckpointError(f"{path}: {next(iter(pair.values()))} has no counterpart")
    a, b = arrays[pair["a"]], arrays[pair["b"]]
    if a.shape[-1] != b.shape[0]:
        raise CheckpointError(f"{path}: {pair['a']} {list(a.shape)} and {pair['b']} {list(b.shape)} are not a pair")
    scale = 1.0
    if _QWIX.fullmatch(pair["a"]):
        if alpha is None:
            raise CheckpointError(
                f"{path}: {pair['a']} is scaled by an alpha that is not stored: pass lora_alpha= to from_params, or "
                f'put an {CONFIG} with {{"lora_alpha": …}} beside the files'
            )
        scale = alpha / a.shape[-1]
    module = "/".join(name.split("/")[-2:])
    position, others = _CONTRACTED_AXIS.get(module, 0), list(range(1, len(a.shape) + len(b.shape) - 2))
    return lazy.product(a, b, scale).transpose(*others[:position], 0, *others[position:])


def merge(arrays: Mapping[str, LazyArray], deltas: Mapping[str, LazyArray], path: str) -> dict[str, LazyArray]:
    """Adds `deltas` to `arrays`. Raises `CheckpointError` for a delta without a weight of its name and shape."""
    problems = [
        f"{name} {list(delta.shape)}"
        for name, delta in deltas.items()
        if name not in arrays or arrays[name].shape != delta.shape
    ]
    if problems:
        raise CheckpointError(f"{path}: adapts what this model does not have: {', '.join(sorted(problems)[:6])}")
    return {name: lazy.add(array, deltas[name]) if name in deltas else array for name, array in arrays.items()}
