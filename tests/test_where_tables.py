"""The tables of what fits where: their figures are those of the pages that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gemma_tpu

ROOT = Path(__file__).parents[1]


def plans() -> dict[tuple[str, str, str], str]:
    """(model, dtype, slice) → the memory column of docs/tpu.md."""
    found, about = {}, ("", "")
    for line in (ROOT / "docs" / "tpu.md").read_text().splitlines():
        if heading := re.fullmatch(r"## (\S+), (\S+)", line):
            about = (heading[1], heading[2])
        elif (row := re.match(r"\| (v\d\w*-\d+) \| [^|]*\| ([^|]*) \|", line)) and about[0]:
            found[(*about, row[1])] = row[2]
    return found


def test_the_table_of_the_notebooks() -> None:
    rows = re.findall(
        r"^\| (gemma3-\w+) \| (\w+) \| (.*) \| (.*) \|$", (ROOT / "notebooks/README.md").read_text(), re.M
    )
    assert len(rows) >= 8
    for model, dtype, *cells in rows:
        for place, cell in zip(("v5e-1", "v5e-8"), cells, strict=True):
            said = plans()[model, dtype, place]
            assert ("does not fit" if "does not fit" in said else said) == cell, (model, dtype, place)


PLANNED = {
    "v5e": [("gemma3-4b", "bfloat16", "v5e-1", "10.8")],
    "v5e-8": [("gemma3-27b", "bfloat16", "v5e-8", "8.0")],
    "v4-8": [("gemma3-27b", "float32", "v4-8", "30.7"), ("gemma3-27b", "bfloat16", "v4-8", "15.4")],
    "v5p-8": [("gemma3-27b", "float32", "v5p-8", "31.5")],
    "v6e-1": [("gemma3-12b", "bfloat16", "v6e-1", "29.9"), ("gemma3-27b", "float32", "v6e-8", "15.9")],
}


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_table_of_the_readme(readme: str) -> None:
    rows = [
        line for line in (ROOT / readme).read_text().splitlines() if re.search(r"^\| .*\(docs/(tpu|performance)", line)
    ]
    tpus = [row for row in rows if "docs/tpu.md" in row]
    for row, plan in zip(tpus, PLANNED.values(), strict=True):
        for *key, figure in plan:
            assert plans()[tuple(key)].startswith(f"{figure} of ")
            assert figure in row
    performance = (ROOT / "docs" / "performance.md").read_text()
    cpu, hopper = (row for row in rows if row not in tpus)
    for width, memory in re.findall(r"^\| (int8|bfloat16) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|$", performance, re.M):
        assert re.search(rf"{width}[^,，]*{memory} GiB|{memory} GiB in {width}", cpu), (width, memory)
    said = re.findall(r"(\d+) (?:or|或) (\d+)", hopper)  # of an H100 and of an H200, whose tables are of two versions
    for weights, both in zip(("none", "int4"), said, strict=True):
        speeds = re.findall(rf"^\| gemma3-27b \| {weights} \| 1 \|.*?\| (\d+) \| \d+% \|", performance, re.M)
        assert {min(speeds, key=int), max(speeds, key=int)} == set(both)


def test_the_version_is_the_same_everywhere() -> None:
    assert f"version: {gemma_tpu.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"gemma_tpu-{gemma_tpu.__version__}-py3" in (ROOT / "notebooks" / "README.md").read_text()
