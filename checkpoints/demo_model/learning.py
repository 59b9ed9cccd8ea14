"""The loss and one step of training, on the package's own model. Letters: see gemma_tpu.config."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from checkpoints.demo_model.render import LABEL_SIZES
from gemma_tpu.config import GemmaConfig
from gemma_tpu.model import init_params, text_model, vision_model
from gemma_tpu.ops.masks import attend, attention_mask

Params = dict[str, jax.Array]
Batch = dict[str, jax.Array]

AUX = "aux.head"  # predicts what a soft token shows; trained along, never shipped
_BACKGROUND_WEIGHT = 0.15  # most soft tokens show background
_WEIGHT_DECAY = 0.05
_ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.97))


class State(NamedTuple):
    params: Params
    adam: Any


def start(config: GemmaConfig, seed: int, given: dict[str, np.ndarray] | None = None) -> State:
    """Fresh parameters, or `given` ones with fresh moments."""
    params = init_params(config, seed)
    params[AUX] = jnp.zeros((config.embed_dim, sum(LABEL_SIZES)))
    if given is not None:
        if given.keys() != params.keys():
            raise ValueError(
                f"the checkpoint to resume from has other parameters: {sorted(given.keys() ^ params.keys())}"
            )
        params = {name: jnp.asarray(given[name]) for name in params}
    return State(params, _ADAM.init(params))


def _stretch(side: Int[Array, "I"], store: int, size: int) -> Float[Array, "I size store"]:
    """Bilinear enlargement of the first `side` of `store` pixels to `size`, as in gemma_tpu.image.to_pixels."""
    centre = (jnp.arange(size) + 0.5) * side[:, None] / size - 0.5
    centre = jnp.clip(centre, 0, side[:, None] - 1)
    return jnp.maximum(0, 1 - jnp.abs(centre[..., None] - jnp.arange(store)))


@functools.partial(jax.jit, static_argnums=2)
def to_pixels(images: Int[Array, "I S S 3"], sizes: Int[Array, "I 2"], size: int) -> Float[Array, "I size size 3"]:
    """What the vision tower sees of stored images: bf16 in [-1, 1]."""
    sizes = sizes.astype(jnp.float32)
    rows, columns = (_stretch(sizes[:, axis], images.shape[1], size) for axis in (0, 1))
    pixels = jnp.einsum("iph,ihwc->ipwc", rows, images.astype(jnp.float32))
    pixels = jnp.einsum("iqw,ipwc->ipqc", columns, pixels)
    return (pixels / 127.5 - 1).astype(jnp.bfloat16)


def attend_groups(config: GemmaConfig, batch: Batch, implementation: str):
    """Attention within a segment and its group's prefix (see rows.py); windows and images as the model has them."""
    group, segment, positions = batch["group"], batch["segment"], batch["positions"].astype(jnp.int32)
    seen = (segment[:, :, None] == segment[:, None]) | (segment[:, None] == 0)
    seen &= (group[:, :, None] == group[:, None]) & (group[:, None] > 0)
    seen |= jnp.eye(group.shape[1], dtype=bool)  # padding sees itself: an empty mask is NaN to some kernels
    image = jnp.where(batch["soft"] >= 0, batch["soft"] // 256 + 1, 0)
    masks = {
        window: seen & attention_mask(positions, positions, query_image=image, key_image=image, window=window)
        for window in {layer.window for layer in config.layers}
    }

    def attend_layer(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        mask = masks[config.layers[layer].window]
        if implementation == "xla":
            return attend(query, jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2), mask)
        B, T, K, G, H = query.shape
        flat = query.reshape(B, T, K * G, H)
        encoded = jax.nn.dot_product_attention(flat, key, value, mask=mask[:, None], scale=1.0, implementation="cudnn")
        return encoded.reshape(query.shape)

    return attend_layer


def _logits(
    config: GemmaConfig, params: Params, batch: Batch, pixels: jax.Array, implementation: str, dtype: Any
) -> tuple[Float[Array, "B T V"], Float[Array, "I soft D"]]:
    params = {name: value.astype(dtype) for name, value in params.items()}
    model = text_model(config, params)
    soft = vision_model(config, params)(pixels)
    x = model.embed(batch["tokens"].astype(jnp.int32), soft, batch["soft"])
    x = model(x, batch["positions"].astype(jnp.int32), attend_groups(config, batch, implementation))
    return model.embedder.decode(x), soft


def _aux_loss(head: jax.Array, soft: Float[Array, "I soft D"], labels: Int[Array, "I 3 soft"]) -> jax.Array:
    """Cross-entropy of shape, colour and character of every soft token."""
    logits = jnp.einsum("isd,dc->isc", soft.astype(jnp.float32), head)
    total = jnp.float32(0)
    start = 0
    for plane, size in enumerate(LABEL_SIZES):
        label = labels[:, plane].astype(jnp.int32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits[..., start : start + size], label)
        weight = jnp.where(label > 0, 1.0, _BACKGROUND_WEIGHT)
        total += jnp.sum(loss * weight) / jnp.sum(weight)
        start += size
    return total


def _loss(
    params: Params,
    config: GemmaConfig,
    batch: Batch,
    pixels: jax.Array,
    aux: jax.Array,
    implementation: str,
    dtype: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    logits, soft = _logits(config, params, batch, pixels, implementation, dtype)
    target, weight = batch["target"].astype(jnp.int32), batch["weight"].astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(target, 0))
    loss = jnp.sum(loss * weight) / jnp.sum(weight)
    labelled = _aux_loss(params[AUX], soft, batch["labels"])
    right = jnp.sum((jnp.argmax(logits, -1) == target) & (target >= 0)) / jnp.sum(target >= 0)
    return loss + aux * labelled, {"loss": loss, "aux": labelled, "accuracy": right}


@functools.partial(jax.jit, static_argnums=(0, 6, 7), donate_argnums=1)
def step(
    config: GemmaConfig,
    state: State,
    batch: Batch,
    pixels: jax.Array,
    rate: jax.Array,
    aux: jax.Array,
    implementation: str = "xla",
    dtype: Any = jnp.bfloat16,
) -> tuple[State, dict[str, jax.Array]]:
    """AdamW at learning rate `rate`; `aux` weighs the soft tokens' labels. float32 weights, products in `dtype`."""
    (_, seen), gradients = jax.value_and_grad(_loss, has_aux=True)(
        state.params, config, batch, pixels, aux, implementation, dtype
    )
    updates, adam = _ADAM.update(gradients, state.adam)
    params = {
        name: value - rate * (updates[name] + (_WEIGHT_DECAY * value if value.ndim > 1 else 0))
        for name, value in state.params.items()
    }
    return State(params, adam), seen | {"gradient": optax.global_norm(gradients)}


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def hits(
    config: GemmaConfig,
    params: Params,
    batch: Batch,
    pixels: jax.Array,
    implementation: str = "xla",
    dtype: Any = jnp.bfloat16,
) -> jax.Array:
    """bool[B, T]: whether the most likely token is the target. An answer whose tokens all are is what greedy decoding
    gives, since each was likeliest after the right ones before it."""
    logits, _ = _logits(config, params, batch, pixels, implementation, dtype)
    return jnp.argmax(logits, -1) == batch["target"]
