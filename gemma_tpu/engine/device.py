"""The device's side of an engine: parameters, state and soft tokens on a mesh, and the calls that change them.

A call is given host values alone (numbers, numpy arrays, digests of images), and only tokens are ever read back. So
processes that share a mesh are in step if they make the same calls in the same order (gemma_tpu.distributed.processes).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gemma_tpu.cache.state import Controls, State
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine import programs
from gemma_tpu.engine.forward import in_32_bits, number_soft_tokens
from gemma_tpu.model import Params


class Device:
    """One model on a mesh. To be `reset` before anything else, and called by one thread at a time."""

    _whole_logits = False  # whether each process of a mesh is to have all of them

    def __init__(
        self,
        params: Params,
        deployment: Deployment,
        *,
        max_steps: int,
    ) -> None:
        # The decoder's programs and the vision tower's each take only their own arrays: fewer to hand over at a call.
        self._text_params = {name: value for name, value in params.items() if not name.startswith("vision.")}
        self._vision_params = {name: value for name, value in params.items() if name.startswith("vision.")}
        self._abstract_params = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)
            for name, value in self._text_params.items()
        }
        self._deployment, self._max_steps = deployment, max_steps
        self._static = {"deployment": deployment.text}
        self._state: State | None = None

    @in_32_bits
    def reset(self) -> None:
        """An empty state in the place of the old one, and no image known."""
        self._free_state()
        self._state = programs.init_state(self._deployment.text)
        self._soft_tokens: dict[bytes, jax.Array] = {}
        if self._deployment.config.vision:
            self._blank = programs.blank_image(self._deployment)

    @in_32_bits
    def encode(self, digests: Sequence[bytes], pixels: np.ndarray) -> None:
        """Keeps the soft tokens of float32[I, side, side, 3] under the images' digests."""
        encoded = programs.encode(self._vision_params, pixels, deployment=self._deployment)
        self._soft_tokens |= zip(digests, encoded, strict=True)

    def forget(self, digests: Sequence[bytes]) -> None:
        for digest in digests:
            del self._soft_tokens[digest]

    def soft_tokens(self, digests: Sequence[bytes]) -> list[jax.Array]:
        """[soft, D] of each image, encoded before."""
        return [self._soft_tokens[digest] for digest in digests]

    @in_32_bits
    def prefill(
        self,
        rows: np.ndarray | None,
        tokens: np.ndarray,
        start: np.ndarray,
        count: np.ndarray,
        images: Sequence[bytes | None],
        soft_index: np.ndarray,
        fresh: bool,
    ) -> None:
        """`images` are digests, None where there is room for an image and none is given; otherwise as the program."""
        shown = tuple(self._blank if digest is None else self._soft_tokens[digest] for digest in images)
        soft = programs.stack(shown, **self._static) if shown else None
        args = (self._text_params, self._state, rows, tokens, start, count, soft, soft_index)
        self._state = programs.prefill(*args, fresh=fresh, **self._static)

    @in_32_bits
    def admit(self, row: int, length: int, last: int, remaining: int, controls: Controls) -> None:
        numbers = (np.int32(value) for value in (row, length, last, remaining))
        self._state = programs.admit(self._state, *numbers, controls, **self._static)

    @in_32_bits
    def release(self, row: int) -> None:
        self._state = programs.release(self._state, np.int32(row), **self._static)

    @in_32_bits
    def clear(self, row: int) -> None:
        self._state = programs.clear(self._state, np.int32(row), **self._static)

    @in_32_bits
    def decode(self, rows: np.ndarray | None, steps: int) -> jax.Array:
        """int32[max_steps, B], whole on every device."""
        args = (self._text_params, self._state, rows, np.int32(steps))
        self._state, tokens = programs.decode(*args, max_steps=self._max_steps, **self._static)
        return tokens

    @in_32_bits
    def logits(
        self, tokens: np.ndarray, lengths: np.ndarray, kept: np.ndarray, images: Sequence[bytes]
    ) -> tuple[jax.Array, jax.Array]:
        """float32[B, K, V]: the plain path's logits at positions int32[B, K]; bool[B]: whether a row's are finite.

        `tokens` int32[B, T], `lengths` int32[B]; the `images` have been encoded.
        """
        soft = tuple(self._soft_tokens[digest] for digest in images)
        args = (self._text_params, tokens, lengths, soft, number_soft_tokens(tokens))
        x = programs.whole_sequences(*args, **self._static)
        return programs.head(self._text_params, x, kept, whole=self._whole_logits, **self._static)

    @in_32_bits
    def compile_logits(self, rows: int, tokens: int, kept: int, images: int) -> None:
        """Compiles what `logits` of B × T tokens at B × K positions runs. From any thread."""
        dtype, D = self._deployment.dtype, self._deployment.config.embed_dim
        whole = NamedSharding(self._deployment.mesh, PartitionSpec())
        shape = functools.partial(jax.ShapeDtypeStruct, dtype=np.int32)
        one = jax.ShapeDtypeStruct((self._deployment.num_soft_tokens, D), dtype, sharding=whole)
        args = (shape((rows, tokens)), shape((rows,)), (one,) * images, shape((rows, tokens)))
        programs.whole_sequences.lower(self._abstract_params, *args, **self._static).compile()
        x = jax.ShapeDtypeStruct((rows, tokens, D), dtype, sharding=whole)
        args = (x, shape((rows, kept)))
        programs.head.lower(self._abstract_params, *args, whole=self._whole_logits, **self._static).compile()

    def wait(self) -> None:
        """Until the device has done what it was told."""
        jax.block_until_ready((self._state, self._soft_tokens))

    @property
    def intact(self) -> bool:
        """Whether there is a state; a program that failed may have consumed it."""
        return self._state is not None and not any(x.is_deleted() for x in jax.tree.leaves(self._state))

    def explained(self, error: Exception) -> Exception:
        """Too little memory, as a compiler or device says it, in a line and with the way out; the rest as it is."""
        if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in str(error):
            return error
        short = RuntimeError(
            "the devices have no room for a program beside weights and caches: load with a smaller max_context or "
            "max_rows, text_only, or on more devices (`gemma-tpu plan` says what fits). It was "
            + str(error).strip().splitlines()[0]
        )
        short.__cause__ = error
        return short

    def close(self) -> None:
        """Lets go of the device's memory."""
        self._text_params, self._vision_params, self._soft_tokens = {}, {}, {}
        self._free_state()

    def _free_state(self) -> None:
        """At once, though an error that is still held may refer to it: two have no room."""
        for array in jax.tree.leaves(self._state):
            array.delete()
        self._state = None
