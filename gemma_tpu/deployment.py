"""A model on a mesh: what is run, where, for how many requests and how long a context.

`load`, the engine and the planner take a `Deployment`; the shapes of every device program follow from it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from gemma_tpu.config import GemmaConfig
from gemma_tpu.engine import shapes


@dataclasses.dataclass(frozen=True)
class Deployment:
    """`rows`: batch rows, the requests that run at once. `context`: tokens of prompt and answer of each row.

    `dtype` is that of weights and cache. `chunks` are the lengths in tokens of a prefill call, by default those that
    suit the platform.
    """

    config: GemmaConfig
    mesh: Mesh
    rows: int
    context: int
    dtype: DTypeLike
    chunks: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        if self.chunks is not None:
            object.__setattr__(self, "chunks", tuple(self.chunks))

    @property
    def platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    @property
    def num_soft_tokens(self) -> int:
        """Soft tokens of an image; 0 without a vision tower."""
        return self.config.vision.num_soft_tokens if self.config.vision else 0

    @functools.cached_property
    def prefill_sizes(self) -> tuple[int, ...]:
        """Tokens of a prefill call, ascending; the longest holds an image whole."""
        return tuple(shapes.chunk_sizes(self.platform, self.context, self.num_soft_tokens, self.chunks))

    @property
    def min_rows(self) -> int:
        """Rows that a decode step is padded to."""
        return shapes.min_rows(self.platform)
