"""The command line as a user meets it: what it prints, its exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from small_models import random_params
from test_api import CONFIG

from gemma_tpu.checkpoint import open_checkpoint, save_params
from gemma_tpu.cli import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "checkpoint"
    tokenizer = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
    save_params(random_params(CONFIG), CONFIG, path, tokenizer=tokenizer)
    return path


def test_generate(checkpoint: Path, tmp_path: Path, capsys) -> None:
    picture = tmp_path / "picture.png"
    PIL.Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(picture)
    shared = ["generate", str(checkpoint), "Hello", "--image", str(picture), "--max-new-tokens", "5", "--mesh", "1,8"]
    assert main([*shared, "--json", "--seed", "3", "--temperature", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["usage"]["image_tokens"] == CONFIG.vision.num_soft_tokens
    assert 0 < len(answer["tokens"]) <= 5
    assert main([*shared, "--seed", "3", "--temperature", "1"]) == 0
    assert capsys.readouterr().out == answer["text"] + "\n"


def test_info(checkpoint: Path, capsys) -> None:
    assert main(["info", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == "orbax-flat"
    assert found["parameters"] == sum(value.size for value in random_params(CONFIG).values())
    assert main(["info", str(checkpoint)]) == 0
    assert "num_soft_tokens" in capsys.readouterr().out


def test_convert(checkpoint: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "hf"
    assert main(["convert", str(checkpoint), str(target), "--to", "safetensors"]) == 0
    assert open_checkpoint(target).config == CONFIG
    assert main(["convert", str(checkpoint), str(target), "--to", "safetensors"]) == 1
    assert str(target) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere/at/all"], "nowhere/at/all"),
        (["generate", "CHECKPOINT", "x", "--temperature", "-1"], "temperature must be at least 0"),
        (["generate", "CHECKPOINT", "x", "--image", "missing.png"], "missing.png"),
        (["generate", "CHECKPOINT", "x", "--raw", "--system", "y"], "--system"),
        (["generate", "CHECKPOINT", "x", "--source-lang", "cs"], "source_lang: an option for TranslateGemma; this"),
        (["generate", "CHECKPOINT", "x", "--tools", __file__], "test_cli.py: is no JSON"),
        (["download", "gemma9-1b"], "gemma3-27b-it"),
    ],
)
def test_errors_are_one_line(checkpoint: Path, arguments: list[str], message: str, capsys) -> None:
    assert main([str(checkpoint) if word == "CHECKPOINT" else word for word in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gemma-tpu: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_checkpoint_of_another_prompt_format(checkpoint: Path, tmp_path: Path, capsys) -> None:
    """The chat template beside the weights says that this is TranslateGemma."""
    relative = shutil.copytree(checkpoint, tmp_path / "relative")
    (relative / "chat_template.jinja").write_text("{{ content['source_lang_code'] + content['target_lang_code'] }}")
    shared = ["generate", str(relative), "Dobrý den.", "--max-new-tokens", "2"]
    assert main(shared) == 1
    assert "from which language into which? Say" in capsys.readouterr().err
    assert main([*shared, "--source-lang", "cs", "--target-lang", "de", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["usage"]["prompt_tokens"] > 100, "the sentences around the text"
    assert (answer["thinking"], answer["tool_calls"]) == ("", [])


def test_ctrl_c_stops_the_answer_and_not_the_chat(checkpoint: Path) -> None:
    """In a terminal of its own: a long answer, Ctrl-C, then another question, then Ctrl-D."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "gemma_tpu", "chat", str(checkpoint), "--max-new-tokens", "150"]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONWARNINGS": "ignore"}
    chat = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True)
    os.close(end)

    def read_until(wanted: str, seconds: float = 120) -> str:
        text, give_up = "", time.monotonic() + seconds
        while wanted not in text:
            assert time.monotonic() < give_up, text
            text += os.read(terminal, 4096).decode(errors="replace")
        return text

    try:
        read_until("> ")
        os.write(terminal, b"Hello\n")
        read_until("Hello")
        time.sleep(0.5)
        os.kill(chat.pid, signal.SIGINT)
        read_until("> ")
        os.write(terminal, b"/reset\n")
        read_until("> ")
        os.write(terminal, b"\x04")
        assert chat.wait(timeout=30) == 0
    finally:
        chat.kill()
        os.close(terminal)
