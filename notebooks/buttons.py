"""Puts buttons for Colab and Kaggle into every notebook: python -m notebooks.buttons https://github.com/OWNER/NAME.

For the owner of a public copy: the services fetch a notebook from there. Run it again after a move; it replaces what it
wrote. `--branch` is "main" unless given.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import nbformat

FOLDER = Path(__file__).parent
_REPOSITORY = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")
_COLAB, _KAGGLE = "https://colab.research.google.com", "https://kaggle.com"
_ROW = re.compile(rf"\n\n\[!\[[^\]]*\]\({re.escape(_COLAB)}/assets/[^\n]*")  # as `with_buttons` writes it


def buttons(repository: str, branch: str, path: str) -> str:
    """The two badges as a line of Markdown. ValueError if `repository` is no address of a repository on GitHub."""
    found = _REPOSITORY.fullmatch(repository)
    if not found:
        raise ValueError(f"{repository}: expected https://github.com/OWNER/NAME, from where both services read")
    file = f"{found[1]}/blob/{branch}/{path}"
    return (
        f"[![Open in Colab]({_COLAB}/assets/colab-badge.svg)]({_COLAB}/github/{file}) "
        f"[![Open in Kaggle]({_KAGGLE}/static/images/open-in-kaggle.svg)]"
        f"({_KAGGLE}/kernels/welcome?src=https://github.com/{file})"
    )


def with_buttons(text: str, line: str) -> str:
    """A first cell with `line` below its title, in the place of an earlier one."""
    title, _, rest = _ROW.sub("", text, count=1).partition("\n")
    return f"{title}\n\n{line}\n{rest}"


def main(arguments: list[str] | None = None, folder: Path = FOLDER) -> None:
    parser = argparse.ArgumentParser(prog="python -m notebooks.buttons", description=__doc__)
    parser.add_argument("repository", help="https://github.com/OWNER/NAME")
    parser.add_argument("--branch", default="main")
    args = parser.parse_args(arguments)
    for path in sorted(folder.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        try:
            line = buttons(args.repository, args.branch, f"notebooks/{path.name}")
        except ValueError as error:
            parser.error(str(error))
        notebook.cells[0].source = with_buttons(notebook.cells[0].source, line)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
