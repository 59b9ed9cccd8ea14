"""Trains the demo model on shards: `python -m checkpoints.demo_model.train --data DIR --out CHECKPOINT --minutes 6`.

Goes on from a checkpoint, by default the one that ships. Shards that `data.py` adds meanwhile are read as they come.
The learning rate follows the clock, so that the run ends when `--minutes` (all of it: start, compilation, training,
saving) are over. What it writes is the released (flat) Orbax layout in bf16, with config.json and tokenizer.model.
Letters: see gemma_tpu.config.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import math
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from checkpoints.demo_model import CHECKPOINT
from checkpoints.demo_model.data import FIELDS, IMAGES, SOFT, STORE, TOKENIZER, read_shard
from gemma_tpu.checkpoint import load_params, open_checkpoint, save_params
from gemma_tpu.config import GemmaConfig
from gemma_tpu.model import text_model, vision_model
from gemma_tpu.ops.masks import attention_mask

Batch = dict[str, jax.Array]
State = tuple[dict[str, jax.Array], Any]  # float32 parameters, and what ADAM keeps

ADAM = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.scale_by_adam(b1=0.9, b2=0.97),
    optax.add_decayed_weights(0.05, mask=functools.partial(jax.tree.map, lambda value: value.ndim > 1)),
)
_FINAL_SECONDS = 15  # kept back for saving


def _stretch(side: Float[Array, "I"], store: int, size: int) -> Float[Array, "I size store"]:
    """Bilinear enlargement of the first `side` of `store` pixels to `size`, as in gemma_tpu.image.to_pixels."""
    centre = jnp.clip((jnp.arange(size) + 0.5) * side[:, None] / size - 0.5, 0, side[:, None] - 1)
    return jnp.maximum(0, 1 - jnp.abs(centre[..., None] - jnp.arange(store)))


@functools.partial(jax.jit, static_argnums=2)
def to_pixels(images: Int[Array, "I S S 3"], sizes: Int[Array, "I 2"], size: int) -> Float[Array, "I size size 3"]:
    """What the vision tower sees of stored images: bf16 in [-1, 1]."""
    rows, columns = (_stretch(sizes[:, axis].astype(jnp.float32), images.shape[1], size) for axis in (0, 1))
    pixels = jnp.einsum("iph,ihwc->ipwc", rows, images.astype(jnp.float32))
    pixels = jnp.einsum("iqw,ipwc->ipqc", columns, pixels)
    return (pixels / 127.5 - 1).astype(jnp.bfloat16)


def _attend_groups(config: GemmaConfig, batch: Batch):
    """Attention within a segment and its group's prefix (see data.py); windows and images as the model has them."""
    group, segment, positions = batch["group"], batch["segment"], batch["positions"].astype(jnp.int32)
    seen = (segment[:, :, None] == segment[:, None]) | (segment[:, None] == 0)
    seen &= (group[:, :, None] == group[:, None]) & (group[:, None] > 0)
    seen |= jnp.eye(group.shape[1], dtype=bool)  # padding sees itself: an empty mask is NaN to some kernels
    image = jnp.where(batch["soft"] >= 0, batch["soft"] // SOFT + 1, 0)
    masks = {
        window: seen & attention_mask(positions, positions, query_image=image, key_image=image, window=window)
        for window in {layer.window for layer in config.layers}
    }
    implementation = "cudnn" if jax.default_backend() == "gpu" else "xla"
    attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation=implementation)

    def attend_layer(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
        return attend(flat, key, value, mask=masks[config.layers[layer].window][:, None]).reshape(query.shape)

    return attend_layer


def logits(config: GemmaConfig, params: Batch, batch: Batch, pixels: jax.Array) -> Float[Array, "B T V"]:
    """float32 logits of packed rows, computed in bf16, on a CPU in float32."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    params = {name: value.astype(dtype) for name, value in params.items()}
    model = text_model(config, params)
    soft = vision_model(config, params)(pixels)
    x = model.embed(batch["tokens"].astype(jnp.int32), soft, batch["soft"])
    x = model(x, batch["positions"].astype(jnp.int32), _attend_groups(config, batch))
    return model.embedder.decode(x)


def _loss(params: Batch, config: GemmaConfig, batch: Batch, pixels: jax.Array) -> tuple[jax.Array, Batch]:
    scores, target = logits(config, params, batch, pixels), batch["target"].astype(jnp.int32)
    weight = batch["weight"].astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(target, 0))
    loss = jnp.sum(loss * weight) / jnp.sum(weight)
    hits = jnp.sum((jnp.argmax(scores, -1) == target) & (target >= 0)) / jnp.sum(target >= 0)
    return loss, {"loss": loss, "accuracy": hits}


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=1)
def step(
    config: GemmaConfig, state: State, batch: Batch, pixels: jax.Array, rate: jax.Array, frozen: tuple[str, ...] = ()
) -> tuple[State, Batch]:
    """AdamW at learning rate `rate`. Names that begin with `frozen` stay."""
    params, adam = state
    (_, seen), gradients = jax.value_and_grad(_loss, has_aux=True)(params, config, batch, pixels)
    updates, adam = ADAM.update(gradients, adam, params)
    moved = {n: v if n.startswith(frozen) else v - rate * updates[n] for n, v in params.items()}
    return (moved, adam), seen | {"gradient": optax.global_norm(gradients)}


class Shards:
    """Units of all shards in a folder as they appear; batches of them, those not yet shown first."""

    def __init__(self, folder: Path, emphasis: dict[str, float], seed: int) -> None:
        self._folder, self._emphasis, self._rng = folder, emphasis, np.random.default_rng(seed)
        self.units: list[dict[str, Any]] = []
        self._order, self._known = list[int](), set[Path]()

    def batch(self, count: int) -> dict[str, np.ndarray]:
        """`count` units as one batch: soft tokens are numbered over all its images. Waits for the first shards; then
        it reads at most one, so that a batch does not wait for many."""
        while True:
            for path in sorted(set(self._folder.glob("rows-*.pickle")) - self._known)[:1]:
                new = read_shard(path)
                self._known.add(path)
                self._order += (len(self.units) + self._rng.permutation(len(new))).tolist()
                self.units += new
            if len(self.units) >= count:
                break
            time.sleep(0.2)
        while len(self._order) < count:
            self._order += self._rng.permutation(len(self.units)).tolist()
        picked, self._order = [self.units[i] for i in self._order[:count]], self._order[count:]
        batch = {name: np.concatenate([unit[name] for unit in picked]) for name in FIELDS if name != "task"}
        first = np.repeat(np.arange(count), len(batch["soft"]) // count)[:, None] * IMAGES * SOFT
        batch["soft"] = np.where(batch["soft"] < 0, -1, batch["soft"] + first).astype(np.int32)
        weights = [np.array([self._emphasis.get(name, 1.0) for name in unit["tasks"]]) for unit in picked]
        batch["weight"] *= np.concatenate([w[unit["task"]] for w, unit in zip(weights, picked, strict=True)])
        batch["images"] = np.zeros((count * IMAGES, STORE, STORE, 3), np.uint8)
        batch["sizes"] = np.full((count * IMAGES, 2), STORE, np.int16)
        for i, unit in enumerate(picked):
            for at, image in enumerate(unit["images"], i * IMAGES):
                batch["images"][at, : image.shape[0], : image.shape[1]] = image
                batch["sizes"][at] = image.shape[:2]
        return batch


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, begun = parser.add_argument, time.monotonic()
    add("--data", type=Path, required=True, help="the --out folder of data.py")
    add("--out", type=Path, required=True, help="the checkpoint to write")
    add("--minutes", type=float, default=6.0, help="wall clock, everything included")
    add("--resume", type=Path, default=CHECKPOINT, help="the checkpoint to go on from")
    add("--rate", type=float, default=7e-4, help="highest learning rate")
    add("--units", type=int, default=8, help="units of 8 rows of 1,024 tokens in a batch")
    add("--freeze", action="append", default=[], metavar="PREFIX", help="parameters to leave as they are")
    add("--emphasis", action="append", default=[], metavar="TASK=WEIGHT", help='such as "image relation=3"')
    add("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    end = begun + 60 * options.minutes - _FINAL_SECONDS
    emphasis = {task: float(weight) for task, _, weight in (text.rpartition("=") for text in options.emphasis)}
    shards, source = Shards(options.data, emphasis, options.seed), open_checkpoint(options.resume)
    config, place = source.config, jax.sharding.SingleDeviceSharding(jax.devices()[0])
    size = config.vision.image_size if config.vision else 0
    params = load_params(source, config, dtype="float32", sharding=lambda *_: place, progress=False)
    state, steps, learned, shown = (params, ADAM.init(params)), 0, 0.0, 0.0
    with concurrent.futures.ThreadPoolExecutor(1) as ahead:  # makes the next batch during a step
        coming = ahead.submit(shards.batch, options.units)
        while (now := time.monotonic()) < end:
            batch = jax.device_put(coming.result())
            coming = ahead.submit(shards.batch, options.units)
            pixels = to_pixels(batch.pop("images"), batch.pop("sizes"), size)
            progress = (now - learned) / (end - learned) if steps else 0
            rate = options.rate * min(1.0, steps / 100) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * progress))
            state, seen = step(config, state, batch, pixels, np.float32(rate), tuple(options.freeze))
            if steps % 10 == 0:
                loss = float(seen["loss"])  # waits, so at most 10 steps are in flight and the clock means something
                learned = learned or time.monotonic()  # compiled
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss} after {steps} steps; lower --rate")
                if time.monotonic() - shown > 15:
                    shown, known = time.monotonic(), len(shards.units)
                    values = "  ".join(f"{name} {float(value):.3f}" for name, value in seen.items())
                    print(f"[{shown - begun:6.1f} s] step {steps}  {values}  {known} units", flush=True)
            steps += 1
    if options.out.exists():
        shutil.rmtree(options.out)
    save_params(jax.tree.map(np.asarray, state[0]), config, options.out, dtype="bfloat16", tokenizer=TOKENIZER)
    print(f"[{time.monotonic() - begun:6.1f} s] {steps} steps of {options.units} units; saved in {options.out}")


if __name__ == "__main__":
    main()
