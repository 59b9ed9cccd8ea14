"""The scheduler under random arrivals, cancels, stops and failures: see tests/scheduler_steps.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import scheduler_steps

from gemma_tpu.engine.memory import CacheMemory
from gemma_tpu.engine.request import Request
from gemma_tpu.engine.scheduler import Scheduler
from gemma_tpu.engine.step import Drawn
from gemma_tpu.options import SamplingParams

STEPS = int(os.environ.get("SCHEDULER_STEPS", "150000"))


def check(counts: dict[str, int]) -> None:
    ends = ("stop", "length", "cancelled", "timeout", "error NotFiniteError", "error MemoryError")
    ends += ("error ZeroDivisionError", "error ArithmeticError")
    failures = ("error TypeError", "error JaxRuntimeError")
    assert all(counts[what] for what in ("reused tokens", "prompts waited for", *ends, *failures)), (
        counts
    )  # otherwise it shows little
    assert sum(counts[what] for what in (*ends, *failures)) == counts["requests"]


def test_every_answer_is_that_of_its_request_alone() -> None:
    """In a process of its own, where annotations are not checked at each call: ten times as many operations."""
    command = [sys.executable, "-m", "tests.scheduler_steps", "--steps", str(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    check(json.loads(done.stdout.splitlines()[0]))


def make_scheduler(rows: int) -> Scheduler:
    return Scheduler(
        memory=CacheMemory(rows, 300, 4, rings=[(8, 8)]),
        context=256,
        prefill_sizes=(16, 48),
        prefill_rows=1,
        num_soft_tokens=0,
        steps_per_call=1,
        together=True,
        few=(),
        eos_tokens=(),
        dtype=np.dtype(np.float32),
        image_batches=(1,),
        remembered_images=1,
    )


def test_who_waits_for_a_longer_prompt_is_not_later_for_it() -> None:
    """The chunks of prompts of 200, 60 and 100 tokens: the second begins with 40 tokens of the first."""
    scheduler = make_scheduler(3)
    for tokens in (range(200), [*range(40), *range(900, 920)], range(300, 400)):
        scheduler.waiting.append(Request(list(tokens), [], SamplingParams()))
    planned = [scheduler.plan(0).prefill for _ in range(4)]
    chunks = [(chunk.rows.tolist(), int(chunk.start[0]), int(chunk.count[0])) for (chunk,) in planned]
    assert chunks == [([0], 0, 40), ([1], 40, 19), ([2], 0, 48), ([0], 40, 48)]


def test_a_request_ends_when_its_time_is_up_in_its_row_and_in_the_queue() -> None:
    scheduler = make_scheduler(1)
    running, waiting, last = (
        Request([5, 6, 7], [], SamplingParams(timeout=timeout, seed=0)) for timeout in (60, 30.5, None)
    )
    for request in (running, waiting, last):
        scheduler.waiting.append(request)
    step = scheduler.plan(waiting.deadline - 0.001)
    assert step.decode is not None
    assert [*scheduler.waiting] == [waiting, last]
    scheduler.commit(step, Drawn(np.array([[8]])))
    under_way = scheduler.plan(waiting.deadline)
    assert (waiting.finish_reason, waiting.generated, running.finish_reason) == ("timeout", [], None)
    assert scheduler.plan(running.deadline).decode is None
    assert scheduler.running == [running]  # until what is being written has been read
    scheduler.commit(under_way, Drawn(np.array([[9]])))
    step = scheduler.plan(running.deadline)
    assert (running.finish_reason, list(running)) == ("timeout", [[8], [9]])
    assert scheduler.running == [last]
    assert scheduler.occupancy().needed == 1
    assert step.decode is not None
    assert scheduler.plan(1e9).decode is not None  # who has none is never late


def test_planning_needs_no_jax() -> None:
    program = "import sys, gemma_tpu.engine.scheduler; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=True)


def test_annotations_hold() -> None:
    check(scheduler_steps.run(10_000, seed=20))
