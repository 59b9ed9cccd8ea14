"""The checkpoint that comes with the package, by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemma_tpu.checkpoint import CheckpointError, open_checkpoint, resolve, shipped
from gemma_tpu.cli.commands.plan import model


def test_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = resolve("gemma3-demo")
    assert Path(found) == Path(__file__).parents[1] / "checkpoints" / "gemma3-demo"
    checkpoint = open_checkpoint(found)
    assert checkpoint.tokenizer_path is not None
    assert model("gemma3-demo") == (checkpoint.config, None)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma3-demo").mkdir()
    assert resolve("gemma3-demo") == str(tmp_path / "gemma3-demo")


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "_ROOT", tmp_path)
    with pytest.raises(CheckpointError, match=r"gemma3-demo is not at .*: install gemma_tpu again, or clone"):
        resolve("gemma3-demo")
