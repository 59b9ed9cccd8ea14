"""Parameters by name: their shapes, fresh ones, and models around given ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from gemma_tpu.config import GemmaConfig, VisionConfig
from gemma_tpu.model.linear import Weight
from gemma_tpu.model.transformer import Transformer
from gemma_tpu.model.vision import VisionTower

_VISION, _DRAFT = "vision.", "draft."

Params = Mapping[str, Weight]  # "layers.0.attention.qkv" → array or quantised weight, as in `param_shapes`


def text_model(config: GemmaConfig, params: Params) -> Transformer:
    """The decoder around `params`. Cheap enough to call while tracing, which is how every program gets its model."""
    return _merge(_text_skeleton(dataclasses.replace(config, vision=None)), params)


def vision_model(config: GemmaConfig, params: Params) -> VisionTower:
    """The vision tower around `params`. Raises ValueError if the model is text-only."""
    if config.vision is None:
        raise ValueError("this model has no vision tower: it takes text only")
    return _merge(_vision_skeleton(config.vision, config.embed_dim), params)


def param_shapes(config: GemmaConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Name → shape of every parameter, e.g. "layers.0.attention.qkv" → [K, G+2, H, D]."""
    skeletons = [_text_skeleton(dataclasses.replace(config, vision=None))]
    if config.vision:
        skeletons.append(_vision_skeleton(config.vision, config.embed_dim))
    return {name: leaf for _, entries in skeletons for name, (_, leaf) in entries.items()}


def as_draft(params: Mapping[str, Any]) -> dict[str, Any]:
    """A draft model's, under the names that they have beside those of the model for which it guesses."""
    return {_DRAFT + name: value for name, value in params.items()}


def draft_params(params: Params) -> Params:
    """Of those of a model and its draft model, the latter's, under the names that they have alone."""
    return {name.removeprefix(_DRAFT): value for name, value in params.items() if name.startswith(_DRAFT)}


def init_params(config: GemmaConfig, seed: int = 0) -> dict[str, jax.Array]:
    """Freshly initialised float32 parameters, for training."""
    rngs = nnx.Rngs(seed)
    params = _named(Transformer(dataclasses.replace(config, vision=None), rngs=rngs))
    if config.vision:
        params |= _named(VisionTower(config.vision, config.embed_dim, rngs=rngs), _VISION)
    return {name: leaf for name, (_, leaf) in params.items()}


def _named(module: nnx.Module, prefix: str = "") -> dict[str, tuple]:
    state = nnx.to_flat_state(nnx.state(module))
    return {prefix + ".".join(map(str, path)): (path, leaf.get_value()) for path, leaf in state}


_Skeleton = tuple[nnx.GraphDef, dict[str, tuple]]  # static part; name → (path in the module, shape)


@functools.lru_cache
def _text_skeleton(config: GemmaConfig) -> _Skeleton:
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return nnx.graphdef(model), _named(model)


@functools.lru_cache
def _vision_skeleton(config: VisionConfig, embed_dim: int) -> _Skeleton:
    model = nnx.eval_shape(lambda: VisionTower(config, embed_dim, rngs=nnx.Rngs(0)))
    return nnx.graphdef(model), _named(model, _VISION)


def _merge(skeleton: _Skeleton, params: Params) -> Any:
    graphdef, entries = skeleton
    if missing := entries.keys() - params.keys():
        raise ValueError(f"parameters missing: {sorted(missing)}")
    return nnx.merge(graphdef, nnx.State.from_flat_path({path: params[name] for name, (path, _) in entries.items()}))
