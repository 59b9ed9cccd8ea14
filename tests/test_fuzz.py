"""Every public entry on 2,000 inputs that Hypothesis makes up, the same ones each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parent / "fuzz.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(FUZZ.parents[1])}


def test_every_entry_gives_a_result_or_a_clear_error() -> None:
    """In a process of its own: under pytest, annotations are checked before the errors of the library can be raised."""
    command = [sys.executable, str(FUZZ), "--inputs", "2000", "--derandomize"]
    done = subprocess.run(command, cwd=FUZZ.parents[1], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 kinds of failure, 0 problems" in done.stdout
