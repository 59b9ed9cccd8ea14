"""The soak of benchmarks/soak.py, in small, in a process of its own: it counts what a process holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys


def test_every_answer_is_as_alone_and_nothing_is_left() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--requests", "60", "--threads", "8", "--failures", "5"]
    environment = os.environ | {"XLA_FLAGS": ""}  # one device
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every answer as alone, nothing left over" in done.stdout
    assert re.search(r"[1-5] failures injected", done.stdout)  # by chance at each call: five are the most
