"""The loss and one step of training, on the package's own model. Letters: see gemma_tpu.config."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gemma_tpu.config import GemmaConfig
from gemma_tpu.model import text_model, vision_model
from gemma_tpu.ops.masks import attention_mask

Params = dict[str, jax.Array]
Batch = dict[str, jax.Array]

_WEIGHT_DECAY = 0.05
_ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.97))


class State(NamedTuple):
    params: Params
    adam: Any


def start(params: Params) -> State:
    """Fresh moments for given float32 parameters."""
    return State(params, _ADAM.init(params))


def _stretch(side: Float[Array, "I"], store: int, size: int) -> Float[Array, "I size store"]:
    """Bilinear enlargement of the first `side` of `store` pixels to `size`, as in gemma_tpu.image.to_pixels."""
    centre = jnp.clip((jnp.arange(size) + 0.5) * side[:, None] / size - 0.5, 0, side[:, None] - 1)
    return jnp.maximum(0, 1 - jnp.abs(centre[..., None] - jnp.arange(store)))


@functools.partial(jax.jit, static_argnums=2)
def to_pixels(images: Int[Array, "I S S 3"], sizes: Int[Array, "I 2"], size: int) -> Float[Array, "I size size 3"]:
    """What the vision tower sees of stored images: bf16 in [-1, 1]."""
    sizes = sizes.astype(jnp.float32)
    rows, columns = (_stretch(sizes[:, axis], images.shape[1], size) for axis in (0, 1))
    pixels = jnp.einsum("iph,ihwc->ipwc", rows, images.astype(jnp.float32))
    pixels = jnp.einsum("iqw,ipwc->ipqc", columns, pixels)
    return (pixels / 127.5 - 1).astype(jnp.bfloat16)


def _attend_groups(config: GemmaConfig, batch: Batch, implementation: str):
    """Attention within a segment and its group's prefix (see data.py); windows and images as the model has them."""
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
        flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
        attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation=implementation)
        return attend(flat, key, value, mask=mask[:, None]).reshape(query.shape)

    return attend_layer


def logits(
    config: GemmaConfig, params: Params, batch: Batch, pixels: jax.Array, implementation: str, dtype: Any
) -> Float[Array, "B T V"]:
    """float32 logits of packed rows."""
    params = {name: value.astype(dtype) for name, value in params.items()}
    model = text_model(config, params)
    soft = vision_model(config, params)(pixels)
    x = model.embed(batch["tokens"].astype(jnp.int32), soft, batch["soft"])
    x = model(x, batch["positions"].astype(jnp.int32), _attend_groups(config, batch, implementation))
    return model.embedder.decode(x)


def _loss(params: Params, config: GemmaConfig, batch: Batch, pixels: jax.Array, implementation: str, dtype: Any):
    scores = logits(config, params, batch, pixels, implementation, dtype)
    target, weight = batch["target"].astype(jnp.int32), batch["weight"].astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(target, 0))
    loss = jnp.sum(loss * weight) / jnp.sum(weight)
    hits = jnp.sum((jnp.argmax(scores, -1) == target) & (target >= 0)) / jnp.sum(target >= 0)
    return loss, {"loss": loss, "accuracy": hits}


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7), donate_argnums=1)
def step(
    config: GemmaConfig,
    state: State,
    batch: Batch,
    pixels: jax.Array,
    rate: jax.Array,
    implementation: str = "xla",
    dtype: Any = jnp.bfloat16,
    frozen: tuple[str, ...] = (),
) -> tuple[State, dict[str, jax.Array]]:
    """AdamW at learning rate `rate`: float32 weights, products in `dtype`. Names that begin with `frozen` stay."""
    (_, seen), gradients = jax.value_and_grad(_loss, has_aux=True)(
        state.params, config, batch, pixels, implementation, dtype
    )
    updates, adam = _ADAM.update(gradients, state.adam)
    params = {
        name: value
        if name.startswith(frozen)
        else value - rate * (updates[name] + (_WEIGHT_DECAY * value if value.ndim > 1 else 0))
        for name, value in state.params.items()
    }
    return State(params, adam), seen | {"gradient": optax.global_norm(gradients)}
