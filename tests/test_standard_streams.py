"""Commands whose standard streams are closed, full, or left by their reader."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xla_flags

from gemma_tpu.cli.main import main

GENERATE = ["generate", "gemma3-demo", "Hello", "--max-new-tokens", "3", "--mesh", "1,8"]


def shell(redirected: str, *command: str, **options) -> subprocess.CompletedProcess[str]:
    line = ["sh", "-c", f'"$@" {redirected}', "sh", sys.executable, *command]
    environment = os.environ | xla_flags.PROCESS | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(line, capture_output=True, text=True, env=environment, **options)


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Else what libraries write on standard error would be written into it."""
    program = """
import os, sys
from gemma_tpu.cli import standard_streams
standard_streams.occupy()
with open(sys.argv[1], "w") as file:
    os.write(2, b"a log")
    print("a warning", file=sys.stderr, flush=True)
    file.write(str(file.fileno() > 2))
"""
    assert shell("<&- >&- 2>&-", "-c", program, str(tmp_path / "file")).returncode == 0
    assert (tmp_path / "file").read_text() == "True"


def test_without_standard_error(tmp_path: Path) -> None:
    done = shell("2>&-", "-m", "gemma_tpu", "convert", "gemma3-demo", str(tmp_path / "dst"), "--to", "safetensors")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/dst\n")


@pytest.mark.parametrize("command", [GENERATE, ["info", "gemma3-demo"]])
def test_an_answer_without_standard_error(command, monkeypatch, capsys) -> None:
    assert main(command) == 0
    expected = capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", None)
        assert main(command) == 0
        assert main([command[0], "/nothere", *command[2:]]) == 1
        sys.stderr.close()
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("read", [["-"], ["Hello", "--image", "-"]])
def test_closed_standard_input(read, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["generate", "gemma3-demo", *read]) == 1
    assert capsys.readouterr() == ("", "gemma-tpu: standard input is closed: there is nothing to read there\n")


@pytest.mark.parametrize("command", [GENERATE, ["chat", "gemma3-demo"], ["info", "gemma3-demo"]])
def test_closed_standard_output(command, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", None)
        assert main(command) == 1
    assert capsys.readouterr().err == "gemma-tpu: standard output is closed: there is no place for the answer\n"


@pytest.mark.parametrize(
    "command", [GENERATE, [*GENERATE, "--json"], ["chat", *GENERATE[1:2], *GENERATE[3:]], ["info", "gemma3-demo"]]
)
def test_standard_output_that_is_full(command, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full := open("/dev/full", "w"))  # noqa: SIM115
        assert main(command) == 1
        assert sys.stdout is not full
        sys.stdout.close()
    with pytest.raises(OSError, match="No space left"):
        full.close()
    assert capsys.readouterr().err == "gemma-tpu: standard output cannot be written: No space left on device\n"


def test_a_full_disk_ends_with_one_line() -> None:
    done = shell(">/dev/full", "-m", "gemma_tpu", "info", "gemma3-demo")
    error = "gemma-tpu: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, error)


def test_a_reader_that_has_gone_is_no_error() -> None:
    done = shell("| true", "-m", "gemma_tpu", "info", "gemma3-demo")
    assert (done.stdout, done.stderr) == ("", "")
