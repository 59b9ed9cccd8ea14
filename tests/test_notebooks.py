"""The notebooks run from top to bottom on the shipped checkpoint, and say what is committed."""

from __future__ import annotations

import ast
import base64
import fnmatch
import glob
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import xla_flags
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

import gemma_tpu
from notebooks.execute import FIRST_CELL, execute

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 300_000


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: nbformat.NotebookNode) -> str:
    """What a cell writes: the pieces in which a stream comes depend on the moment."""
    return "".join(
        output.text if output.output_type == "stream" else output.data.get("text/plain", "") + "\n"
        for output in cell.outputs
    ).strip()


def pictures(cell: nbformat.NotebookNode) -> list[np.ndarray]:
    found = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), float) for data in found]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_those_committed(path: Path) -> None:
    """But for what cells tagged "varies" say, such as times. Pictures may differ as float32 does between machines."""
    before = code_cells(nbformat.read(path, as_version=4))
    after = code_cells(execute(path, **xla_flags.PROCESS))
    for old, new in zip(before, after, strict=True):
        if "varies" in old.metadata.get("tags", []):
            assert old.outputs
            continue
        assert text(new) == text(old), f"{path.name}, cell {old.id}: run `make notebooks` and look at what changed"
        for was, now in zip(pictures(old), pictures(new), strict=True):
            assert was.shape == now.shape
            assert np.abs(was - now).mean() < 5


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_form(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    assert notebook.cells[1].source == FIRST_CELL
    code = "\n".join(cell.source for cell in code_cells(notebook))
    assert re.findall(r"^CHECKPOINT = ", code, re.MULTILINE) == ["CHECKPOINT = "]
    assert "gemma3-demo" not in code.replace(FIRST_CELL, "")  # one variable to change
    numbers = [cell.execution_count for cell in code_cells(notebook)]
    assert numbers == list(range(1, len(numbers) + 1))  # run once, from top to bottom


def beyond_the_public_api(code: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(code)):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found += [name for name in modules if name.startswith(("gemma_tpu.", "demo", "checkpoints", "tests"))]
        names = (
            [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) and "gemma_tpu" in modules else []
        )
        if isinstance(node, ast.Attribute):
            names += [node.attr] if isinstance(node.value, ast.Name) and node.value.id == "gemma_tpu" else []
            found += [node.attr] if re.match(r"_[^_]", node.attr) else []
        found += [name for name in names if name not in gemma_tpu.__all__]
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_only_the_public_api_is_used(path: Path) -> None:
    assert beyond_the_public_api("\n".join(cell.source for cell in code_cells(nbformat.read(path, as_version=4)))) == []


def test_what_is_beyond_the_public_api() -> None:
    assert beyond_the_public_api("from gemma_tpu import load, Engine") == ["Engine"]
    assert beyond_the_public_api("import gemma_tpu.cache") == ["gemma_tpu.cache"]
    assert beyond_the_public_api("import gemma_tpu\ngemma_tpu.load(gemma_tpu.cache)") == ["cache"]
    assert beyond_the_public_api("model._tokenizer") == ["_tokenizer"]


@pytest.mark.parametrize(
    ("files", "driver", "installed"),
    [
        (["gemma_tpu-1-py3-none-any.whl"], "", "gemma_tpu-1-py3-none-any.whl[hub]"),
        (["/kaggle/input/x/gemma_tpu-1-py3-none-any.whl"], "", "/kaggle/input/x/gemma_tpu-1-py3-none-any.whl[hub]"),
        (["gemma_tpu-1-py3-none-any.whl", "/dev/vfio/0"], "", "gemma_tpu-1-py3-none-any.whl[hub,tpu]"),
        (["gemma_tpu-1-py3-none-any.whl", "/dev/vfio/vfio"], "", "gemma_tpu-1-py3-none-any.whl[hub]"),
        (["gemma_tpu-1-py3-none-any.whl", "/dev/nvidia0"], "580.65.06", "gemma_tpu-1-py3-none-any.whl[hub,cuda]"),
        (["gemma_tpu-1-py3-none-any.whl", "/dev/nvidia0"], "550.54.15", "gemma_tpu-1-py3-none-any.whl[hub,cuda12]"),
        (["../gemma_tpu"], "", "..[hub]"),
        ([], "", None),
    ],
)
def test_the_first_cell_installs(
    files: list[str], driver: str, installed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without the package that has these files, and a GPU's driver of this version."""
    commands = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=f"{driver}\n")

    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(glob, "glob", lambda pattern, **_: fnmatch.filter(files, pattern.replace("**/", "*")))
    monkeypatch.setattr(os.path, "exists", files.__contains__)
    monkeypatch.setattr(subprocess, "run", run)
    if installed is None:
        with pytest.raises(FileNotFoundError, match="upload"):
            exec(FIRST_CELL, {})
    else:
        exec(FIRST_CELL, {})
        assert commands[-1] == [sys.executable, "-m", "pip", "install", "--quiet", installed]


def test_what_a_cell_does_wrong_is_an_error(tmp_path: Path) -> None:
    def run(code: str) -> None:
        path = tmp_path / "wrong.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(""), new_code_cell(""), new_code_cell(code)]), path)
        execute(path)

    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run("1 / 0")
    with pytest.raises(RuntimeError, match=r"wrote to standard error: .*look out"):
        run("import warnings; warnings.warn('look out')")
