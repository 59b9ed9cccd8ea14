"""What the device does next, as host values alone: the scheduler plans a `Step`, and runners carry it out.

Processes that share a mesh run the same steps in the same order; steps are sent to them pickled.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from gemma_tpu.options import SamplingParams

NOT_FINITE = -2  # among the tokens read back: the row's logits were NaN or infinity, and it has ended


@dataclasses.dataclass(frozen=True, eq=False)
class Encode:
    """A call of the vision tower. `pixels` are in the dtype of the weights, as the tower would first make them."""

    digests: tuple[bytes, ...]
    pixels: Float[np.ndarray, "I side side 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Prefill:
    """Arguments of `gemma_tpu.engine.programs.prefill`.

    `images` are the digests of those that `soft_index` counts, and None up to as many as the call has room for.
    """

    rows: Int[np.ndarray, "B"] | None
    tokens: Int[np.ndarray, "B T"]
    start: Int[np.ndarray, "B"]
    count: Int[np.ndarray, "B"]
    images: tuple[bytes | None, ...]
    soft_index: Int[np.ndarray, "B T"]
    fresh: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Activate:
    """Lets a row of `length` cached tokens decode: what to feed next, how many tokens may come, how they are drawn.

    `sampling`: the fields of `gemma_tpu.ops.sampling.Sampling`. `forbidden`: ids, fewer bytes than a mask of them all.
    """

    row: int
    length: int
    last: int
    remaining: int
    sampling: dict[str, np.ndarray]
    stop: Int[np.ndarray, "stop"]
    forbidden: Int[np.ndarray, "forbidden"]


_KINDS = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "min_p": np.float32}


def activate(row: int, length: int, last: int, remaining: int, params: SamplingParams, stop: Sequence[int]) -> Activate:
    """With the numbers of `params` as arrays; raises what is wrong with them."""
    sampling = {name: np.array([getattr(params, name)], kind) for name, kind in _KINDS.items()}
    sampling["seed"] = np.array([secrets.randbits(32) if params.seed is None else params.seed], np.uint32)
    ids = np.array(stop, np.int32), np.array(params.forbidden_tokens, np.int32)
    return Activate(row, length, last, remaining, sampling, *ids)


@dataclasses.dataclass(frozen=True)
class Decode:
    """Up to `steps` tokens for each of `rows`. `alone`: the program runs on this one row, not on the whole batch."""

    rows: tuple[int, ...]
    steps: int
    alone: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Calls of the device, in the order of the fields.

    `clear` empties rows, `release` stops rows that decode, `forget` drops the soft tokens of images.
    """

    clear: tuple[int, ...] = ()
    release: tuple[int, ...] = ()
    encode: tuple[Encode, ...] = ()
    prefill: tuple[Prefill, ...] = ()
    activate: tuple[Activate, ...] = ()
    decode: Decode | None = None
    forget: tuple[bytes, ...] = ()

    @property
    def empty(self) -> bool:
        return not any(vars(self).values())
