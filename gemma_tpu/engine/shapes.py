"""The shapes the device programs run at: chosen here for the engine that runs them and the planner that only asks."""

from __future__ import annotations

from collections.abc import Sequence

from jax.sharding import Mesh

STEPS_PER_CALL = 8  # decode steps between two looks of the host
CHUNKS = (64, 320, 1024)  # tokens of a prefill call; 320 holds a prompt with one image
CPU_CHUNKS = (64, 320, 512)  # padding costs time there, and longer chunks gain none
IMAGE_BATCHES = (4, 1)  # images of one call of the vision tower
REMEMBERED_IMAGES = 64  # whose soft tokens stay on the device


def chunk_sizes(platform: str, max_context: int, soft_tokens: int, chunks: Sequence[int] | None = None) -> list[int]:
    """Tokens of a prefill call, ascending. The longest holds an image (`soft_tokens` each) whole."""
    chunks = chunks or (CPU_CHUNKS if platform == "cpu" else CHUNKS)
    return sorted({min(size, max_context) for size in (*chunks, max(chunks[-1], soft_tokens))})


def cache_length(context: int, mesh: Mesh) -> int:
    """Slots of a cache for so many tokens: the next number that the devices which share a cache divide evenly.

    On a TPU each then has whole registers of 128, which the attention kernel needs (gemma_tpu.ops.flash_attention).
    """
    unit = mesh.shape["slots"] * (128 if mesh.devices.flat[0].platform == "tpu" else 1)
    return -(-context // unit) * unit


def sequence_length(tokens: int, max_context: int) -> int:
    """Tokens that whole sequences are padded to for the plain path: 64, 128, 256 …, at most the context."""
    return min(max_context, max(64, 1 << (tokens - 1).bit_length()))


def min_rows(platform: str) -> int:
    """Rows a decode step is padded to.

    A TPU multiplies by fewer than 8 on its vector unit, which is slower than 8 on the matrix unit; on a GPU, XLA writes
    the products with a single row out to memory before it adds them up.
    """
    return {"tpu": 8, "gpu": 2}.get(platform, 1)


def images_of_chunk(rows: int, tokens: int, soft_tokens: int) -> int:
    """Images a prefill call of rows × tokens has room for; 0 without a vision tower (`soft_tokens` 0)."""
    return rows * (tokens // soft_tokens) if soft_tokens else 0
