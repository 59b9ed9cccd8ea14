"""Every public entry on inputs that Hypothesis makes up: wrong types, values at the edges, damaged files.

`python tests/fuzz.py --inputs 100000` prints a table of the entries. What an entry may do with an input: give a result,
or raise ValueError (CheckpointError is one) with a message in one line, within `SECONDS`, and without a warning but
CheckpointWarning and what Pillow says of damaged images. Afterwards the model answers as before, and no thread, row or
request is left.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import logging
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tqdm
from fuzz_entries import Bench, entries
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gemma_tpu.checkpoint import CheckpointWarning

SECONDS = 60  # of one input
FAILURES_SHOWN = 12


class _TooLong(BaseException):
    pass


@dataclasses.dataclass
class Tally:
    inputs: int = 0
    results: int = 0
    errors: int = 0
    slowest: float = 0.0
    failures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)


def attempt(call: Callable[[Any], object], given: Any, tally: Tally) -> None:
    """Calls, and notes what came of it."""

    def alarm(*_: object) -> None:
        raise _TooLong

    def fail(what: str, detail: str = "") -> None:
        tally.failures[what] += 1
        try:
            shown = repr(given)
        except Exception:
            shown = "(something odd)"
        tally.examples.setdefault(what, f"{shown[:300]}\n{detail}")

    tally.inputs += 1
    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(given)
        tally.results += 1
    except ValueError as error:
        tally.errors += 1
        if "\n" in str(error) or not str(error) or len(str(error)) > 4000:
            fail(f"message of {len(str(error).splitlines())} lines, {len(str(error))} characters", str(error)[:300])
        if type(error) is not ValueError and type(error).__module__.split(".")[0] != "gemma_tpu":
            fail(f"{type(error).__name__}: {str(error)[:60]}", "".join(traceback.format_exception(error)[-3:]))
    except _TooLong as error:
        fail(f"no end within {SECONDS} s", "".join(traceback.format_exception(error)[-3:]))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in where if "/gemma_tpu/" in frame.filename] or where
        line = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        fail(f"{type(error).__name__} at {line}", "".join(traceback.format_exception(error)[-4:])[-900:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    tally.slowest = max(tally.slowest, time.perf_counter() - start)
    for warning in caught:
        theirs = "gemma_tpu" not in warning.filename and issubclass(warning.category, DeprecationWarning)
        of_pillow = "PIL" in warning.filename or warning.filename.endswith("gemma_tpu/image.py")
        if not issubclass(warning.category, CheckpointWarning) and not of_pillow and not theirs:
            fail(f"{warning.category.__name__}: {str(warning.message)[:60]}", warning.filename)


def tries(count: int, strategy: st.SearchStrategy[Any], call: Callable[[Any], object], derandomize: bool) -> Tally:
    """What came of `count` calls."""
    tally = Tally()

    @settings(
        max_examples=count,
        derandomize=derandomize,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(value=strategy)
    def run(value: Any) -> None:
        attempt(call, value, tally)

    run()
    return tally


def fuzz(inputs: int, *, derandomize: bool = False, only: str = "") -> tuple[dict[str, Tally], list[str]]:
    """A tally for each entry, and what was wrong in the end."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="gemma-tpu-fuzz-") as folder:
        bench = Bench(Path(folder))
        expected, threads = bench.reference(), threading.active_count()
        table = {name: entry for name, entry in entries(bench).items() if only in name}
        shares = sum(share for share, _, _ in table.values())
        tallies = {
            name: tries(max(1, round(inputs * share / shares)), strategy, call, derandomize)
            for name, (share, strategy, call) in table.items()
        }
        problems = []
        if not bench.settled():
            problems.append("rows or requests are left")
        if bench.reference() != expected:
            problems.append("the model answers otherwise than before")
        end = time.monotonic() + 60
        while threading.active_count() > threads and time.monotonic() < end:
            time.sleep(0.05)
        if threading.active_count() > threads:
            problems.append(f"threads are left: {[thread.name for thread in threading.enumerate()]}")
        bench.model.close()
        return tallies, problems


def main() -> int:
    parser = argparse.ArgumentParser(description="Tries every public entry on inputs that Hypothesis makes up.")
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--derandomize", action="store_true", help="the same inputs each time")
    parser.add_argument("--entry", default="", help="only entries with this in their name")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    tqdm.tqdm.monitor_interval = 0  # a thread that outlives what it looks after
    start = time.monotonic()
    tallies, problems = fuzz(args.inputs, derandomize=args.derandomize, only=args.entry)
    print(f"{'entry':28} {'inputs':>7} {'results':>7} {'errors':>7} {'slowest':>8}  failures")
    for name, tally in tallies.items():
        failed = sum(tally.failures.values())
        print(f"{name:28} {tally.inputs:7} {tally.results:7} {tally.errors:7} {tally.slowest:6.2f} s  {failed}")
    failures = [(name, what, count) for name, tally in tallies.items() for what, count in tally.failures.items()]
    for name, what, count in failures[: 8 * FAILURES_SHOWN]:
        print(f"\n{name}: {what}, {count} times, as for {tallies[name].examples[what]}")
    for problem in problems:
        print(problem)
    total = sum(tally.inputs for tally in tallies.values())
    seconds = time.monotonic() - start
    print(f"{total} inputs in {seconds:.0f} s: {len(failures)} kinds of failure, {len(problems)} problems")
    return 1 if failures or problems else 0


if __name__ == "__main__":
    sys.exit(main())
