"""Last touches on a CPU: `python -m checkpoints.demo_model.tune --resume RUN --out DIR --minutes 10`.

Trains the decoder alone, the vision tower as it is, on the mixture's `focus` (see train.py): what is out of scope, and
scenes with many questions. Small enough for a laptop, where `train.py` would take a day.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import queue
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from checkpoints.demo_model import learning, tokenizer
from checkpoints.demo_model.rows import Encoder, Packer
from checkpoints.demo_model.train import load_parts, save_parts
from gemma_tpu.config import DEMO
from gemma_tpu.model import vision_model

_ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.98))
_IMAGES = 4  # that a focused unit has


@jax.jit
def _encode(params: learning.Params, pixels: jax.Array) -> jax.Array:
    return vision_model(_CONFIG, params)(pixels.astype(jnp.float32))


def _loss(params: learning.Params, batch: learning.Batch, soft: jax.Array) -> jax.Array:
    model = learning.text_model(_CONFIG, params)
    x = model.embed(batch["tokens"].astype(jnp.int32), soft, batch["soft"])
    x = model(x, batch["positions"].astype(jnp.int32), learning.attend_groups(_CONFIG, batch, "xla"))
    target, weight = batch["target"].astype(jnp.int32), batch["weight"].astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(model.embedder.decode(x), jnp.maximum(target, 0))
    return jnp.sum(loss * weight) / jnp.sum(weight)


@jax.jit
def _step(params, adam, batch: learning.Batch, soft: jax.Array, rate: jax.Array):
    loss, gradients = jax.value_and_grad(_loss)(params, batch, soft)
    updates, adam = _ADAM.update(gradients, adam)
    return {name: value - rate * updates[name] for name, value in params.items()}, adam, loss


_CONFIG = dataclasses.replace(DEMO, vocab_size=tokenizer.VOCAB_SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", type=Path, required=True, help="the --out folder of train.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=3e-4, help="highest learning rate")
    parser.add_argument("--focus", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    begun = time.monotonic()
    everything = load_parts(options.resume)
    vision = {name: jnp.asarray(value) for name, value in everything.items() if name.startswith("vision.")}
    rest = {name: value for name, value in everything.items() if name not in vision}
    params = {name: jnp.asarray(value) for name, value in rest.items() if name != learning.AUX}
    adam = _ADAM.init(params)

    units: queue.Queue = queue.Queue(maxsize=4)
    packer = Packer(Encoder(tokenizer.MODEL), options.seed, focus=options.focus)

    def make() -> None:
        while True:
            units.put(vars(packer.unit()[0]))

    threading.Thread(target=make, daemon=True).start()
    steps = 0
    while (progress := (time.monotonic() - begun) / (60 * options.minutes)) < 1:
        unit = units.get()
        batch = {name: jnp.asarray(value) for name, value in unit.items() if name not in ("images", "sizes", "labels")}
        images, sizes = (jnp.asarray(unit[name][:_IMAGES]) for name in ("images", "sizes"))
        soft = _encode(vision, learning.to_pixels(images, sizes, _CONFIG.vision.image_size))
        rate = options.rate * min(1, (steps + 1) / 10) * max(0.05, 0.5 + 0.5 * math.cos(math.pi * progress))
        params, adam, loss = _step(params, adam, batch, soft, jnp.float32(rate))
        steps += 1
        if steps % 5 == 0:
            print(f"[{time.monotonic() - begun:5.0f} s] step {steps}  loss {float(loss):.4f}", flush=True)
    save_parts(options.out, everything | {name: np.asarray(value) for name, value in params.items()})


if __name__ == "__main__":
    main()
