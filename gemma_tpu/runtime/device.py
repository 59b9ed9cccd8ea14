"""The device's side of an engine: parameters, state and soft tokens on a mesh, and the calls that change them.

A call is given host values alone (numbers, numpy arrays, digests of images), and only tokens are ever read back. So
processes that share a mesh are in step if they make the same calls in the same order (gemma_tpu.runtime.distributed).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from gemma_tpu.config import GemmaConfig
from gemma_tpu.model import Params
from gemma_tpu.runtime import programs
from gemma_tpu.runtime.forward import forward, in_32_bits
from gemma_tpu.runtime.programs import Controls


class Device:
    """One model on a mesh. To be `reset` before anything else, and called by one thread at a time."""

    def __init__(
        self,
        params: Params,
        *,
        config: GemmaConfig,
        mesh: Mesh,
        rows: int,
        context: int,
        dtype: jax.typing.DTypeLike,
        max_steps: int,
        min_rows: int,
    ) -> None:
        # The decoder's programs and the vision tower's each take only their own arrays: fewer to hand over at a call.
        self._text_params = {name: value for name, value in params.items() if not name.startswith("vision.")}
        self._vision_params = {name: value for name, value in params.items() if name.startswith("vision.")}
        self._config, self._mesh, self._rows, self._context, self._dtype = config, mesh, rows, context, dtype
        self._static = {"config": dataclasses.replace(config, vision=None), "mesh": mesh}
        self._decode_static = {"max_steps": max_steps, "min_rows": min_rows, **self._static}

    @in_32_bits
    def reset(self) -> None:
        """An empty state, and no image known."""
        self._state = programs.init_state(self._config, self._rows, self._context, self._dtype, self._mesh)
        self._soft_tokens: dict[bytes, jax.Array] = {}
        if vision := self._config.vision:
            shape = (vision.num_soft_tokens, self._config.embed_dim)
            self._blank = programs.blank_image(shape, self._dtype, self._mesh)

    @in_32_bits
    def encode(self, digests: Sequence[bytes], pixels: np.ndarray) -> None:
        """Keeps the soft tokens of float32[I, side, side, 3] under the images' digests."""
        encoded = programs.encode(self._vision_params, pixels, config=self._config, mesh=self._mesh)
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
        soft = programs.stack(shown, mesh=self._mesh) if shown else None
        args = (self._text_params, self._state, rows, tokens, start, count, soft, soft_index)
        self._state = programs.prefill(*args, fresh=fresh, **self._static)

    @in_32_bits
    def admit(self, row: int, length: int, last: int, remaining: int, controls: Controls) -> None:
        numbers = (np.int32(value) for value in (row, length, last, remaining))
        self._state = programs.admit(self._state, *numbers, controls, mesh=self._mesh)

    @in_32_bits
    def release(self, row: int) -> None:
        self._state = programs.release(self._state, np.int32(row), mesh=self._mesh)

    @in_32_bits
    def clear(self, row: int) -> None:
        self._state = programs.clear(self._state, np.int32(row), mesh=self._mesh)

    @in_32_bits
    def decode(self, rows: np.ndarray | None, steps: int) -> jax.Array:
        """int32[max_steps, B], whole on every device."""
        args = (self._text_params, self._state, rows, np.int32(steps))
        self._state, tokens = programs.decode(*args, **self._decode_static)
        return tokens

    @in_32_bits
    def logits(self, tokens: np.ndarray, lengths: np.ndarray, kept: np.ndarray, images: Sequence[bytes]) -> jax.Array:
        """float32[B, K, V]: the plain path's logits at positions int[B, K]. `images` have been encoded."""
        shown = tuple(self._soft_tokens[digest] for digest in images)
        soft = programs.stack(shown, mesh=self._mesh) if shown else None
        logits = forward(self._config, self._text_params, tokens, lengths, soft_tokens=soft)
        return programs.pick(logits, kept)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        jax.block_until_ready((self._state, self._soft_tokens))

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
        del self._state
