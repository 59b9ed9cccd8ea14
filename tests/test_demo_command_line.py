"""`python -m demo`: what its arguments mean, and what is wrong with them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import demo
from demo import __main__ as command
from demo.auth import read_accounts

FOLDER = Path(demo.__file__).parent
GREEDY = {"temperature": 0.0, "seed": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "no/such/folder"], "demo: --checkpoint no/such/folder: no such file or directory\n"),
        (["--checkpoint", ".", "--port", "70000"], "demo: cannot listen on 127.0.0.1:70000: "),
    ],
)
def test_errors_on_the_command_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


def test_port_in_use(capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command.main(["--checkpoint", ".", "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"demo: cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --port\n"
    )


def test_sharing_without_a_network_is_a_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("Could not get share link\nfrom Gradio API Server.")

    monkeypatch.setattr("gradio.networking.setup_tunnel", fail)
    command._share("127.0.0.1", 7860)
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda host, port, *_: f"https://{host}-{port}.example")
    command._share("127.0.0.1", 7860)
    said = capsys.readouterr()
    assert said.err.startswith("demo: --share: no public address, only the one above: RuntimeError: Could not get ")
    assert said.err.count("\n") == 1
    assert said.out == "It is public at https://127.0.0.1-7860.example\n"


def test_accounts_and_paths_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "accounts"
    file.write_text("ann:s:cret\n\n李:密码\n", "utf-8")
    assert read_accounts(str(file)) == ["ann:s:cret", "李:密码"]
    given = command._parse(["--auth", "a:b", "--auth", "c:d", "--root-path", "/gemma/"])
    assert (given.auth, given.root_path) == (["a:b", "c:d"], "/gemma")
    for wrong in (["--auth", "secret"], ["--auth", ":secret"], ["--root-path", "gemma"], ["--root-path", "/"]):
        with pytest.raises(SystemExit):
            command._parse(wrong)
        assert "secret" not in capsys.readouterr().err
    for content, said in ((b"ann:x\nsecret", "entry 2"), (b"\n", "empty"), (b"\xff\xfe:", "UTF-8")):
        file.write_bytes(content)
        assert command.main(["--checkpoint", ".", "--auth-file", str(file)]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.startswith(f"demo: --auth-file {file}: ")
        assert "secret" not in error
    assert command.main(["--checkpoint", ".", "--auth-file", "/nope"]) == 1
    assert capsys.readouterr().err == "demo: --auth-file /nope: No such file or directory\n"


def test_origins_are_named_as_browsers_name_them(capsys: pytest.CaptureFixture) -> None:
    given = ["--allow-origin", "http://127.0.0.1:8000", "--allow-origin", "null"]
    assert command._parse(given).allow_origin == ["http://127.0.0.1:8000", "null"]
    for wrong in ("*", "127.0.0.1:8000", "http://127.0.0.1:8000/", "file://", "http://"):
        with pytest.raises(SystemExit):
            command._parse(["--allow-origin", wrong])
        assert f"{wrong!r} is not an origin such as http://127.0.0.1:8000" in capsys.readouterr().err


def test_wrong_mesh(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit:
        command.main(["--mesh", "8"])
    assert exit.value.code == 2
    assert "'8' is not of the form DATA,MODEL, such as 1,8" in capsys.readouterr().err
