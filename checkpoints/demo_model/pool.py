"""Worker processes that keep a pool of training units in shared memory filled.

The memory is one anonymous map made before the workers are forked, so it needs neither files nor room in /dev/shm.
A slot's version is 0 while it is written; a reader that finds it changed after copying takes another slot.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from pathlib import Path

import numpy as np

from checkpoints.demo_model.rows import FIELDS, Encoder, Packer, Unit

_FORK = multiprocessing.get_context("fork")


class Pool:
    """Units made by `workers` processes, `slots` kept. Start it before JAX starts its threads: the workers are forked.

    `held_out` units are made first, by all workers together; `evaluation()` waits for them. `focus`: see train.py.
    """

    def __init__(self, model: Path, *, workers: int, slots: int, held_out: int, seed: int, focus: float = 0.0) -> None:
        blank = Unit()
        self._shapes = [(name, getattr(blank, name).shape, getattr(blank, name).dtype) for name in FIELDS]
        self._slots = [self._allocate() for _ in range(slots)]
        self._versions = np.frombuffer(mmap.mmap(-1, 8 * slots), np.int64)
        self._seen = np.zeros(slots, np.int64)
        self._rng = np.random.default_rng(seed)
        self._held_out = held_out
        self._focus = focus
        self._evaluation: multiprocessing.Queue = _FORK.Queue()
        self._processes = [
            _FORK.Process(target=self._work, args=(model, seed, worker, workers), daemon=True)
            for worker in range(workers)
        ]
        for process in self._processes:
            process.start()

    def _allocate(self) -> dict[str, np.ndarray]:
        size = sum(int(np.prod(shape)) * dtype.itemsize for _, shape, dtype in self._shapes)
        memory, offset, arrays = mmap.mmap(-1, size), 0, {}
        for name, shape, dtype in sorted(self._shapes, key=lambda s: -s[2].itemsize):
            arrays[name] = np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)
            offset += arrays[name].nbytes
        return arrays

    def _work(self, model: Path, seed: int, worker: int, workers: int) -> None:
        os.nice(5)  # the training loop must never wait for a core
        encoder = Encoder(model)
        held_out = Packer(encoder, seed * 1000 + worker, held_out=True)
        for _ in range(worker, self._held_out, workers):
            self._evaluation.put(held_out.unit())
        packer = Packer(encoder, seed * 1000 + worker, focus=self._focus)
        version = 0
        while os.getppid() != 1:
            version += 1
            for slot in range(worker, len(self._slots), workers):
                unit, _ = packer.unit()
                self._versions[slot] = 0
                for name, array in self._slots[slot].items():
                    array[...] = getattr(unit, name)
                self._versions[slot] = version

    def made(self) -> int:
        """Units made so far."""
        return int(self._versions.sum())

    def ready(self) -> int:
        return int((self._versions > 0).sum())

    def evaluation(self) -> list[tuple[Unit, list[list[str]]]]:
        """The held-out units."""
        return [self._evaluation.get(timeout=120) for _ in range(self._held_out)]

    def batch(self, units: int) -> dict[str, np.ndarray]:
        """The fields of so many units, one after another; units not yet seen first."""
        parts: list[dict[str, np.ndarray]] = []
        while len(parts) < units:
            fresh = np.flatnonzero(self._versions > self._seen)
            options = fresh if len(fresh) else np.flatnonzero(self._versions)
            slot = int(self._rng.choice(options))
            version = self._versions[slot]
            copy = {name: array.copy() for name, array in self._slots[slot].items()}
            if version and self._versions[slot] == version:
                self._seen[slot] = version
                parts.append(copy)
        return join(parts)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()


def join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Units as one batch: soft tokens are numbered over all its images."""
    batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    batch["soft"] = batch["soft"].astype(np.int32)
    rows, images, soft = parts[0]["soft"].shape[0], parts[0]["images"].shape[0], parts[0]["labels"].shape[-1]
    for i in range(len(parts)):
        part = batch["soft"][i * rows : (i + 1) * rows]
        part[part >= 0] += i * images * soft
    return batch
