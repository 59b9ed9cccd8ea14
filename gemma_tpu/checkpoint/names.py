"""Google's and this package's parameter names and layouts, and conversions between them as views.

Every stored layout is read to a dict by canonical name (`parameters`); this package's parameters, Hugging Face's files
and Orbax trees are created from it. What differs between this package and the canonical arrays besides the name:

| this package | canonical (Google) |
|---|---|
| attention.qkv [K,G+2,H,D] | attn/q_einsum/w [N,D,H], attn/kv_einsum/w [2,K,D,H] |
| same, if K = N | attn/qkv_einsum/w [3,N,D,H] |
| attention.out [K,G,H,D] | attn/attn_vec_einsum/w [N,H,D] |
| mlp.down [D,F] | mlp/linear [F,D] |
| vision.positions [P,E] | pos_embedding [1,P,E] |
| vision: attention.qkv [3,n,h,E], attention.qkv_bias [3,n,h] | {query,key,value}/kernel [E,n,h], …/bias [n,h] |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gemma_tpu.checkpoint import lazy
from gemma_tpu.checkpoint.errors import CheckpointError
from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.checkpoint.parameters import SIGLIP, parameters
from gemma_tpu.config import GemmaConfig

Arrays = dict[str, LazyArray]
Shapes = dict[str, tuple[int, ...]]


def is_multimodal(name: str) -> bool:
    """Whether a canonical name belongs to the vision tower or the projection of its output."""
    return name.startswith((f"{SIGLIP}/", "embedder/mm_input_projection/", "embedder/mm_soft_embedding_norm/"))


def canonical_shapes(config: GemmaConfig) -> Shapes:
    """Shapes of all parameters by canonical name."""
    return {row.canonical: row.shape for row in parameters(config)}


# Orbax layouts.


def find_model_root(names: Iterable[str]) -> str | None:
    """The prefix (empty, or ending in "/") of a model's parameters among array names; None if there is no model.

    In a trainer's state, optimizer moments and averages repeat the parameter names; they are skipped.
    """
    roots = set()
    for name in names:
        if match := re.fullmatch(r"((?:.+/)?)(?:embedder/input_embedding|token_embedder/embedding)", name):
            roots.add(match[1].removesuffix("transformer/"))
    # Prefers "params/" to, for example, "ema_params/", then the shallowest.
    candidates = [root for root in roots if not is_optimizer(root)]
    candidates.sort(key=lambda root: ("params" not in root.split("/") and bool(root), root.count("/"), root))
    return candidates[0] if candidates else None


def is_optimizer(name: str) -> bool:
    """Whether an array belongs to an optimizer's state or a parameter average."""
    return re.search(r"opt|(^|/)(mu|nu|ema|avg)(/|$)", name) is not None


def orbax_kind(names: Iterable[str], root: str) -> str:
    below = [name.removeprefix(root) for name in names if name.startswith(root)]
    if root:
        return "orbax-trainer"
    if any(name.startswith("transformer/stacked_layers/") for name in below):
        return "orbax-stacked"
    return "orbax-flat" if any(name.startswith("transformer/") for name in below) else "orbax-nested"


def canonical_from_orbax(arrays: Mapping[str, LazyArray]) -> Arrays:
    """Canonical arrays from any Orbax layout; `arrays` are named by their keys below the root, joined by "/"."""
    types = [int(match[1]) for name in arrays if (match := re.search(r"stacked_layers/attention_type_(\d+)/", name))]
    canonical: Arrays = {}
    for stored, array in arrays.items():
        name = stored.removeprefix("transformer/").replace("SigLiPFromPatches_0/", "vision_encoder/", 1)
        # Only flat and stacked trees have "w" below the mlp's parameters.
        name = re.sub(r"(/mlp/(?:gating_einsum|linear))/w$", r"\1", name)
        if match := re.fullmatch(r"stacked_layers/attention_type_(\d+)/(.+)", name):
            # Slice s of type t is layer s * pattern + t.
            for s in range(array.shape[0]):
                layer = s * (max(types) + 1) + int(match[1])
                canonical[f"layer_{layer}/{match[2]}"] = array.take(0, s)
        else:
            canonical[name] = array
    return canonical


def orbax_tree(canonical: Mapping[str, LazyArray], *, flat: bool) -> dict[str, Any]:
    """The pytree of an Orbax checkpoint: Google's released flat layout, or the nested one of a Flax model."""
    tree: dict[str, Any] = {}
    for name, array in canonical.items():
        if not flat:
            *path, leaf = name.split("/")
        else:
            if re.search(r"/mlp/(gating_einsum|linear)$", name):
                name += "/w"
            name = re.sub("^vision_encoder/", "SigLiPFromPatches_0/", name)
            if not name.startswith("SigLiPFromPatches_0/"):
                name = f"transformer/{name}"
            *path, leaf = name.rsplit("/", 1)
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = array
    return tree


# This package's parameters.


def params_from_canonical(canonical: Mapping[str, LazyArray], config: GemmaConfig) -> Arrays:
    """This package's parameters, as views. Vision parameters are left out if `config.vision` is None."""
    n, k, g = config.num_heads, config.num_kv_heads, config.group_size
    params = {row.ours: canonical[row.canonical] for row in parameters(config) if row.ours}
    for i in range(config.num_layers):
        attn = f"layer_{i}/attn"
        if k == n:
            fused = canonical[f"{attn}/qkv_einsum/w"]
            q, kv = fused.take(0, 0), fused.crop(0, 1, 3)
        else:
            q, kv = canonical[f"{attn}/q_einsum/w"], canonical[f"{attn}/kv_einsum/w"]
        # [K,G,H,D] and [K,2,H,D]: sharding axis 0 keeps a kv head and its query heads on one device.
        q, kv = q.transpose(0, 2, 1).split(0, (k, g)), kv.transpose(1, 0, 3, 2)
        params[f"layers.{i}.attention.qkv"] = lazy.concat([q, kv], 1)
        params[f"layers.{i}.attention.out"] = canonical[f"{attn}/attn_vec_einsum/w"].split(0, (k, g))
        params[f"layers.{i}.mlp.down"] = canonical[f"layer_{i}/mlp/linear"].transpose(1, 0)
    if config.vision:
        params["vision.positions"] = canonical[f"{SIGLIP}/pos_embedding"].take(0, 0)
        for i in range(config.vision.depth):
            attn = f"{SIGLIP}/Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0"
            kernels = [canonical[f"{attn}/{part}/kernel"].transpose(1, 2, 0) for part in ("query", "key", "value")]
            params[f"vision.blocks.{i}.attention.qkv"] = lazy.stack(kernels)
            biases = [canonical[f"{attn}/{part}/bias"] for part in ("query", "key", "value")]
            params[f"vision.blocks.{i}.attention.qkv_bias"] = lazy.stack(biases)
    return params


def canonical_from_params(params: Mapping[str, LazyArray], config: GemmaConfig) -> Arrays:
    """The inverse of `params_from_canonical`. Raises `CheckpointError` for wrong names or shapes."""
    g = config.group_size
    check_shapes(param_shapes(config), shapes(params), "parameters")
    canonical = {row.canonical: params[row.ours] for row in parameters(config) if row.ours}
    for i in range(config.num_layers):
        attn = f"layer_{i}/attn"
        qkv = params[f"layers.{i}.attention.qkv"]
        q = qkv.crop(1, 0, g).merge(0).transpose(0, 2, 1)
        kv = qkv.crop(1, g, g + 2).transpose(1, 0, 3, 2)
        if config.num_kv_heads == config.num_heads:
            canonical[f"{attn}/qkv_einsum/w"] = lazy.concat([q.expand(0), kv], 0)
        else:
            canonical[f"{attn}/q_einsum/w"], canonical[f"{attn}/kv_einsum/w"] = q, kv
        canonical[f"{attn}/attn_vec_einsum/w"] = params[f"layers.{i}.attention.out"].merge(0)
        canonical[f"layer_{i}/mlp/linear"] = params[f"layers.{i}.mlp.down"].transpose(1, 0)
    if config.vision:
        canonical[f"{SIGLIP}/pos_embedding"] = params["vision.positions"].expand(0)
        for i in range(config.vision.depth):
            attn = f"{SIGLIP}/Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0"
            for index, part in enumerate(("query", "key", "value")):
                kernel = params[f"vision.blocks.{i}.attention.qkv"].take(0, index)
                canonical[f"{attn}/{part}/kernel"] = kernel.transpose(2, 0, 1)
                canonical[f"{attn}/{part}/bias"] = params[f"vision.blocks.{i}.attention.qkv_bias"].take(0, index)
    return {name: canonical[name] for name in canonical_shapes(config)}


def param_shapes(config: GemmaConfig) -> Shapes:
    """Shapes of all parameters by this package's names."""
    return shapes(params_from_canonical(zeros(config), config))


def zeros(config: GemmaConfig) -> Arrays:
    """Canonical arrays without content, of which views show the shapes of other layouts."""
    return {name: lazy.Zeros(shape, lazy.FLOAT32) for name, shape in canonical_shapes(config).items()}


def shapes(arrays: Mapping[str, LazyArray]) -> Shapes:
    return {name: array.shape for name, array in arrays.items()}


def check_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raises `CheckpointError` naming what is missing, unexpected and wrongly shaped in `source`."""
    problems = []
    if missing := sorted(set(expected) - set(found)):
        problems.append(f"missing {abbreviate(missing)}")
    if extra := sorted(set(found) - set(expected)):
        problems.append(f"unexpected {abbreviate(extra)}")
    wrong = [name for name in expected if name in found and tuple(found[name]) != tuple(expected[name])]
    if wrong:
        listed = [f"{name} is {list(found[name])}, not {list(expected[name])}" for name in wrong]
        problems.append(f"wrongly shaped: {abbreviate(listed)}")
    if problems:
        raise CheckpointError(f"{source}: {'; '.join(problems)}")


def abbreviate(items: list[str], limit: int = 12) -> str:
    """Joins the first `limit` items and the count of the others."""
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest
