"""Errors of the processes that a model runs in: one is lost, or is a forked child that cannot use it."""

from __future__ import annotations

import os


class ProcessesLostError(RuntimeError):
    """Several processes run a model and one is lost. The message says which, and what to do."""


def check_process(pid: int) -> None:
    """RuntimeError in any process but `pid`. A forked child has the memory of its parent and none of its threads."""
    if os.getpid() != pid:
        raise RuntimeError(
            "this model belongs to the process that loaded it, and cannot be used in a forked child: load it in the "
            'child, which is to be started afresh (multiprocessing.get_context("spawn"))'
        )
