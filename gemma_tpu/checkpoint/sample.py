"""A look at each array of a checkpoint, by which several hosts find out whether they have the same one."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gemma_tpu.checkpoint import boxes
from gemma_tpu.checkpoint.boxes import Box
from gemma_tpu.checkpoint.lazy import Leaf
from gemma_tpu.checkpoint.source import Checkpoint

_WHOLE_BYTES = 64 << 10  # arrays up to this size are read whole, of others one row
_MOST_BYTES = 256 << 20  # read in all: a row takes the whole array where it is stored in one piece
_THREADS = 16


def sample_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """A digest of each stored array, by its name: of shape, dtype, and norms and biases whole, of a matrix one row.

    It is of what is stored, an adapter's arrays included: sums and casts, which hosts may round differently, are left
    out. Equal checkpoints in another layout count as different. Where rows are costly to read, a selection of arrays
    that is the same everywhere has its shape and dtype alone.

    Raises `CheckpointError` if an array cannot be read.
    """
    leaves = {leaf.name: leaf for array in checkpoint.arrays.values() for leaf in array.leaves()}
    # An order that is the same everywhere and has nothing to do with sizes or layers.
    order = sorted(leaves, key=lambda name: hashlib.blake2b(name.encode()).digest())
    boxes: dict[str, Box | None] = {}
    read = 0
    for name in order:
        box = _sampled(leaves[name])
        affordable = read + leaves[name].cost(box) <= _MOST_BYTES
        read += leaves[name].cost(box) * affordable
        boxes[name] = box if affordable else None
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = dict(zip(order, pool.map(lambda name: _digest(leaves[name], boxes[name]), order), strict=True))
    names = hashlib.blake2b("\0".join(sorted(leaves)).encode(), digest_size=8).hexdigest()
    return {"the list of arrays": names, **digests}


def _sampled(leaf: Leaf) -> Box:
    if leaf.nbytes <= _WHOLE_BYTES:
        return boxes.whole(leaf.shape)
    return (*(slice(size // 2, size // 2 + 1) for size in leaf.shape[:-1]), slice(0, leaf.shape[-1]))


def _digest(leaf: Leaf, box: Box | None) -> str:
    digest = hashlib.blake2b(f"{leaf.shape} {leaf.dtype}".encode(), digest_size=8)
    if box is not None:
        digest.update(boxes.contiguous(leaf.read(box)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
