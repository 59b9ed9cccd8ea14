"""Finds the parameters of a model in a pytree, on disk or in memory, and converts them to canonical arrays."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gemma_tpu.checkpoint import flax_lora, flax_quantized, lazy, maxtext_names, names, tunix_names
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checks import one_line
from gemma_tpu.config import CONFIGS, GemmaConfig

# An NNX state has a leaf "value" for each variable.
_VARIABLE = re.compile(r"/(raw_)?value$")
# The random state of an NNX module's dropout.
_RANDOM_STATE = re.compile(r"(^|/)rngs/")
_TOP = r"transformer|SigLiPFromPatches_0|layer_\d+|layers/\d+|embedder|vision_encoder"
_ADAPTER_ROOT = re.compile(rf"((?:.+?/)??)(?:{_TOP})/")


@dataclasses.dataclass(frozen=True)
class Tree:
    """The parameters of a model in a pytree.

    `kind`: that of `Checkpoint`, or "adapter". `stored`: name below the model's root → name in the tree.
    """

    kind: str
    stored: Mapping[str, str]


def find(stored: Iterable[str]) -> Tree | None:
    """Finds a model, or else an adapter, among array names joined by "/"; None if there is neither."""
    clean = {_VARIABLE.sub("", name): name for name in stored if not _RANDOM_STATE.search(name)}
    if (root := names.find_model_root(clean)) is not None:
        below = _below(root, clean)
        kind = "tunix" if tunix_names.is_tunix(below) else names.orbax_kind(clean, root)
        return Tree("maxtext" if maxtext_names.EMBEDDING in below else kind, below)
    found = {name: original for name, original in clean.items() if not names.is_optimizer(name)}
    roots = {match[1] for name in found if flax_lora.adapted_weight(name) and (match := _ADAPTER_ROOT.match(name))}
    return Tree("adapter", _below(min(roots, key=len), found)) if roots else None


def _below(root: str, stored: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(root): original for name, original in stored.items() if name.startswith(root)}


def canonical(tree: Tree, arrays: Mapping[str, LazyArray], path: str, alpha: float | None = None) -> names.Arrays:
    """Canonical arrays of a model, with quantised ones dequantised and adapters in the tree merged.

    `arrays`: by stored name. `alpha`: see `flax_lora`. The heads of tunix's vision tower stay merged
    (`tunix_names.split_heads`).
    """
    found = flax_quantized.dequantize({name: arrays[stored] for name, stored in tree.stored.items()}, path)
    weights, deltas = flax_lora.split(found, alpha, path)
    weights = flax_lora.merge(weights, deltas, path)
    by_kind = {"maxtext": maxtext_names.canonical, "tunix": tunix_names.canonical}
    return by_kind.get(tree.kind, names.canonical_from_orbax)(weights)


def deltas(
    tree: Tree, arrays: Mapping[str, LazyArray], config: GemmaConfig, path: str, alpha: float | None = None
) -> names.Arrays:
    """The deltas of an adapter, by canonical name."""
    others, found = flax_lora.split({name: arrays[stored] for name, stored in tree.stored.items()}, alpha, path)
    if others:
        raise CheckpointError(f"{path}: has weights beside those of an adapter: {', '.join(sorted(others)[:6])}")
    if tunix_names.is_tunix(found):
        canonical = tunix_names.canonical(tunix_names.add_zero_deltas(found))
        return tunix_names.split_heads(canonical, config.vision) if config.vision else canonical
    return names.canonical_from_orbax(found)


def in_memory(tree: Any, source: str) -> dict[str, LazyArray]:
    """The arrays of a pytree or of an NNX module's parameters, by their keys joined by "/"."""
    if isinstance(tree, nnx.Module):
        tree = nnx.state(tree, nnx.Param)
    arrays: dict[str, LazyArray] = {}
    try:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
    except Exception as error:  # unsortable keys, or a node type of another library
        raise CheckpointError(f"{source}: no pytree of arrays ({one_line(error)[:200]})") from error
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise CheckpointError(f"{source}: {name} is a ShapeDtypeStruct, which holds no values")
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape") or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue  # a step count, or a PRNG key
        arrays[name] = lazy.InMemory(leaf, name)
    return arrays


def describe_adapter(tree: Tree, arrays: Mapping[str, LazyArray]) -> str:
    """Says which model an adapter is for: the released sizes of its width with at least as many layers."""
    layers = 1 + max(
        (int(match[1]) for name in tree.stored if (match := re.match(r"layers?[/_](\d+)/", name))), default=-1
    )
    widths = {
        arrays[stored].shape[0]
        for name, stored in tree.stored.items()
        if re.search(r"(q_einsum|kv_einsum|qkv_einsum|gating_einsum|gate_proj|up_proj)\b.*a$", name)
    }
    fitting = [name for name, c in CONFIGS.items() if c.num_layers >= layers and {c.embed_dim} == widths]
    base = " or ".join(fitting) or f"a model of {layers} layers and width {', '.join(map(str, sorted(widths))) or '?'}"
    return f"is a LoRA adapter, without the model: load {base}, and name this as its adapter (adapter=, --adapter)"
