"""Sequences of which every token is given: how they are read, and where the attention of their tokens went."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gemma_tpu import prompts
from gemma_tpu.checks import check_integer
from gemma_tpu.deployment import Deployment
from gemma_tpu.prompts import Reading
from gemma_tpu.text import Prompt, Tokenizer, expand_images


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """Expanded rows, the places in each that were asked for, where its images' soft tokens begin, and all images."""

    rows: list[list[int]]
    at: Int[np.ndarray, "B K"]
    image_starts: list[list[int]]
    images: Sequence[Any]  # as Engine.image_inputs takes them


def read_sequences(
    deployment: Deployment,
    tokenizer: Tokenizer | None,
    tokens: Any,
    images: Any,
    positions: Any,
    reading: Reading,
    check: Callable[[Deployment, int, int, int], None],
) -> Sequences:
    """What `Model.logits` is given. `check` is called with rows, tokens and positions before there is any work.

    ValueError for what are no tokens or positions, and if the images are not as many as their places.
    """
    ids = prompts.read_token_rows(tokens, deployment.config.vocab_size)
    B, T = ids.shape
    chosen = prompts.read_indices("positions", positions, T)
    check(deployment, B, T, len(chosen))
    expanded = [expand_images(row, deployment.num_soft_tokens, tokenizer) for row in ids.tolist()]
    starts = [row.starts for row in expanded]
    shown = [image for row in prompts.images_of_rows(images, B) for image in row]
    if len(shown) != (markers := sum(map(len, starts))):
        raise ValueError(f"{markers} <start_of_image> in {B} rows, {len(shown)} images")
    kept = np.array([row.kept for row in expanded], np.int32)
    return Sequences([row.tokens for row in expanded], kept[:, chosen], starts, reading.images(shown))


def of_prompt(prompt: Prompt, positions: Any) -> Sequences:
    """One row; `positions` are of its tokens with its images."""
    at = prompts.read_indices("positions", positions, len(prompt.tokens))
    starts, images = [placed.start for placed in prompt.images], [placed.image for placed in prompt.images]
    return Sequences([prompt.tokens], at[None], [starts], images)


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where the attention of some tokens went, see `Model.attention`. A row is as long as its images make it.

    `weights`, float32[B, K, L, N, S]: how much of each of K tokens' attention, in each of L layers and N query heads,
    went to each of the S tokens of its row; they sum to 1 over S. 0 stands where a token sees none: those after it
    (but not those of its own image), those outside a local layer's window (`config.layers[i].window`), and those
    past the end of a row shorter than the longest. Query heads that share a kv head stand together.
    `tokens`: each row with its images, of whose soft tokens each is -1 (`Tokenizer.decode` names it). `queries`,
    int32[B, K]: where the K tokens stand in it. `image_starts`: where the soft tokens of each of its images begin.
    """

    weights: Float[np.ndarray, "B K L N S"]
    tokens: list[list[int]]
    queries: Int[np.ndarray, "B K"]
    image_starts: list[list[int]]
    num_soft_tokens: int

    def on_image(self, image: int = 0, row: int = 0) -> Float[np.ndarray, "K L N side side"]:
        """The part of a row's weights that went to one of its images, as the square of its soft tokens (16 × 16).

        Rows of the square go from top to bottom: of the picture as the vision tower sees it, resized to a square.
        ValueError if there is no such row or image.
        """
        check_integer("row", row, 0, len(self.tokens) - 1)
        starts = self.image_starts[row]
        if not starts:
            raise ValueError(f"row {row} has no images")
        check_integer("image", image, 0, len(starts) - 1)
        side = math.isqrt(self.num_soft_tokens)
        on_soft_tokens = self.weights[row, ..., starts[image] : starts[image] + self.num_soft_tokens]
        return on_soft_tokens.reshape(*on_soft_tokens.shape[:-1], side, side)
