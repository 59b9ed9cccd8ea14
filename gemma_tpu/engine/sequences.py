"""What may be asked of teacher-forced logits, and the arrays that the device is given for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.deployment import Deployment

MAX_BYTES = 2 << 30  # of the logits that one call returns: 2,048 tokens over the vocabulary of the released models


def check_logits(deployment: Deployment, tokens: int, positions: int) -> None:
    """ValueError for rows of more tokens than the context holds, or logits at more positions (of all rows) than fit."""
    context, vocab_size = deployment.context, deployment.config.vocab_size
    if tokens > context:
        raise ValueError(
            f"a row has {tokens:,} tokens with its images, and the context holds {context:,}: shorten it, or load "
            "the model with a larger max_context"
        )
    if (nbytes := positions * vocab_size * 4) > MAX_BYTES:
        raise ValueError(
            f"the logits of {positions:,} tokens are {nbytes / 1e9:.1f} GB, and one call returns at most "
            f"{MAX_BYTES / 1e9:.1f} GB: give fewer rows, or only the positions that are wanted"
        )


def sequence_length(tokens: int, max_context: int) -> int:
    """Tokens that whole sequences are padded to for the plain path: 64, 128, 256 …, at most the context."""
    return min(max_context, max(64, 1 << (tokens - 1).bit_length()))


def pad(
    rows: Sequence[Sequence[int]], soft_tokens: int, max_context: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B"]]:
    """Rows of expanded tokens as one array, whose T is one of few, and their lengths.

    ValueError if they have not as many places for soft tokens as there are.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), sequence_length(int(lengths.max()), max_context)), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    if (places := int((tokens == SOFT_TOKEN).sum())) != soft_tokens:
        raise ValueError(f"the tokens have {places} places for soft tokens, and the images have {soft_tokens}")
    return tokens, lengths
