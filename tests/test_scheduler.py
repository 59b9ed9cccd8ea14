"""The scheduler under random arrivals, cancels, stops and failures: see tests/scheduler_steps.py."""

from __future__ import annotations

import os

import scheduler_steps

STEPS = int(os.environ.get("SCHEDULER_STEPS", "30000"))  # a million by SCHEDULER_STEPS=1000000


def test_every_answer_is_that_of_its_request_alone() -> None:
    counts = scheduler_steps.run(STEPS)
    ends = ("stop", "length", "cancelled", "error NotFiniteError", "error MemoryError", "error ZeroDivisionError")
    failures = ("error TypeError", "error JaxRuntimeError")
    for what in ("requests", "reused tokens", *ends, *failures):  # otherwise it shows little
        assert counts[what] > STEPS // 10_000, what
    assert sum(counts[what] for what in (*ends, *failures)) == counts["requests"]
