"""docs/images/request_path.svg: shows the modules that a request enters today, in their own words."""

from __future__ import annotations

import os
import subprocess
import sys

from docs.request_path import PICTURE, ROOT, modules


def test_the_picture_is_what_the_command_draws_today() -> None:
    """In a process of its own, without shape checks and simulated devices. Threads may meet in another order."""
    code = "from docs.request_path import draw, record; print(draw(record()))"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn, shown = done.stdout, PICTURE.read_text(encoding="utf-8")
    assert set(modules(drawn)) == set(modules(shown)), "make pictures"
    texts = [{line.split(">")[1] for line in svg.splitlines() if line.startswith("<text") and "class" not in line}
             for svg in (drawn, shown)]  # fmt: skip
    assert texts[0] == texts[1], "make pictures"
