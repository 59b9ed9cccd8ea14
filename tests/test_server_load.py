"""The load of tests/server_load.py, in small, in a process of its own: it counts what a process holds."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import xla_flags
from small_models import random_params
from test_api import CONFIG

from gemma_tpu.checkpoint import save_params


def test_every_answer_is_as_alone_and_nothing_is_left(tmp_path: Path) -> None:
    config, checkpoint = dataclasses.replace(CONFIG, max_context=2048), tmp_path / "checkpoint"
    tokenizer = (Path(__file__).parent / "goldens/text/tokenizer.model").read_bytes()
    save_params(random_params(config), config, checkpoint, tokenizer=tokenizer)
    command = [sys.executable, "-m", "tests.server_load", "--requests", "200", "--in-flight", "8", "--pool", "33"]
    command += ["--max-rows", "12"]  # more than are in flight, so that some are found again
    environment = os.environ | xla_flags.PROCESS
    done = subprocess.run(
        [*command, "--checkpoint", str(checkpoint)], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every answer as alone, nothing left over" in done.stdout
    assert re.search(r"[1-9]\d* tokens from the cache", done.stdout), done.stdout
