"""`gemma-tpu chat` as a person and as a pipe meet it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import xla_flags
from small_models import random_params
from test_api import CONFIG

import gemma_tpu
from gemma_tpu.checkpoint import save_params
from gemma_tpu.cli import terminal
from gemma_tpu.cli.terminal import HELP, converse, read_paths

CUT = "(cut at the length limit: /continue goes on)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("terminal") / "checkpoint"
    tokenizer = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
    save_params(random_params(CONFIG), CONFIG, path, tokenizer=tokenizer)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Iterator[gemma_tpu.Model]:
    with gemma_tpu.load(checkpoint, mesh=(1, 8), max_rows=1, max_context=512, progress=False) as model:
        yield model


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Names as people have them."""
    paths = [tmp_path / name for name in ("a b.png", "it's.png", "50% ü.png")]
    for size, path in enumerate(paths, 7):
        PIL.Image.fromarray(np.full((size, 2 * size, 3), 20 * size, np.uint8)).save(path)
    return paths


def say(
    model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch, *lines: str, tokens: int = 4, vision: bool = True
) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return converse(model, lambda: model.chat(max_new_tokens=4))


@contextlib.contextmanager
def at_a_terminal(monkeypatch: pytest.MonkeyPatch, typed: str) -> Iterator[None]:
    """Standard input is a terminal on which `typed` has been typed."""
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    with open(theirs, encoding="utf-8") as keyboard:
        monkeypatch.setattr("sys.stdin", keyboard)
        yield
    os.close(ours)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: str(path),
        lambda path: f'"{path}"',
        lambda path: "'" + str(path).replace("'", "'\\''") + "'",
        lambda path: "".join(letter if letter.isalnum() or letter in "/.-" else f"\\{letter}" for letter in str(path)),
        lambda path: path.as_uri(),
        lambda path: path.as_uri().replace("file://", "file://localhost"),
        lambda path: path.as_uri().replace("file://", "FILE:"),
        lambda path: f'"~/{path.name}"',
        lambda path: f"~/{path.name}",
    ],
)
def test_names_of_files(write, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pictures[0].parent))
    for path in pictures:
        assert read_paths(write(path)) == [str(path)]


def test_several_names_in_a_line(pictures: list[Path]) -> None:
    a, b, c = pictures
    assert read_paths(f"'{a}' \"{b}\"  {c.as_uri()} missing.png") == [str(a), str(b), str(c), "missing.png"]
    with pytest.raises(ValueError, match="a quote is not closed"):
        read_paths("'a.png")
    with pytest.raises(ValueError, match="a file of another machine, elsewhere"):
        read_paths("file://elsewhere/a.png")


def test_pictures_are_shown_with_the_next_message(model, pictures, monkeypatch, capsys) -> None:
    a, b, c = pictures
    lines = [f"/image '{a}' /nothere.png", f'/image "{a}"', "/image /nothere.png", f"/image {b}", f"/image {__file__}"]
    assert say(model, monkeypatch, *lines, "Hello", "And now?", f"/image {c}", "/reset", "Again") == 1
    said = capsys.readouterr()
    chat = model.chat(max_new_tokens=4)
    expected = [chat.send("Hello", images=[a, b]).text, chat.send("And now?").text]
    assert said.out.splitlines() == "\n".join([*expected, model.chat(max_new_tokens=4).send("Again").text]).splitlines()
    assert said.err.count("gemma-tpu: ") == 3
    assert said.err.count("gemma-tpu: /nothere.png: no such file\n") == 2
    assert "test_terminal.py: a text file, not an image\n" in said.err


def test_pictures_stay_when_the_message_is_refused(model, pictures, monkeypatch, capsys) -> None:
    """The first one does not fit into the context."""
    say(model, monkeypatch, f"/image {pictures[0]}", "Hello " * 600, "Hello")
    said = capsys.readouterr()
    assert said.err.count("gemma-tpu: ") == 1
    assert said.out == model.chat(max_new_tokens=4).send("Hello", images=[pictures[0]]).text + "\n"


def test_a_pipe_has_answers_alone(model, monkeypatch, capsys) -> None:
    assert say(model, monkeypatch, "", "Hello", "/help", "/nonsense", "/reset now", "quit", "Hello") == 1
    said = capsys.readouterr()
    assert said.out == model.chat(max_new_tokens=4).send("Hello").text + "\n"
    cut, *shown, unknown, wrong = said.err.splitlines()
    assert cut == CUT
    assert shown == HELP.splitlines()
    assert unknown == "gemma-tpu: /nonsense is no command, or takes nothing after it: /help lists them"
    assert wrong.startswith("gemma-tpu: /reset is no command, or takes")
    for end in ("exit", "quit", "/exit", "/quit", "Exit"):
        assert say(model, monkeypatch, end, "Hello") == 0
    assert capsys.readouterr() == ("", "")


def test_goes_on_with_an_answer_that_was_cut(model, monkeypatch, capsys) -> None:
    say(model, monkeypatch, "/continue", "Hello", "/continue")
    said = capsys.readouterr()
    assert "gemma-tpu: there is no answer to continue yet\n" in said.err
    assert said.err.count(CUT) == 2
    chat = model.chat(max_new_tokens=4)
    assert said.out == f"{chat.send('Hello').text}\n{chat.send(continue_final=True).text}\n"


def test_a_text_may_begin_with_a_slash(model, pictures, monkeypatch, capsys) -> None:
    assert say(model, monkeypatch, "/etc/passwd: what is it?") == 0
    assert capsys.readouterr().out == model.chat(max_new_tokens=4).send("/etc/passwd: what is it?").text + "\n"
    for dropped in (str(pictures[0]), f"'{pictures[0]}'", pictures[2].as_uri()):
        assert say(model, monkeypatch, dropped) == 1
        assert capsys.readouterr() == ("", f"gemma-tpu: a file: to show it with the next message, /image {dropped}\n")


def test_input_that_is_no_text(model, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(ValueError, match="standard input is no text in utf-8"):
        converse(model, model.chat)


def test_piped_onwards_from_a_terminal(model, pictures, monkeypatch, capsys) -> None:
    """Prompts and hints are for the person; what is piped is the answers."""
    with at_a_terminal(monkeypatch, f"Hello\n/image '{pictures[0]}' {pictures[2].as_uri()}\n\x04"):
        assert converse(model, lambda: model.chat(max_new_tokens=4)) == 0
    said = capsys.readouterr()
    assert said.out == model.chat(max_new_tokens=4).send("Hello").text + "\n"
    hint, asked, confirmed, last = said.err.splitlines()
    assert hint.startswith("/image FILE shows")
    assert asked == f"> {CUT}"
    assert confirmed == "> (with the next message: a b.png, 14 × 7; 50% ü.png, 18 × 9)"
    assert last == "> "


def test_ctrl_c_while_a_picture_is_read(model, pictures, monkeypatch, capsys) -> None:
    """Ends the reading, not the chat of a person: pictures chosen before and the conversation are kept."""
    real = terminal.load_image

    def load_image(path: str, **options):
        if path == "slow.png":
            raise KeyboardInterrupt
        return real(path, **options)

    monkeypatch.setattr(terminal, "load_image", load_image)
    with at_a_terminal(monkeypatch, f"Hello\n/image '{pictures[0]}'\n/image slow.png\nAnd now?\n\x04"):
        assert converse(model, lambda: model.chat(max_new_tokens=4)) == 0
    chat = model.chat(max_new_tokens=4)
    expected = [chat.send("Hello").text, chat.send("And now?", images=[pictures[0]]).text]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)
    monkeypatch.setattr("sys.stdin", io.StringIO("/image slow.png\nHello\n"))
    with pytest.raises(KeyboardInterrupt):
        converse(model, model.chat)


def test_a_model_of_text_alone(model, pictures, monkeypatch, capsys) -> None:
    monkeypatch.setattr(type(model), "config", dataclasses.replace(model.config, vision=None))
    assert say(model, monkeypatch, f"/image {pictures[0]}") == 1
    assert capsys.readouterr().err == "gemma-tpu: this model has no vision tower: it takes text only\n"


def test_ctrl_c_stops_the_answer_and_not_the_chat(checkpoint: Path) -> None:
    """In a terminal of its own: a long answer, Ctrl-C, then another conversation, then Ctrl-D."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "gemma_tpu", "chat", str(checkpoint), "--max-new-tokens", "150"]
    environment = os.environ | xla_flags.PROCESS | {"PYTHONWARNINGS": "ignore", "TERM": "dumb"}
    chat = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True)
    os.close(end)

    def read_until(wanted: str, seconds: float = 240) -> str:
        text, give_up = "", time.monotonic() + seconds
        while not re.search(wanted, text):
            assert time.monotonic() < give_up, text
            text += os.read(terminal, 4096).decode(errors="replace")
        return text

    try:
        read_until("> ")
        os.write(terminal, b"Hello\n")
        read_until(r"Hello\r\n\s*\S")  # the line as it was typed, and the beginning of the answer
        os.kill(chat.pid, signal.SIGINT)
        read_until("> ")
        os.write(terminal, b"/reset\n")
        read_until("> ")
        os.write(terminal, b"\x04")
        assert chat.wait(timeout=60) == 0
    finally:
        chat.kill()
        os.close(terminal)
