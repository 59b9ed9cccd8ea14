"""Steps as calls of the device programs, on parameters, a state and soft tokens that lie on a mesh.

A step is host values alone, and only tokens are ever read back. So processes that share a mesh stay in lockstep by
running the same steps (gemma_tpu.distributed.processes).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gemma_tpu.cache.layer import Pages
from gemma_tpu.cache.state import State
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine import attention_weights, programs, speculation
from gemma_tpu.engine.forward import in_32_bits, number_soft_tokens
from gemma_tpu.engine.row_params import mask_arrays, recent_tokens, row_params, token_counts
from gemma_tpu.engine.step import Activate, Clear, Copy, Decode, Drawn, Encode, Prefill, Step
from gemma_tpu.model import Params

PAGES_OF_COPY = 64  # that one call copies


class Runner:
    """One model on a mesh. To be `reset` before anything else, and called by one thread at a time."""

    _whole = False  # whether each process of a mesh is to have all of what is for a caller

    def __init__(self, deployment: Deployment, params: Params, *, max_steps: int) -> None:
        # The decoder's programs and the vision tower's each take only their own arrays: fewer to hand over at a call.
        self._text_params = {name: value for name, value in params.items() if not name.startswith("vision.")}
        self._vision_params = {name: value for name, value in params.items() if name.startswith("vision.")}
        self._abstract_params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self._text_params
        )
        self._deployment, self._max_steps = deployment, max_steps
        self._static = {"deployment": deployment.text}
        self._state: State | None = None
        self.ahead: Any = None  # what compiled or is compiling the programs, if anything does: an `Ahead`

    @in_32_bits
    def reset(self) -> None:
        """An empty state in the place of the old one, and no image known."""
        self._free_state()
        self._state = self._call(programs.init_state, **self._static)
        self._soft_tokens: dict[bytes, jax.Array] = {}
        if self._deployment.config.vision:
            self._blank = self._call(programs.blank_image, deployment=self._deployment)

    @in_32_bits
    def run(self, step: Step) -> Drawn | None:
        """Has the device do a step. What it draws, if it decodes: whole on every device, and on its way here.

        After a step that prefills and does not decode, the tokens are those of no row: they come when it is done.
        """
        for row in step.release:
            self._state = self._call(programs.release, self._state, np.int32(row), **self._static)
        for one in step.before:
            self._change_hands(one)
        for images in step.encode:
            self._encode(images)
        for chunk in step.prefill:
            self._prefill(chunk)
        for one in step.after:
            self._change_hands(one)
        for row in step.activate:
            self._activate(row)
        drawn = self._decode(step.decode) if step.decode else Drawn(self._done) if step.prefill else None
        for digest in step.forget:
            self._soft_tokens.pop(digest, None)
        return drawn

    def soft_tokens(self, digests: Sequence[bytes]) -> list[jax.Array]:
        """[soft, D] of each image, encoded before."""
        return [self._soft_tokens[digest] for digest in digests]

    @in_32_bits
    def logits(
        self, tokens: np.ndarray, lengths: np.ndarray, kept: np.ndarray, images: Sequence[bytes], /
    ) -> tuple[jax.Array, jax.Array]:
        """float32[B, K, V]: the plain path's logits at positions int32[B, K]; bool[B]: whether a row's are finite.

        `tokens` int32[B, T], `lengths` int32[B]; the `images` have been encoded.
        """
        soft = tuple(self._soft_tokens[digest] for digest in images)
        args = (self._text_params, tokens, lengths, soft, number_soft_tokens(tokens))
        x = programs.whole_sequences(*args, **self._static)
        return programs.head(self._text_params, x, kept, whole=self._whole, **self._static)

    @in_32_bits
    def compile_logits(self, rows: int, tokens: int, kept: int, images: int, /) -> None:
        """Compiles what `logits` of B × T tokens at B × K positions runs. From any thread."""
        x = self._compile_sequences(rows, tokens, images)
        args = (x, jax.ShapeDtypeStruct((rows, kept), np.int32))
        programs.head.lower(self._abstract_params, *args, whole=self._whole, **self._static).compile()

    @in_32_bits
    def attention(
        self, tokens: np.ndarray, lengths: np.ndarray, at: np.ndarray, images: Sequence[bytes], /
    ) -> tuple[jax.Array, ...]:
        """Of each layer float32[B, K, N, T]: the plain path's attention weights at positions int32[B, K].

        Arguments as of `logits`.
        """
        soft = tuple(self._soft_tokens[digest] for digest in images)
        args = (self._text_params, tokens, lengths, soft, number_soft_tokens(tokens), at)
        return attention_weights.attention(*args, whole=self._whole, **self._static)

    @in_32_bits
    def compile_attention(self, rows: int, tokens: int, kept: int, images: int, /) -> None:
        """Compiles what `attention` of B × T tokens at B × K positions runs. From any thread."""
        args = (*self._abstract_sequences(rows, tokens, images), jax.ShapeDtypeStruct((rows, kept), np.int32))
        attention_weights.attention.lower(*args, whole=self._whole, **self._static).compile()

    @in_32_bits
    def logprobs(
        self, tokens: np.ndarray, lengths: np.ndarray, images: Sequence[bytes], /
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of the tokens int32[1, T] of a prompt after its first: `programs.score`. The `images` have been encoded."""
        soft = tuple(self._soft_tokens[digest] for digest in images)
        args = (self._text_params, tokens, lengths, soft, number_soft_tokens(tokens))
        x = programs.whole_sequences(*args, **self._static)
        return programs.score(self._text_params, x, np.roll(tokens, -1, axis=1), **self._static)

    @in_32_bits
    def compile_logprobs(self, tokens: int, images: int, /) -> None:
        """Compiles what `logprobs` of T tokens runs. From any thread."""
        x = self._compile_sequences(1, tokens, images)
        shape = jax.ShapeDtypeStruct((1, tokens), np.int32)
        programs.score.lower(self._abstract_params, x, shape, **self._static).compile()

    def _compile_sequences(self, rows: int, tokens: int, images: int) -> jax.ShapeDtypeStruct:
        """Compiles `programs.whole_sequences`; returns what that gives."""
        programs.whole_sequences.lower(*self._abstract_sequences(rows, tokens, images), **self._static).compile()
        return self._on_all((rows, tokens, self._deployment.config.embed_dim))

    def _abstract_sequences(self, rows: int, tokens: int, images: int) -> tuple[Any, ...]:
        """Parameters and whole sequences, as the programs take them that read those."""
        d, shape = self._deployment, functools.partial(jax.ShapeDtypeStruct, dtype=np.int32)
        image = self._on_all((d.num_soft_tokens, d.config.embed_dim))
        return (self._abstract_params, shape((rows, tokens)), shape((rows,)), (image,) * images, shape((rows, tokens)))

    def _on_all(self, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        """Of an array that is whole on every device."""
        whole = NamedSharding(self._deployment.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, self._deployment.dtype, sharding=whole)

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
            "the devices have no room for weights, caches and programs together: load with a smaller max_context or "
            "max_rows, text_only, or on more devices (`gemma-tpu plan` says what fits). It was "
            + str(error).strip().splitlines()[0]
        )
        short.__cause__ = error
        return short

    def close(self) -> None:
        """Frees device memory."""
        self._text_params, self._vision_params, self._soft_tokens = {}, {}, {}
        self._free_state()

    # The calls of a step.

    def _call(self, program: Any, *args: Any, **static: Any) -> Any:
        if self.ahead and (compiled := self.ahead.compiled(program, args, static)):
            return compiled(*args)
        return program(*args, **static)

    def _encode(self, images: Encode) -> None:
        encoded = self._call(programs.encode, self._vision_params, images.pixels, deployment=self._deployment)
        self._soft_tokens |= zip(images.digests, encoded, strict=True)

    def _prefill(self, chunk: Prefill) -> None:
        shown = tuple(self._blank if digest is None else self._soft_tokens[digest] for digest in chunk.images)
        soft = self._call(programs.stack, shown, **self._static) if shown else None
        args = (self._text_params, self._state, chunk.rows, chunk.tokens, chunk.start, chunk.count)
        more = soft, chunk.soft_index, Pages(*chunk.pages)
        self._state, self._done = self._call(programs.prefill, *args, *more, fresh=chunk.fresh, **self._static)
        self._done.copy_to_host_async()

    def _change_hands(self, one: Clear | Copy) -> None:
        self._copy(one) if isinstance(one, Copy) else self._clear(one)

    def _clear(self, clear: Clear) -> None:
        row = self._deployment.rows if clear.row is None else clear.row
        pages = np.zeros(self._deployment.pages, bool)
        pages[list(clear.pages)] = True
        self._state = self._call(programs.clear, self._state, np.int32(row), pages, **self._static)

    def _copy(self, copy: Copy) -> None:
        size = self._deployment.page
        first = -(-copy.length // size) - len(copy.source_pages)
        for i in range(0, len(copy.source_pages), PAGES_OF_COPY):
            source, target = np.zeros((2, PAGES_OF_COPY), np.int32)
            target += self._deployment.pages  # of which there are none
            some = copy.source_pages[i : i + PAGES_OF_COPY], copy.target_pages[i : i + PAGES_OF_COPY]
            source[: len(some[0])], target[: len(some[1])] = some
            left = np.int32(copy.length - (first + i) * size)
            self._state = self._call(programs.copy_pages, self._state, source, target, left, **self._static)
        ends = np.int32(copy.source), np.int32(copy.target), np.int32(copy.length)
        self._state = self._call(programs.copy_rings, self._state, *ends, kind=copy.kind, **self._static)

    def _activate(self, row: Activate) -> None:
        numbers = (np.int32(value) for value in (row.row, row.length, row.last, row.remaining))
        params = row_params(row, self._deployment.config.vocab_size)
        text = None
        if self._deployment.looks_up:
            text = np.zeros(self._deployment.context, np.int32)
            if row.text is not None:
                text[: len(row.text)] = row.text
        args = self._state, *numbers, params, recent_tokens(row)
        self._state = self._call(programs.activate, *args, text, **self._static)
        if row.history:
            counts = token_counts(row.history, self._deployment.config.vocab_size)
            self._state = self._call(programs.set_counts, self._state, np.int32(row.row), counts, **self._static)

    def _decode(self, decode: Decode) -> Drawn:
        rows, steps = None, np.zeros(self._deployment.rows, np.int32)
        steps[list(decode.rows)] = decode.steps
        if decode.picked is not None:
            rows = np.array(decode.picked, np.int32)
            steps = steps[rows]
        if decode.masks is not None:
            masks = mask_arrays(decode.masks, self._deployment.rows, self._deployment.config.vocab_size)
            self._state = self._call(programs.allow, self._state, *masks, **self._static)
        args = (self._text_params, self._state, rows, steps, Pages(*decode.pages))
        program = speculation.decode if self._deployment.draft_tokens else programs.decode
        self._state, drawn = self._call(program, *args, max_steps=self._max_steps, **self._static)
        if decode.count:
            self._state = self._call(programs.count_tokens, self._state, rows, drawn.tokens, **self._static)
        drawn = drawn if decode.logprobs else Drawn(drawn.tokens, guesses=drawn.guesses)
        for array in jax.tree.leaves(drawn):
            array.copy_to_host_async()
        return drawn

    def _free_state(self) -> None:
        """At once, though an error that is still held may refer to it: two have no room."""
        for array in jax.tree.leaves(self._state):
            array.delete()
        self._state = None
