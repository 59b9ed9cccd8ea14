"""Trains the demo model on shards: `python -m checkpoints.demo_model.train --data DIR --out CHECKPOINT --minutes 6`.

Goes on from a checkpoint, by default the one that ships. Shards that `data.py` adds meanwhile are read as they come.
The learning rate follows the clock, so that the run ends when `--minutes` (all of it: start, compilation, training,
saving) are over. What it writes is the released (flat) Orbax layout in bf16, with config.json and tokenizer.model.
"""

from __future__ import annotations

import argparse
import math
import queue
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints.demo_model import CHECKPOINT, learning
from checkpoints.demo_model.data import FIELDS, IMAGES, SOFT, STORE, TOKENIZER, read_shard
from gemma_tpu.checkpoint import load_params, open_checkpoint, save_params

_FINAL_SECONDS = 15  # kept back for saving


class Shards(threading.Thread):
    """Units of all shards in a folder, read as they appear; batches of them, those not yet shown first."""

    def __init__(self, folder: Path, emphasis: dict[str, float], seed: int) -> None:
        super().__init__(daemon=True)
        self._folder, self._emphasis, self._rng = folder, emphasis, np.random.default_rng(seed)
        self.units: list[dict[str, Any]] = []
        self._order: list[int] = []
        self._failure: BaseException | None = None
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Reads no further."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        known: set[Path] = set()
        try:
            while not self._stopped.wait(0.2):
                for path in sorted(set(self._folder.glob("rows-*.pickle")) - known):
                    self.units += read_shard(path)
                    known.add(path)
        except BaseException as error:  # handed to the training loop by batch()
            self._failure = error

    def batch(self, count: int) -> dict[str, np.ndarray]:
        """`count` units as one batch: soft tokens are numbered over all its images. Waits for the first shards."""
        while len(self.units) < count:
            if self._failure:
                raise RuntimeError(f"{self._folder}: a shard cannot be read") from self._failure
            time.sleep(0.2)
        while len(self._order) < count:
            self._order += self._rng.permutation(len(self.units)).tolist()
        picked, self._order = [self.units[i] for i in self._order[:count]], self._order[count:]
        batch = {name: np.concatenate([unit[name] for unit in picked]) for name in FIELDS if name != "task"}
        first = np.repeat(np.arange(count), len(batch["soft"]) // count)[:, None] * IMAGES * SOFT
        batch["soft"] = np.where(batch["soft"] < 0, -1, batch["soft"] + first).astype(np.int32)
        if self._emphasis:
            weights = [[self._emphasis.get(str(name), 1.0) for name in unit["tasks"]] for unit in picked]
            rows = [np.asarray(w, np.float32)[unit["task"]] for w, unit in zip(weights, picked, strict=True)]
            batch["weight"] = batch["weight"] * np.concatenate(rows)
        batch["images"] = np.zeros((count * IMAGES, STORE, STORE, 3), np.uint8)
        batch["sizes"] = np.full((count * IMAGES, 2), STORE, np.int16)
        for i, unit in enumerate(picked):
            for at, image in enumerate(unit["images"], i * IMAGES):
                batch["images"][at, : image.shape[0], : image.shape[1]] = image
                batch["sizes"][at] = image.shape[:2]
        return batch


def _feed(shards: Shards, units: int, size: int, batches: queue.Queue) -> None:
    """Puts batches on the device ahead of time."""
    try:
        while True:
            batch = jax.device_put(shards.batch(units))
            pixels = learning.to_pixels(batch.pop("images"), batch["sizes"], size)
            batches.put((batch, pixels))
    except BaseException as error:  # handed to the training loop
        batches.put(error)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the --out folder of data.py")
    add("--out", type=Path, required=True, help="the checkpoint to write")
    add("--minutes", type=float, default=6.0, help="wall clock, everything included")
    add("--resume", type=Path, default=CHECKPOINT, help="the checkpoint to go on from")
    add("--rate", type=float, default=7e-4, help="highest learning rate")
    add("--units", type=int, default=8, help="units of 8 rows of 1,024 tokens in a batch")
    add("--attention", choices=("xla", "cudnn"), default="cudnn")
    add("--float32", action="store_true", help="no bf16 (for a CPU)")
    add("--freeze", action="append", default=[], metavar="PREFIX", help="parameters to leave as they are")
    add("--emphasis", action="append", default=[], metavar="TASK=WEIGHT", help='such as "image relation=3"')
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    begun, options = time.monotonic(), arguments(argv)
    end = begun + 60 * options.minutes - _FINAL_SECONDS
    emphasis = {task: float(weight) for task, _, weight in (text.rpartition("=") for text in options.emphasis)}
    shards, batches = Shards(options.data, emphasis, options.seed), queue.Queue(maxsize=3)
    start = open_checkpoint(options.resume)
    config, image_size = start.config, start.config.vision.image_size if start.config.vision else 0
    shards.start()
    threading.Thread(target=_feed, args=(shards, options.units, image_size, batches), daemon=True).start()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = learning.start(load_params(start, config, dtype="float32", sharding=lambda *_: place, progress=False))
    static = (options.attention, jnp.float32 if options.float32 else jnp.bfloat16, tuple(options.freeze) or ("-",))
    steps, learned, shown = 0, 0.0, 0.0
    while (now := time.monotonic()) < end:
        if isinstance(batch := batches.get(), BaseException):
            raise RuntimeError("making batches failed") from batch
        progress = (now - learned) / (end - learned) if steps else 0
        rate = options.rate * min(1.0, steps / 100) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * progress))
        state, seen = learning.step(config, state, *batch, np.float32(rate), *static)
        if steps % 10 == 0:
            loss = float(seen["loss"])  # waits, so at most 10 steps are in flight and the clock means something
            learned = learned or time.monotonic()  # compiled
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} after {steps} steps; lower --rate")
            if time.monotonic() - shown > 15:
                values = "  ".join(f"{name} {float(value):.3f}" for name, value in seen.items())
                shown, taken = time.monotonic(), time.monotonic() - begun
                print(
                    f"[{taken:6.1f} s] step {steps}  rate {rate:.1e}  {values}  {len(shards.units)} units", flush=True
                )
        steps += 1
    shards.stop()
    if options.out.exists():
        shutil.rmtree(options.out)
    params = {name: np.asarray(value) for name, value in state.params.items()}
    save_params(params, config, options.out, dtype="bfloat16", tokenizer=TOKENIZER)
    print(f"[{time.monotonic() - begun:6.1f} s] {steps} steps of {options.units} units; saved in {options.out}")


if __name__ == "__main__":
    main()
