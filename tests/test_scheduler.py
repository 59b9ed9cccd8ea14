"""The scheduler under random arrivals, cancels, stops and failures: see tests/scheduler_steps.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import scheduler_steps

STEPS = int(os.environ.get("SCHEDULER_STEPS", "500000"))


def check(counts: dict[str, int]) -> None:
    ends = ("stop", "length", "cancelled", "error NotFiniteError", "error MemoryError")
    ends += ("error ZeroDivisionError", "error ArithmeticError")
    failures = ("error TypeError", "error JaxRuntimeError")
    assert all(counts[what] for what in ("reused tokens", *ends, *failures)), counts  # otherwise it shows little
    assert sum(counts[what] for what in (*ends, *failures)) == counts["requests"]


def test_every_answer_is_that_of_its_request_alone() -> None:
    """In a process of its own, where annotations are not checked at each call: ten times as many operations."""
    command = [sys.executable, "-m", "tests.scheduler_steps", "--steps", str(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    check(json.loads(done.stdout.splitlines()[0]))


def test_planning_needs_no_jax() -> None:
    program = "import sys, gemma_tpu.engine.scheduler; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=True)


def test_annotations_hold() -> None:
    check(scheduler_steps.run(10_000))
