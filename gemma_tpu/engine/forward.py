"""The plain path, without a cache: teacher-forced logits, training, and what the cached path must equal."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gemma_tpu.config import SOFT_TOKEN, GemmaConfig
from gemma_tpu.model import Params, text_model, vision_model
from gemma_tpu.model.transformer import AttendLayer, Capture
from gemma_tpu.ops.masks import Queries, attend, attention_mask

AnyArray = jax.Array | np.ndarray  # where a caller may hold either
# Is shown a layer's queries, keys and mask, layer by layer.
Watch = Callable[[Queries, Float[Array, "B K S H"], Bool[Array, "B T S"]], None]
_Call = TypeVar("_Call", bound=Callable[..., Any])


def in_32_bits(call: _Call) -> _Call:
    """`call` as if JAX_ENABLE_X64 were off: counts and sums made by jax.numpy are otherwise int64 and float64."""
    return jax.enable_x64(False)(call)


def number_soft_tokens(tokens: np.ndarray) -> np.ndarray:
    """int[B, T] → int32[B, T]: soft tokens numbered from 0 over the whole batch, row by row; -1 elsewhere."""
    soft = np.asarray(tokens) == SOFT_TOKEN
    return np.where(soft, np.cumsum(soft).reshape(soft.shape) - 1, -1).astype(np.int32)


def self_attention(
    config: GemmaConfig,
    positions: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    image: Int[Array, "B T"],
    watch: Watch | None = None,
) -> AttendLayer:
    """Every token attends within its own row alone. `image` is 0 for text, else one id per image."""
    token = jnp.arange(positions.shape[1])
    key_pos = jnp.where(token < lengths[:, None], positions, -1)
    masks = {
        window: attention_mask(positions, key_pos, query_image=image, key_image=image, window=window)
        for window in {layer.window for layer in config.layers}
    }

    def attend_layer(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        key, value, mask = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2), masks[config.layers[layer].window]
        if watch:
            watch(query, key, mask)
        return attend(query, key, value, mask)

    return attend_layer


def image_ids(soft_index: Int[Array, "B T"], num_soft_tokens: int) -> Int[Array, "B T"]:
    """0 for text, i + 1 for soft tokens of image i."""
    return jnp.where(soft_index >= 0, soft_index // num_soft_tokens + 1, 0)


def hidden_states(
    config: GemmaConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    soft_tokens: Float[Array, "I soft D"] | None = None,
    soft_index: Int[Array, "B T"] | None = None,
    start: Int[Array, "B"] | Int[Array, ""] | int = 0,
    capture: Capture | None = None,
    watch: Watch | None = None,
) -> Float[Array, "B T D"]:
    """Final hidden states. Differentiable and traceable; `start` is the position of each row's first token."""
    model = text_model(config, params)
    B, T = tokens.shape
    positions = jnp.broadcast_to(jnp.reshape(jnp.asarray(start), (-1, 1)) + jnp.arange(T), (B, T))
    if soft_tokens is None or soft_index is None:
        soft_tokens, image = None, jnp.zeros((B, T), jnp.int32)
    else:
        image = image_ids(soft_index, soft_tokens.shape[1])
    x = model.embed(tokens, soft_tokens, soft_index)
    return model(x, positions, self_attention(config, positions, lengths, image, watch), capture=capture)


def _forward(config: GemmaConfig, params: Params, *inputs: Any, capture: Capture | None = None) -> jax.Array:
    x = hidden_states(config, params, *inputs, capture=capture)
    logits = text_model(config, params).embedder.decode(x)
    if capture:
        capture("logits", logits)
    return logits


_jit_forward = jax.jit(_forward, static_argnums=0)


@in_32_bits
def forward(
    config: GemmaConfig,
    params: Params,
    tokens: Int[AnyArray, "B T"],
    lengths: Int[AnyArray, "B"] | None = None,
    *,
    soft_tokens: Float[AnyArray, "I soft D"] | None = None,
    start: Int[AnyArray, "B"] | int = 0,
    capture: Capture | None = None,
) -> Float[Array, "B T V"]:
    """float32 logits of every position of expanded `tokens` (SOFT_TOKEN where a soft token stands).

    Rows shorter than T are padded on the right with anything; `lengths` says how much is real. `soft_tokens` of all
    images stand in the order of their runs, row by row. With `capture`, runs eagerly and shows every module's output.
    """
    tokens = np.asarray(tokens)
    soft_index = number_soft_tokens(tokens)
    wanted = int(soft_index.max()) + 1
    given = 0 if soft_tokens is None else soft_tokens.shape[0] * soft_tokens.shape[1]
    if wanted != given:
        raise ValueError(f"the tokens have {wanted} places for soft tokens, and {given} soft tokens were given")
    lengths = np.full(tokens.shape[0], tokens.shape[1]) if lengths is None else np.asarray(lengths)
    inputs = tokens, lengths, soft_tokens, soft_index, start
    if capture is None:  # numpy arrays as they are: only those belong to every process of a mesh
        return _jit_forward(config, params, *inputs)
    return _forward(config, params, *jax.tree.map(jnp.asarray, inputs), capture=capture)


def _encode(config: GemmaConfig, params: Params, pixels: jax.Array, capture: Capture | None = None) -> jax.Array:
    return vision_model(config, params)(pixels, capture)


_jit_encode = jax.jit(_encode, static_argnums=0)


@in_32_bits
def encode_images(
    config: GemmaConfig, params: Params, pixels: Float[AnyArray, "I side side 3"], *, capture: Capture | None = None
) -> Float[Array, "I soft D"]:
    """Soft tokens of images given as pixels in [-1, 1], in the dtype of the weights."""
    run = _jit_encode if capture is None else functools.partial(_encode, capture=capture)
    return run(config, params, jnp.asarray(pixels))
