"""Pytrees of arrays, on disk or in memory: where in one a model lies, whose names it has, and the canonical arrays."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gemma_tpu.checkpoint import flax_lora, lazy, maxtext_names, names, tunix_names
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checks import one_line
from gemma_tpu.config import CONFIGS, GemmaConfig

# An NNX state has a leaf below each variable.
_VARIABLE = re.compile(r"/(raw_)?value$")
# The state of an NNX module's dropout, which is no parameter.
_RANDOM_STATE = re.compile(r"(^|/)rngs/")
_TOP = r"transformer|SigLiPFromPatches_0|layer_\d+|layers/\d+|embedder|vision_encoder"
_ADAPTER_ROOT = re.compile(rf"((?:.+?/)??)(?:{_TOP})/")


@dataclasses.dataclass(frozen=True)
class Tree:
    """Where a model's parameters are in a pytree.

    `kind`: as of a `Checkpoint`, or "adapter". `stored`: a parameter's name below the root → its name in the tree.
    """

    kind: str
    stored: Mapping[str, str]


def find(stored: Iterable[str]) -> Tree | None:
    """The model, or else the adapter of one, among names joined by "/". `None` if there is neither."""
    clean = {_VARIABLE.sub("", name): name for name in stored if not _RANDOM_STATE.search(name)}
    if (root := names.find_root(clean)) is not None:
        below = {name.removeprefix(root): held for name, held in clean.items() if name.startswith(root)}
        return Tree(_kind(clean, root, below), below)
    found = {name: held for name, held in clean.items() if not names.is_optimizer(name)}
    roots = {match[1] for name in found if flax_lora.adapted(name) and (match := _ADAPTER_ROOT.match(name))}
    if not roots:
        return None
    root = min(roots, key=len)
    return Tree("adapter", {name.removeprefix(root): held for name, held in found.items() if name.startswith(root)})


def _kind(clean: Iterable[str], root: str, below: Iterable[str]) -> str:
    if maxtext_names.is_maxtext(below):
        return "maxtext"
    return "tunix" if tunix_names.is_tunix(below) else names.orbax_kind(clean, root)


def canonical(tree: Tree, arrays: Mapping[str, LazyArray], where: str, alpha: float | None = None) -> names.Arrays:
    """Canonical arrays of a model's tree; `arrays` by stored name. Adapters in the tree are merged.

    The heads of tunix's vision tower are still merged (`tunix_names.split_heads`). `alpha`: see `flax_lora`.
    """
    weights, deltas = flax_lora.split({name: arrays[held] for name, held in tree.stored.items()}, alpha, where)
    weights = flax_lora.merge(weights, deltas, where)
    by_kind = {"maxtext": maxtext_names.canonical, "tunix": tunix_names.canonical}
    return by_kind.get(tree.kind, names.canonical_from_orbax)(weights)


def deltas(
    tree: Tree, arrays: Mapping[str, LazyArray], config: GemmaConfig, where: str, alpha: float | None = None
) -> names.Arrays:
    """What the tree of an adapter adds, by canonical name."""
    others, found = flax_lora.split({name: arrays[held] for name, held in tree.stored.items()}, alpha, where)
    if others:
        raise CheckpointError(f"{where}: has weights beside those of an adapter: {', '.join(sorted(others)[:6])}")
    if tunix_names.is_tunix(found):
        canonical = tunix_names.canonical(tunix_names.complete(found))
        return tunix_names.split_heads(canonical, config.vision) if config.vision else canonical
    return names.canonical_from_orbax(found)


def in_memory(tree: Any, where: str) -> dict[str, LazyArray]:
    """The arrays of a pytree, or of an NNX module's parameters, by their keys joined by "/"."""
    if isinstance(tree, nnx.Module):
        tree = nnx.state(tree, nnx.Param)
    arrays: dict[str, LazyArray] = {}
    try:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
    except Exception as error:  # keys that cannot be sorted, a node of another library that fails
        raise CheckpointError(f"{where}: no pytree of arrays ({one_line(error)[:200]})") from error
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise CheckpointError(f"{where}: {name} is a ShapeDtypeStruct, which holds no values")
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape") or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue  # a count of steps, or random state in JAX's own type
        arrays[name] = lazy.Memory(leaf, name)
    return arrays


def describe_adapter(tree: Tree, arrays: Mapping[str, LazyArray]) -> str:
    """What the tree of an adapter is for: the released sizes with as many layers, of that width."""
    layers = 1 + max(
        (int(match[1]) for name in tree.stored if (match := re.match(r"layers?[/_](\d+)/", name))), default=-1
    )
    widths = {
        arrays[held].shape[0]
        for name, held in tree.stored.items()
        if re.search(r"(q_einsum|kv_einsum|qkv_einsum|gating_einsum|gate_proj|up_proj)\b.*a$", name)
    }
    fitting = [name for name, c in CONFIGS.items() if c.num_layers >= layers and {c.embed_dim} == widths]
    base = " or ".join(fitting) or f"a model of {layers} layers and width {', '.join(map(str, sorted(widths))) or '?'}"
    return f"is a LoRA adapter, without the model: load {base}, and name this as its adapter (adapter=, --adapter)"
