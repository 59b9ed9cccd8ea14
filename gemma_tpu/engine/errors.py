"""Errors that callers of an engine may be given."""

from __future__ import annotations

import os

import numpy as np
from jaxtyping import Bool


class ContextLengthError(ValueError):
    """A prompt that leaves no room for an answer."""


class ProcessesLostError(RuntimeError):
    """Several processes run a model and one is lost. The message says which, and what to do."""


class ModelClosedError(RuntimeError):
    """The model was closed, or let go of, before what it was asked for was done."""


class NotFiniteError(RuntimeError):
    """Logits that are NaN or infinity. `where` is in a request; `dtype` that of the weights."""

    def __init__(self, where: str, dtype: np.dtype) -> None:
        said = f"the model's logits are NaN or infinity {where}: its weights are damaged"
        super().__init__(
            said + ("" if dtype == np.float32 else f', or overflow in {dtype} (load with dtype="float32")')
        )


def require_finite(rows: Bool[np.ndarray, "B"], dtype: np.dtype) -> None:
    """`NotFiniteError` naming the first row whose logits are not."""
    if bad := np.flatnonzero(~rows).tolist():
        raise NotFiniteError(f"in row {bad[0]}", dtype)


def check_process(pid: int) -> None:
    """RuntimeError in any process but `pid`. A forked child has the memory of its parent and none of its threads."""
    if os.getpid() != pid:
        raise RuntimeError(
            "this model belongs to the process that loaded it, and cannot be used in a forked child: load it in the "
            'child, which is to be started afresh (multiprocessing.get_context("spawn"))'
        )
