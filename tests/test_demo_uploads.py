"""The folder of uploads: one for each process, gone when it ends, however it ends. And what `python -m demo` serves."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from demo.tab import EXAMPLES
from demo.uploads import own_upload_folder

HOLD = """
import os, sys
from demo.uploads import own_upload_folder
with own_upload_folder():
    folder = os.environ["GRADIO_TEMP_DIR"]
    open(f"{folder}/upload.png", "w").close()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's processes keep their temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    return tmp_path


@pytest.fixture
def holder(temporary: Path) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Another process and its folder, in which a file lies."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_it_goes_at_the_end_even_after_an_error(temporary: Path) -> None:
    folder = own_upload_folder()
    folder.__enter__()
    Path(os.environ["GRADIO_TEMP_DIR"], "a").mkdir()
    assert len(list(temporary.iterdir())) == 1
    assert folder.__exit__(KeyError, KeyError(), None) is False
    assert "GRADIO_TEMP_DIR" not in os.environ
    assert list(temporary.iterdir()) == []


def test_those_of_running_processes_stay_and_those_of_killed_ones_go(
    holder: tuple[subprocess.Popen, Path],
) -> None:
    process, folder = holder
    with own_upload_folder():
        assert Path(os.environ["GRADIO_TEMP_DIR"]) != folder
        assert (folder / "upload.png").exists()
    assert (folder / "upload.png").exists()
    process.kill()
    process.wait()
    assert (folder / "upload.png").exists()
    with own_upload_folder():
        assert not folder.exists()


def test_one_that_the_user_has_chosen_is_left_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(temporary / "mine"))
    (temporary / "mine").mkdir()
    with own_upload_folder():
        assert os.environ["GRADIO_TEMP_DIR"] == str(temporary / "mine")
    assert (temporary / "mine").exists()


def test_the_demo_leaves_no_files_and_asks_for_nothing_elsewhere(temporary: Path) -> None:
    command = [sys.executable, "-m", "demo", "--port", "0", "--no-load"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address is not None
        with httpx.Client(base_url=address[0], timeout=60) as client:
            tiff = io.BytesIO()
            Image.new("RGB", (30, 20), "green").save(tiff, "TIFF")
            uploaded = client.post("/gradio_api/upload", files={"files": ("scan.tiff", tiff.getvalue(), "image/tiff")})
            assert Path(uploaded.json()[0]).is_relative_to(temporary)
            page = client.get("/")
            assert "default-src 'self'" in page.headers["content-security-policy"]
            for path in ("/docs", "/redoc"):
                assert client.get(path).status_code == 404
            # Thumbnails are served from where they are, which nothing cleans up.
            for example in EXAMPLES.glob("*.png"):
                assert client.get(f"/gradio_api/file={example}").content == example.read_bytes()
            icons = [part["props"].get("icon") for part in client.get("/config").json()["components"]]
            assert {icon["path"] for icon in icons if icon} == {str(path) for path in EXAMPLES.glob("*.png")} - {
                str(EXAMPLES / "shapes-changed.png")
            }
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert list(temporary.rglob("*")) == []
