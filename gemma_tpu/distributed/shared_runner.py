"""The runner of an engine (gemma_tpu.engine.runner) where several processes share a mesh: each runs every step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax

from gemma_tpu.deployment import Deployment
from gemma_tpu.distributed.group import Group, Held, OnFailure
from gemma_tpu.engine.runner import Runner
from gemma_tpu.engine.step import Drawn, Step
from gemma_tpu.model import Params


class SharedRunner(Runner):
    """What each process has of a runner that they share."""

    _whole = True


def _open(held: Held, key: int, deployment: Deployment, options: dict[str, Any]) -> None:
    held[key] = SharedRunner(deployment, held[key], **options)


def _call(held: Held, key: int, method: str, *args: Any) -> None:
    getattr(held[key], method)(*args)


class LeadingRunner(SharedRunner):
    """Process 0's, which sends the others what it does. What is for a caller lies on one device of this process.

    `on_failure` is called, from another thread, when a process has been lost and calls may never end.
    """

    def __init__(
        self, group: Group, key: int, deployment: Deployment, params: Params, on_failure: OnFailure, **options: Any
    ) -> None:
        self._group, self._key, self._on_failure, self._program_failed = group, key, on_failure, False
        with group.together("tell", _open, key, deployment, options):
            super().__init__(deployment, params, **options)
        group.watch(on_failure)

    def _sent(self, method: str, *args: Any) -> contextlib.AbstractContextManager[None]:
        return self._group.together("tell", _call, self._key, method, *args)

    def reset(self) -> None:
        if self._program_failed:  # it may be running elsewhere, waiting for this process
            self._group.fail("a program failed, and several processes cannot start afresh: restart them all")
        with self._sent("reset"):
            super().reset()

    def run(self, step: Step) -> Drawn | None:
        if step.empty:
            return None
        with self._sent("run", step):
            return super().run(step)

    def logits(self, *args: Any) -> tuple[jax.Array, jax.Array]:
        with self._sent("logits", *args):
            logits, good = super().logits(*args)
        return logits.addressable_data(0), good.addressable_data(0)

    def compile_logits(self, *args: int) -> None:
        with self._sent("compile_logits", *args):
            pass  # the others begin now; XLA for GPUs shares what it tries out between the processes that compile
        super().compile_logits(*args)

    def attention(self, *args: Any) -> tuple[jax.Array, ...]:
        with self._sent("attention", *args):
            layers = super().attention(*args)
        return tuple(weights.addressable_data(0) for weights in layers)

    def compile_attention(self, *args: int) -> None:
        with self._sent("compile_attention", *args):
            pass  # as above
        super().compile_attention(*args)

    def logprobs(self, *args: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        with self._sent("logprobs", *args):
            scores, tokens, top = super().logprobs(*args)
        return scores.addressable_data(0), tokens.addressable_data(0), top.addressable_data(0)

    def compile_logprobs(self, *args: int) -> None:
        with self._sent("compile_logprobs", *args):
            pass  # as above
        super().compile_logprobs(*args)

    def soft_tokens(self, digests: Sequence[bytes]) -> list[jax.Array]:
        return [array.addressable_data(0) for array in super().soft_tokens(digests)]

    def explained(self, error: Exception) -> Exception:
        if not isinstance(error, jax.errors.JaxRuntimeError):
            return super().explained(error)
        self._program_failed = True
        return self._group.loss() or super().explained(error)

    def close(self) -> None:
        self._group.forget(self._on_failure)
        with contextlib.suppress(RuntimeError), self._group.together("tell", dict.pop, self._key, None):
            super().close()
