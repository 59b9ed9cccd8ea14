"""`gemma-tpu completion`: what bash completes with the script that it prints, and that zsh takes it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gemma_tpu.cli.main import main
from gemma_tpu.cli.parser import command_names
from gemma_tpu.config import CONFIGS

BASH = """
eval "$1"; shift
read -ra registered <<< "$(complete -p gemma-tpu)"  # complete … -F FUNCTION gemma-tpu
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
"${registered[-2]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model-a").mkdir()
    (tmp_path / "model-b.json").write_text("")
    monkeypatch.chdir(tmp_path)


def script(shell: str, capsys: pytest.CaptureFixture) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def complete(script: str, *words: str) -> list[str]:
    command = ["bash", "--norc", "-c", BASH, "bash", script, "gemma-tpu", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return sorted(done.stdout.split())


@pytest.mark.usefixtures("files")
def test_bash(capsys: pytest.CaptureFixture) -> None:
    text = script("bash", capsys)
    everything, directories = ["model-a", "model-b.json"], ["model-a"]
    for words, expected in (
        ([""], command_names()),
        (["gen"], ["generate"]),
        (["chat", "mod"], everything),
        (["chat", "--text-only", "mod"], everything),
        (["plan", "mod"], everything),
        (["convert", "mod"], everything),
        (["convert", "model-a", "mod"], directories),
        (["bench", "--checkpoint", "mod"], everything),
        (["generate", "model-a", "Hello", "--image", "mod"], everything),
        (["generate", "model-a", "Hello", "--adapter", "mod"], directories),
        (["generate", "model-a", "Hello", "--top"], ["--top-k", "--top-p"]),
        (["info", "model-a", "--top"], []),
        (["verify", "model-a", "--against", ""], ["gemma", "transformers"]),
        (["bench", "--model", ""], sorted(CONFIGS)),
        (["bench", "serve", "mod"], everything),
        (["chat", "model-a", "--dtype", ""], ["auto", "bfloat16", "float32"]),
    ):
        assert complete(text, *words) == expected, words


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_takes_the_script(capsys: pytest.CaptureFixture) -> None:
    """What it completes can be asked at a terminal alone."""
    program = 'autoload -U compinit; compinit -u -D; eval "$1"; print $_comps[gemma-tpu]; whence -w $_comps[gemma-tpu]'
    command = ["zsh", "-f", "-c", program, "zsh", script("zsh", capsys)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("_shtab_gemma_tpu\n_shtab_gemma_tpu: function\n", "")
