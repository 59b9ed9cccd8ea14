"""Use of a model in a child that was forked from its process: an error instead of a wait for ever."""

from __future__ import annotations

import os


def check_process(pid: int) -> None:
    """RuntimeError in any process but `pid`. A forked child has the memory of its parent and none of its threads."""
    if os.getpid() != pid:
        raise RuntimeError(
            "this model belongs to the process that loaded it, and cannot be used in a forked child: load it in the "
            'child, which is to be started afresh (multiprocessing.get_context("spawn"))'
        )
