"""Digests of samples of a checkpoint's arrays, by which hosts check that they load the same checkpoint."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gemma_tpu.checkpoint import slices
from gemma_tpu.checkpoint.lazy import Leaf
from gemma_tpu.checkpoint.open import Checkpoint
from gemma_tpu.checkpoint.slices import Box

_WHOLE_BYTES = 64 << 10  # arrays up to this size are read whole, of larger ones a row
_MAX_BYTES = 256 << 20  # total bytes read, since reading a row may read a whole stored chunk
_THREADS = 16


def sample_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """A digest of each stored array, by name: of its shape, dtype, and values (one row of a large array).

    Digests stored arrays, including an adapter's, since hosts may round sums and casts differently. The same model in
    another layout has other digests. Where rows are expensive to read, omits the values of some arrays, the same ones
    on every host.

    Raises `CheckpointError` if an array cannot be read.
    """
    leaves = {leaf.name: leaf for array in checkpoint.arrays.values() for leaf in array.leaves()}
    # A pseudorandom order that is the same on every host.
    order = sorted(leaves, key=lambda name: hashlib.blake2b(name.encode()).digest())
    sampled: dict[str, Box | None] = {}
    total = 0
    for name in order:
        box = _sample_box(leaves[name])
        affordable = total + leaves[name].cost(box) <= _MAX_BYTES
        total += leaves[name].cost(box) * affordable
        sampled[name] = box if affordable else None
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = dict(zip(order, pool.map(lambda name: _digest(leaves[name], sampled[name]), order), strict=True))
    names = hashlib.blake2b("\0".join(sorted(leaves)).encode(), digest_size=8).hexdigest()
    return {"the list of arrays": names, **digests}


def _sample_box(leaf: Leaf) -> Box:
    if leaf.nbytes <= _WHOLE_BYTES:
        return slices.whole(leaf.shape)
    return (*(slice(size // 2, size // 2 + 1) for size in leaf.shape[:-1]), slice(0, leaf.shape[-1]))


def _digest(leaf: Leaf, box: Box | None) -> str:
    digest = hashlib.blake2b(f"{leaf.shape} {leaf.dtype}".encode(), digest_size=8)
    if box is not None:
        digest.update(slices.contiguous(leaf.read(box)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
