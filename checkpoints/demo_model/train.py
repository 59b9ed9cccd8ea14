"""Trains the demo model on shards: `python -m checkpoints.demo_model.train --data DIR --out RUN --minutes 6`.

Goes on from a checkpoint (by default the one that ships) or from an earlier RUN. Shards that `data.py` adds meanwhile
are read as they come. The learning rate follows the clock, so that the run ends when `--minutes` (all of it: start,
compilation, training, saving) are over. RUN gets the float32 parameters in parts small enough to carry, and
`metrics.json`; `export.py` makes the checkpoint of them.
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints.demo_model import learning
from checkpoints.demo_model.data import FIELDS, IMAGES, SOFT, STORE, read_shard
from checkpoints.demo_model.export import CHECKPOINT, CONFIG, load_parts, save_parts

_FINAL_SECONDS = 10  # kept back for saving


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
            while not self._stopped.is_set():
                fresh = sorted(set(self._folder.glob("rows-*.npz")) - known)
                for path in fresh:
                    self.units += read_shard(path)
                    known.add(path)
                if not fresh:
                    self._stopped.wait(0.2)
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
        batch = {name: np.concatenate([unit[name] for unit in picked]) for name in FIELDS if name != "soft"}
        soft = [np.where(unit["soft"] < 0, -1, unit["soft"] + i * IMAGES * SOFT) for i, unit in enumerate(picked)]
        batch["soft"] = np.concatenate(soft).astype(np.int32)
        if self._emphasis:
            weights = [[self._emphasis.get(str(name), 1.0) for name in unit["tasks"]] for unit in picked]
            rows = [np.asarray(w, np.float32)[unit["task"]] for w, unit in zip(weights, picked, strict=True)]
            batch["weight"] = batch["weight"] * np.concatenate(rows)
        del batch["task"]
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
            batch = shards.batch(units)
            device = jax.device_put({name: value for name, value in batch.items() if name != "images"})
            batches.put((device, learning.to_pixels(jax.device_put(batch["images"]), device["sizes"], size)))
    except BaseException as error:  # handed to the training loop
        batches.put(error)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the --out folder of data.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0, help="wall clock, everything included")
    parser.add_argument("--resume", type=Path, default=CHECKPOINT, help="a checkpoint, or an --out folder")
    parser.add_argument("--rate", type=float, default=7e-4, help="highest learning rate")
    parser.add_argument("--units", type=int, default=8, help="units of 8 rows × 1,024 tokens in a batch")
    parser.add_argument("--attention", choices=("xla", "cudnn"), default="cudnn")
    parser.add_argument("--float32", action="store_true", help="no bf16 (for a CPU)")
    parser.add_argument(
        "--freeze", action="append", default=[], metavar="PREFIX", help="parameters to leave as they are"
    )
    parser.add_argument(
        "--emphasis", action="append", default=[], metavar="TASK=WEIGHT", help='such as "image beside=3"'
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    begun = time.monotonic()
    options = arguments(argv)
    end = begun + 60 * options.minutes - _FINAL_SECONDS
    emphasis = {task: float(weight) for task, _, weight in (text.rpartition("=") for text in options.emphasis)}
    shards = Shards(options.data, emphasis, options.seed)
    shards.start()
    batches: queue.Queue = queue.Queue(maxsize=3)
    image_size = CONFIG.vision.image_size
    threading.Thread(target=_feed, args=(shards, options.units, image_size, batches), daemon=True).start()
    static = (options.attention, jnp.float32 if options.float32 else jnp.bfloat16, tuple(options.freeze) or ("-",))

    def log(text: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {text}", flush=True)

    def next_batch() -> tuple:
        if isinstance(batch := batches.get(), BaseException):
            raise RuntimeError("making batches failed") from batch
        return batch

    state = learning.start({name: jnp.asarray(value) for name, value in load_parts(options.resume).items()})
    log(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {sum(v.size for v in state.params.values()):,} weights"
    )
    state, seen = learning.step(CONFIG, state, *next_batch(), np.float32(0), *static)
    losses = [float(seen["loss"])]
    log(f"compiled; loss {losses[0]:.4f} before training")
    learned = shown = time.monotonic()
    steps = 0
    while (now := time.monotonic()) < end:
        progress = (now - learned) / (end - learned)
        rate = options.rate * min(1.0, (steps + 1) / 100) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * progress))
        state, seen = learning.step(CONFIG, state, *next_batch(), np.float32(rate), *static)
        steps += 1
        if steps % 10 == 0:
            losses.append(float(seen["loss"]))  # waits, so at most 10 steps are in flight and the clock means something
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]} after {steps} steps; lower --rate")
            if time.monotonic() - shown > 15:
                values = "  ".join(f"{name} {float(value):.3f}" for name, value in seen.items())
                log(f"step {steps}  rate {rate:.1e}  {values}  {len(shards.units)} units")
                shown = time.monotonic()
    losses.append(float(seen["loss"]))
    save_parts(options.out, {name: np.asarray(value) for name, value in state.params.items()})
    metrics = {"steps": steps, "seconds": time.monotonic() - begun, "units": len(shards.units), "losses": losses}
    (options.out / "metrics.json").write_text(json.dumps(metrics))
    log(f"{steps} steps of {options.units} units; saved in {options.out}")
    return metrics


if __name__ == "__main__":
    main()
