"""What errors call an argument on the command line."""

from __future__ import annotations

import pytest

from gemma_tpu.cli.option_names import as_options
from gemma_tpu.cli.parser import make_parser

OPTIONS = {"max_context": "--max-context", "text_only": "--text-only", "mesh": "--mesh", "draft": "--draft"}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("max_context must be at least 2, got 0", "--max-context must be at least 2, got 0"),
        ("load with a smaller max_context, text_only.", "load with a smaller --max-context, --text-only."),
        ("draft: nowhere: no such file", "--draft: nowhere: no such file"),
        ("mesh must be a shape", "--mesh must be a shape"),
        ("mesh (3, 1) does not fit 8 devices", "--mesh (3, 1) does not fit 8 devices"),
        ("the mesh has no such axis; a draft model", "the mesh has no such axis; a draft model"),
        ("max_rows must be at least 1", "max_rows must be at least 1"),
        ("/data/max_context/config.json: no such file", "/data/max_context/config.json: no such file"),
        ("max_context.json: no such file", "max_context.json: no such file"),
        ("nowhere: no such file", "nowhere: no such file"),
    ],
)
def test_names_become_options(message: str, said: str) -> None:
    assert as_options(message, OPTIONS) == said


def test_each_command_has_its_own() -> None:
    def options(line: str) -> dict[str, str]:
        return make_parser(line.split()).parse_args(line.split()).options

    assert options("bench --model gemma3-1b")["max_rows"] == "--rows"
    assert options("bench serve X")["max_rows"] == options("serve X")["max_rows"] == "--max-rows"
    assert "max_rows" not in options("generate X Y")
    assert options("generate X Y")["verify"] == "--no-verify"
