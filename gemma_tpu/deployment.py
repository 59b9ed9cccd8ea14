"""A model on a mesh, for so many requests at once and so long a context.

`load`, the engine, the planner and the benchmarks take a `Deployment`; the shapes of every device program and the bytes
on every device follow from it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from gemma_tpu.cache.kv_cache import CacheShape, KVCache
from gemma_tpu.cache.state import State
from gemma_tpu.config import GemmaConfig
from gemma_tpu.memory import Memory, shard_bytes
from gemma_tpu.model import Params, as_draft, param_shapes
from gemma_tpu.model.linear import QuantizedWeight, Weight
from gemma_tpu.ops import triton_attention
from gemma_tpu.ops.rows import min_rows
from gemma_tpu.quantization import Grid, Quantization
from gemma_tpu.sharding import param_sharding

STEPS_PER_CALL = 8  # decode steps of one call, after which the host reads the tokens
IMAGE_BATCHES = (4, 1)  # images of one call of the vision tower
REMEMBERED_IMAGES = 64  # images whose soft tokens stay on the device

_PADDED_VOCABULARY = 64  # tokens without a piece, which some checkpoints have more of than others
_CHUNKS = (64, 320, 1024)  # tokens of a prefill call; 320 holds a prompt with one image
_PAGE, _REGISTER = 128, 128  # tokens of a page; keys in a register of a TPU, of which its kernel takes whole ones
_CPU_FEW = (1, 2, 4)  # rows of a decode call there, where each row costs as much as the others
_CPU_CHUNKS = (64, 320, 512)  # padding costs time on a CPU, and longer chunks are no faster there


def check_draft(draft: GemmaConfig | None, config: GemmaConfig) -> None:
    """ValueError unless a draft model, if there is one, may guess for a model of this config."""
    if draft and abs(draft.vocab_size - config.vocab_size) > _PADDED_VOCABULARY:
        raise ValueError(
            f"draft: its vocabulary has {draft.vocab_size:,} tokens, and the model's {config.vocab_size:,}: a draft "
            "model must have the same, such as a smaller one of the same family"
        )


class Calls(NamedTuple):
    """Which there are: `together`, that prefill several short prompts. `few`: rows of those that decode a part."""

    together: bool
    few: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Deployment:
    """Hashable: the static argument of the device programs.

    `rows`: batch rows, the requests that run at once. `context`: tokens that prompt and answer of each may have.
    `dtype` is that of weights and, unless `kv_cache_dtype` says otherwise, cache; `quantization` says which weights are
    integers instead. `chunks` are the lengths in tokens of a prefill call, by default those that suit the platform.
    `cache_tokens`: what all rows and stored prefixes together may have in the layers that see the whole context; by
    default as many as the rows could need. `stored_prefixes`: prefixes of prompts that are kept beside the rows when
    the rings of these have gone on.
    `draft_tokens`: tokens that are guessed ahead at each decode step (gemma_tpu.engine.speculation), by a model of the
    config `draft`, or without one from the text so far. `kv_cache_dtype`:
    "int8" keeps keys and values as such integers with scales, "auto" in `dtype`. `cache` is the class of the cache.
    """

    config: GemmaConfig
    mesh: Mesh
    rows: int
    context: int
    dtype: DTypeLike
    chunks: Sequence[int] | None = None
    cache_tokens: int | None = None
    stored_prefixes: int = 0
    draft_tokens: int = 0
    draft: GemmaConfig | None = None
    quantization: Quantization | None = None
    kv_cache_dtype: str = "auto"
    cache: type = KVCache

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        if self.chunks is not None:
            object.__setattr__(self, "chunks", tuple(self.chunks))

    def __getstate__(self) -> dict[str, Any]:
        """The fields: what follows from them is worked out again by the process that unpickles them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def text(self) -> Deployment:
        """The text decoder's part, equal for deployments that differ in their vision towers alone.

        The decoder's programs are compiled for it, so that a model with images and one without share them.
        """
        return dataclasses.replace(self, config=dataclasses.replace(self.config, vision=None), chunks=None)

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
        chunks = self.chunks or (_CPU_CHUNKS if self.platform == "cpu" else _CHUNKS)
        sizes = (*chunks, max(chunks[-1], self.num_soft_tokens))
        return tuple(sorted({min(size, self.context) for size in sizes}))

    @property
    def prefill_rows(self) -> int:
        """Rows of a prefill call of the shortest size: as many as have no more tokens than the longest size."""
        return min(self.rows, self.prefill_sizes[-1] // self.prefill_sizes[0])

    @property
    def page(self) -> int:
        """Tokens of a page of the cache: an eighth of a short context."""
        short = self.context // 8
        return self._in_units(max(1, min(_PAGE, 1 << max(0, short.bit_length() - 1))))

    def _in_units(self, slots: int) -> int:
        """At least so many slots of a cache: the devices that share it divide them, on a TPU into whole registers."""
        unit = self.mesh.shape["slots"] * (_REGISTER if self.platform == "tpu" else 1)
        return -(-slots // unit) * unit

    @property
    def page_groups(self) -> int:
        """Into how many equal parts the pages fall: a row's are of its own part, which lies where the row does."""
        data = self.mesh.shape["data"]
        return data if self.rows % data == 0 else 1

    @functools.cached_property
    def pages(self) -> int:
        """Pages of the cache, a multiple of `page_groups`."""
        longest = -(-self.context // self.page)
        wanted = self.rows * longest if self.cache_tokens is None else -(-self.cache_tokens // self.page)
        return max(longest, -(-wanted // self.page_groups)) * self.page_groups

    @property
    def rings(self) -> list[tuple[int, int]]:
        """Window and slots of each kind of ring in the cache."""
        most = -(-self.context // self.page) * self.page
        windows = {layer.window for layer in self.config.layers if layer.window is not None}
        return [(window, min(window, most)) for window in sorted(windows)]

    @property
    def looks_up(self) -> bool:
        """Whether tokens are guessed from the text so far."""
        return self.draft_tokens > 0 and self.draft is None

    @property
    def min_rows(self) -> int:
        """Rows that a decode step is padded to on each device."""
        return min_rows(self.mesh)

    def calls(self, batch_always: bool | None = None) -> Calls:
        """`batch_always` says it for all calls; by default they are what suits the platform.

        On an accelerator a few rows that rest come almost for free, and fewer programs are fewer to compile. Many have
        rings as large as the weights: on four chips of a v5e, a lone answer of 4B beside 63 such rows takes 1.4 × the
        cycles a step. A GPU's kernel looks at one block of theirs. On a CPU each row costs as much as the others.
        """
        if self.rows == 1:
            return Calls(together=True, few=())
        if batch_always is not None:
            return Calls(together=batch_always, few=() if batch_always else (1,))
        if self.platform == "cpu":
            # Rows that a mesh splits have to lie where their pages do; too few to be split are on every device.
            whole = [rows for rows in _CPU_FEW if self.mesh.shape["data"] == 1 or rows % self.mesh.shape["data"]]
            return Calls(together=False, few=tuple(rows for rows in whole if rows < self.rows))
        in_kernel = triton_attention.fits(self.mesh, self.config.head_dim)
        costly = self.memory.local_cache > self.memory.weights // 4 and not in_kernel
        # Rows are taken out and put back at each call: that pays for a small part of them, where they all are.
        few = (1, 8) if costly and self.mesh.shape["data"] == 1 else ()
        return Calls(together=True, few=tuple(rows for rows in few if rows <= self.rows // 8))

    def grid(self, name: str) -> Grid | None:
        """The integers that stand for a parameter, None if it stays as it is. A draft model's are as the model's."""
        return self.quantization and self.quantization.grid(name, self.platform)

    @functools.cached_property
    def abstract_params(self) -> Params:
        """Shapes, dtypes and shardings of every parameter, as `load` makes them."""
        draft = as_draft(self._abstract_params(self.draft)) if self.draft else {}
        return self._abstract_params(self.config) | draft

    def _abstract_params(self, config: GemmaConfig) -> dict[str, Weight]:
        return {name: self._abstract_param(name, x.shape) for name, x in param_shapes(config).items()}

    def _abstract_param(self, name: str, shape: tuple[int, ...]) -> Any:
        sharding = param_sharding(name, shape, self.mesh)
        if (grid := self.grid(name)) is None:
            return jax.ShapeDtypeStruct(shape, self.dtype, sharding=sharding)
        values = jax.ShapeDtypeStruct(shape, grid.dtype, sharding=sharding)
        scales = grid.scales_sharding(sharding, len(shape))
        scales = jax.ShapeDtypeStruct(grid.of_scales(shape, 1), jnp.float32, sharding=scales)
        return QuantizedWeight(values, scales, jnp.dtype(self.dtype))

    def empty_state(self) -> State:
        draft = None
        if self.draft:  # its rings have room for guesses that turn out to be wrong
            draft = self._empty_cache(self.draft, slack=self._in_units(self.draft_tokens))
        text = jnp.zeros((self.rows, self.context), jnp.int32) if self.looks_up else None
        return State.empty(self._empty_cache(self.config), self.rows, self.config.vocab_size, draft, text)

    def _empty_cache(self, config: GemmaConfig, slack: int = 0) -> Any:
        sizes = self.rows, self.context, self.pages, self.page, self.stored_prefixes, slack
        dtype = self.dtype if self.kv_cache_dtype == "auto" else jnp.dtype(self.kv_cache_dtype)
        shape = CacheShape(*sizes, config.num_kv_heads, config.head_dim)
        return self.cache.init([layer.window for layer in config.layers], shape, dtype, self.mesh)

    @functools.cached_property
    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state."""
        state = jax.eval_shape(self.empty_state)
        return jax.tree.map(lambda x, sharding: x.update(sharding=sharding), state, state.shardings(self.mesh))

    @functools.cached_property
    def memory(self) -> Memory:
        """Bytes on each device of what stays there: weights, state, remembered soft tokens."""
        params, cache = self._abstract_params(self.config), self.abstract_state.cache
        draft = self._abstract_params(self.draft) if self.draft else {}, self.abstract_state.draft
        rest = dataclasses.replace(self.abstract_state, cache=None, draft=None)
        soft_token = self.config.embed_dim * jnp.dtype(self.dtype).itemsize
        return Memory(
            weights=shard_bytes({name: x for name, x in params.items() if not name.startswith("vision.")}),
            vision=shard_bytes({name: x for name, x in params.items() if name.startswith("vision.")}),
            global_cache=cache.nbytes(windowed=False),
            local_cache=cache.nbytes(windowed=True),
            rows=shard_bytes(rest),
            images=(REMEMBERED_IMAGES + 1) * self.num_soft_tokens * soft_token,  # and a blank one
            draft=shard_bytes(draft),
        )

    def fits(self, capacity: int | None) -> bool:
        """Whether weights and state do, on devices of so many bytes; None is unknown."""
        return capacity is None or self.memory.resident <= capacity

    def require_room(self, capacity: int | None) -> None:
        """ValueError, with the table, unless it fits."""
        if capacity is not None and not self.fits(capacity):
            raise ValueError(
                f"{self.context:,} tokens × {self.rows} rows in {self.dtype} do not fit on {self.mesh.size} devices; "
                f"each would hold\n{self.memory.table(capacity)}\nLoad with smaller max_context, max_rows or "
                'cache_tokens, text_only, without a draft model, with kv_cache_dtype="int8", '
                "or on more devices (`gemma-tpu plan` says what fits)"
            )
