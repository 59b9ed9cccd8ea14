"""Trains the demo model: `python -m checkpoints.demo_model.train --out DIR --minutes 9`.

Data is made by worker processes while the GPU trains. The learning rate follows the clock, so the run ends when
`--minutes` (all of it: start, compilation, training, the last evaluation) are over. DIR gets the float32 parameters in
parts small enough to carry (`params-*.npz`), every minute and at the end, and `metrics.json`. `export.py` makes the
checkpoint of them.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.demo_model import tokenizer
from checkpoints.demo_model.pool import Pool, join

_PART_BYTES = 15 * 2**20
_UNSCORED = ("text scope", "image scope", "image scope zh")  # many answers are right: evaluate.py judges these
_FINAL_SECONDS = 12  # kept back for the last evaluation and for saving


def save_parts(folder: Path, params: dict[str, np.ndarray]) -> None:
    """Writes `params` as params-0.npz, params-1.npz, …, each whole at once."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, np.ndarray]] = [{}]
    for name, value in params.items():
        if parts[-1] and sum(v.nbytes for v in parts[-1].values()) + value.nbytes > _PART_BYTES:
            parts.append({})
        parts[-1][name] = value
    for i, part in enumerate(parts):
        unfinished = folder / f".params-{i}.npz"
        np.savez(unfinished, **part)
        unfinished.rename(folder / f"params-{i}.npz")


def load_parts(folder: Path) -> dict[str, np.ndarray]:
    """What `save_parts` wrote."""
    if not (files := sorted(folder.glob("params-*.npz"))):
        raise ValueError(f"{folder}: no params-*.npz; give the --out folder of a training run")
    params: dict[str, np.ndarray] = {}
    for file in files:
        with np.load(file) as part:
            params |= {name: part[name] for name in part.files}
    return params


def score(hits: np.ndarray, batch: dict[str, np.ndarray], tasks: list[list[str]]) -> dict[str, list[bool]]:
    """Per task, for each answer whether every token was hit."""
    results: dict[str, list[bool]] = collections.defaultdict(list)
    for row, names in enumerate(tasks):
        owner = batch["answer"][row]
        wrong = set(owner[(owner >= 0) & ~hits[row]])
        for n, name in enumerate(names):
            results[name].append(n not in wrong)
    return results


def averages(results: dict[str, list[bool]]) -> dict[str, float]:
    """Accuracy of all image tasks and of all text tasks together, then of each task."""

    def mean(prefix: str) -> float:
        hit = [h for name, hs in results.items() if name.startswith(prefix) and name not in _UNSCORED for h in hs]
        return float(np.mean(hit)) if hit else math.nan

    return {"image": mean("image"), "text": mean("text")} | {n: float(np.mean(h)) for n, h in sorted(results.items())}


class Feeder(threading.Thread):
    """Puts batches on the device ahead of time."""

    def __init__(self, pool: Pool, units: int, put: Any) -> None:
        super().__init__(daemon=True)
        self._pool, self._units, self._put = pool, units, put
        self._queue: queue.Queue = queue.Queue(maxsize=3)
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                self._queue.put(self._put(self._pool.batch(self._units)))
        except BaseException as error:  # handed to the training loop by next()
            self._failure = error

    def next(self) -> Any:
        while True:
            try:
                return self._queue.get(timeout=30)
            except queue.Empty:
                raise RuntimeError("no batch for 30 seconds") from self._failure


def time_steps(step: Any, config: Any, state: Any, feeder: Feeder, static: tuple, count: int = 10) -> tuple[Any, float]:
    """Seconds of a step that changes next to nothing, once it is compiled; and the state after it."""
    begun = 0.0
    for i in range(count + 1):
        state, seen = step(config, state, *feeder.next(), np.float32(0), np.float32(1), *static)
        seen["loss"].block_until_ready()
        if i == 0:
            begun = time.monotonic()
    return state, (time.monotonic() - begun) / count


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="wall clock, everything included")
    parser.add_argument("--resume", type=Path, help="an --out folder to go on from")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--units", type=int, default=8, help="units of 8 rows × 1,024 tokens in a batch")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--slots", type=int, default=800, help="units kept in memory, 6.4 MB each")
    parser.add_argument("--held-out", type=int, default=64, help="units to judge by at the end")
    parser.add_argument("--attention", choices=("auto", "xla", "cudnn"), default="auto")
    parser.add_argument("--float32", action="store_true", help="no bf16 (for a CPU)")
    parser.add_argument(
        "--focus", type=float, default=0.0, help="this share of the text only about what is out of scope; few images"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    begun = time.monotonic()
    options = arguments()
    end = begun + 60 * options.minutes
    pool = Pool(
        tokenizer.MODEL,
        workers=options.workers,
        slots=options.slots,
        held_out=options.held_out,
        seed=options.seed + 1,
        focus=options.focus,
    )

    # JAX only now: the workers above are forks of a process without its threads.
    import jax
    import jax.numpy as jnp

    from checkpoints.demo_model import learning
    from gemma_tpu.config import DEMO

    config = dataclasses.replace(DEMO, vocab_size=tokenizer.VOCAB_SIZE)
    size = config.vision.image_size
    dtype = jnp.float32 if options.float32 else jnp.bfloat16

    def log(text: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {text}", flush=True)

    def put(batch: dict[str, np.ndarray]) -> tuple[dict[str, jax.Array], jax.Array]:
        device = jax.device_put({name: value for name, value in batch.items() if name != "images"})
        return device, learning.to_pixels(jax.device_put(batch["images"]), device["sizes"], size)

    state = learning.start(config, options.seed, load_parts(options.resume) if options.resume else None)
    count = sum(value.size for name, value in state.params.items() if name != learning.AUX)
    log(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {count:,} parameters, {options.workers} workers")

    held_out = pool.evaluation()
    judged = [held_out[i : i + options.units] for i in range(0, len(held_out), options.units)]
    judged = [part for part in judged if len(part) == options.units]

    def evaluate(batches: int) -> dict[str, float]:
        results: dict[str, list[bool]] = collections.defaultdict(list)
        for part in judged[:batches]:
            batch = join([vars(unit) for unit, _ in part])
            hit = np.asarray(learning.hits(config, state.params, *put(batch), *static))
            for name, values in score(hit, batch, [row for _, tasks in part for row in tasks]).items():
                results[name] += values
        return averages(results)

    while pool.ready() < options.units:
        time.sleep(0.2)
    feeder = Feeder(pool, options.units, put)
    feeder.start()
    attention = options.attention
    if attention == "auto":
        seconds = {}
        for name in ("xla", "cudnn") if jax.default_backend() == "gpu" else ("xla",):
            try:
                state, seconds[name] = time_steps(learning.step, config, state, feeder, (name, dtype))
            except (RuntimeError, ValueError, NotImplementedError) as error:  # cuDNN may not take the mask
                log(f"attention {name}: {str(error)[:300]}")
        if not seconds:
            raise RuntimeError("no way of computing attention works here (see above)")
        attention = min(seconds, key=seconds.get)
        log("seconds a step: " + ", ".join(f"{name} {value:.4f}" for name, value in seconds.items()))
    static = (attention, dtype)
    evaluate(1)
    learned = time.monotonic()
    log(f"compiled; {pool.made()} units made")

    steps, shown, saved, last = 0, learned, learned, 0
    while (now := time.monotonic()) < end - _FINAL_SECONDS:
        progress = (now - learned) / (end - _FINAL_SECONDS - learned)
        warm = min(1.0, (steps + 1) / 200)
        rate = options.rate * warm * max(0.02, 0.5 + 0.5 * math.cos(math.pi * progress))
        aux = max(0.05, 0.5 * (1 - 1.5 * progress))
        state, seen = learning.step(config, state, *feeder.next(), jnp.float32(rate), jnp.float32(aux), *static)
        steps += 1
        if steps % 20 == 0:
            jax.block_until_ready(seen)  # at most 20 steps are in flight, so the clock means something
            if time.monotonic() - shown > 20:
                values = {name: float(value) for name, value in seen.items()}
                if not math.isfinite(values["loss"]):
                    raise FloatingPointError(f"the loss is {values['loss']} after {steps} steps; lower --rate")
                speed = (steps - last) / (time.monotonic() - shown)
                log(
                    f"step {steps}  {speed:.1f}/s  rate {rate:.1e}  "
                    + "  ".join(f"{name} {value:.3f}" for name, value in values.items())
                    + f"  units made {pool.made()}, used {steps * options.units}"
                )
                quick = evaluate(1)
                log("held out: " + ", ".join(f"{name} {value:.2f}" for name, value in quick.items()))
                shown, last = time.monotonic(), steps
            if time.monotonic() - saved > 90:
                save_parts(options.out, {name: np.asarray(value) for name, value in state.params.items()})
                saved = time.monotonic()
    log(f"{steps} steps")
    final = evaluate(len(judged))
    save_parts(options.out, {name: np.asarray(value) for name, value in state.params.items()})
    metrics = {"steps": steps, "seconds": time.monotonic() - begun, "units": steps * options.units, "accuracy": final}
    (options.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    log("held out, at the end:\n" + "\n".join(f"  {name:24} {value:.4f}" for name, value in final.items()))
    pool.stop()


if __name__ == "__main__":
    main()
