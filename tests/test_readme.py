"""README.md and README.zh.md: the same commands, code and links; and that what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))
_COMMENT = re.compile(r"\s+# .*$", re.MULTILINE)


def blocks(readme: str) -> list[tuple[str, str]]:
    """Language and content of the code blocks, without comments, which are translated."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    return [(language, _COMMENT.sub("", content)) for language, content in found]


def spans(readme: str) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", readme, flags=re.MULTILINE | re.DOTALL)
    return sorted(re.findall(r"`([^`]+)`", text))


def links(readme: str) -> list[str]:
    return sorted(re.findall(r"\]\(([^)]+)\)", readme))


def test_code_is_the_same() -> None:
    assert len(blocks(ENGLISH)) >= 3
    assert blocks(CHINESE) == blocks(ENGLISH)
    assert spans(CHINESE) == spans(ENGLISH)
    assert len(re.findall(r"^#+ ", CHINESE, re.MULTILINE)) == len(re.findall(r"^#+ ", ENGLISH, re.MULTILINE))


def test_links() -> None:
    assert "README.zh.md" in links(ENGLISH)
    assert "README.md" in links(CHINESE)
    assert set(links(ENGLISH)) ^ set(links(CHINESE)) == {"README.md", "README.zh.md"}
    for link in {*links(ENGLISH), *links(CHINESE)}:
        assert (ROOT / link).exists(), link


PAGES = [
    "README.md",
    "README.zh.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_source_files_that_are_named_are_there(page: str) -> None:
    for path in re.findall(r"`([\w./-]+\.py)\b", (ROOT / page).read_text()):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("path", ["notebooks/README.md"])
def test_links_of_other_pages(path: str) -> None:
    for link in links((ROOT / path).read_text()):
        assert (ROOT / path).parent.joinpath(link).exists(), link
