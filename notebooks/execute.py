"""Runs the notebooks from top to bottom and saves them with their outputs: python -m notebooks.execute [NAME …]."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import nbclient
import nbformat
from traitlets.config import Config

FOLDER = Path(__file__).parent
FIRST_CELL = (FOLDER / "first_cell.py").read_text().rstrip("\n")  # the same in every notebook
_PROGRESS = re.compile(r"\r?Loading:[^\r\n]*\n?")


def execute(path: Path, **variables: str) -> nbformat.NotebookNode:
    """The notebook at `path` with new outputs, as one CPU gives them; the file stays as it is.

    `variables` of the environment are set for it, beside those of this process.

    A cell that fails is a `nbclient.exceptions.CellExecutionError`, and what one writes to standard error, other than
    progress, a RuntimeError.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = FIRST_CELL
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]),
    } | variables
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, environment):
        # Sockets in a folder of their own: those of TCP are open to everyone on this machine.
        config = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
        client = nbclient.NotebookClient(
            notebook, kernel_name="python3", timeout=600, record_timing=False, config=config
        )
        client.execute(cwd=str(FOLDER))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)  # Pillow offers it beside the PNG
    return notebook


def _is_progress(output: nbformat.NotebookNode) -> bool:
    if output.output_type != "stream" or output.name != "stderr":
        return False
    if rest := _PROGRESS.sub("", output.text).strip():
        raise RuntimeError(f"a cell wrote to standard error: {rest}")
    return True


def main(names: list[str]) -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            nbformat.write(execute(path), path)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
