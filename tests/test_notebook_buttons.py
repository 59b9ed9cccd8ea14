"""The buttons that the owner of a public copy puts into the notebooks."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pytest

from notebooks import buttons

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in NOTEBOOKS:
        shutil.copy(path, tmp_path)
    return tmp_path


def first_cells(folder: Path) -> dict[str, str]:
    return {path.name: nbformat.read(path, as_version=4).cells[0].source for path in folder.glob("*.ipynb")}


def links(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\[!\[[^\]]*\]\(([^)]*)\)\]\(([^)]*)\)", text)


def test_each_notebook_gets_links_to_itself(folder: Path) -> None:
    before = first_cells(folder)
    buttons.main(["https://github.com/someone/a.copy"], folder)
    after = first_cells(folder)
    assert len(after) == len(NOTEBOOKS)
    for name, text in after.items():
        file = f"someone/a.copy/blob/main/notebooks/{name}"
        assert links(text) == [
            (
                "https://colab.research.google.com/assets/colab-badge.svg",
                f"https://colab.research.google.com/github/{file}",
            ),
            (
                "https://kaggle.com/static/images/open-in-kaggle.svg",
                f"https://kaggle.com/kernels/welcome?src=https://github.com/{file}",
            ),
        ]
        lines = text.splitlines()
        assert lines[:2] + lines[4:] == before[name].splitlines()[:2] + before[name].splitlines()[2:]  # nothing lost


def test_again_changes_nothing_and_a_move_replaces(folder: Path) -> None:
    buttons.main(["https://github.com/someone/copy"], folder)
    once = {path.name: path.read_bytes() for path in folder.glob("*.ipynb")}
    buttons.main(["https://github.com/someone/copy.git/"], folder)
    assert {path.name: path.read_bytes() for path in folder.glob("*.ipynb")} == once
    buttons.main(["https://github.com/other/place", "--branch", "v1"], folder)
    for text in first_cells(folder).values():
        assert "someone" not in text
        assert len(links(text)) == 2
        assert text.count("other/place/blob/v1/") == 2


@pytest.mark.parametrize(
    "address", ["https://gitlab.com/a/b", "https://github.com/a", "https://github.com/a/b/tree/main"]
)
def test_another_address_is_refused_before_anything_is_written(
    address: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    before = first_cells(folder)
    with pytest.raises(SystemExit):
        buttons.main([address], folder)
    assert "https://github.com/OWNER/NAME" in capsys.readouterr().err
    assert first_cells(folder) == before
