"""The documentation as a site: it builds without a warning, is made of today's code, and its examples run."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import blocks

import gemma_tpu
from docs import reference
from gemma_tpu.cli.parser import command_names, make_parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name not in reference.PAGES)


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert {path.parent.name for path in (site / "build" / "site").glob("*/index.html")} == pages
    named = re.findall(r"(\w+)\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(named) == sorted({*pages, "index"})
    assert not list((site / "build" / "site").rglob("*.py"))


def test_the_site_asks_for_nothing_from_elsewhere(site: Path) -> None:
    for page in (site / "build" / "site").rglob("*.html"):
        assert not re.findall(r'(?:src|<link[^>]*href)="https?://[^"]*', page.read_text()), page


def test_a_link_that_leads_nowhere_fails(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site", ignore=shutil.ignore_patterns("build", ".cache"))
    (tmp_path / "site" / "docs" / "faq.md").write_text("# Questions\n\n[there](gpu.md#nowhere)\n")
    assert build(tmp_path / "site").returncode != 0


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse and inspect differ in how they write some things")
@pytest.mark.parametrize("page", reference.PAGES)
def test_the_reference_is_that_of_the_code(page: str) -> None:
    assert (DOCS / page).read_text() == reference.PAGES[page](), "python -m docs.reference"


def test_the_reference_has_every_public_name() -> None:
    headings = re.findall(r"^## (\w+)$", (DOCS / "library.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(set(gemma_tpu.__all__) - {"__version__"})


# Prints all texts in the code of a folder, those in f-strings with their expressions as they are written.
_TEXTS = """
import ast, pathlib, sys

for path in pathlib.Path(sys.argv[1]).rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (x.value if isinstance(x, ast.Constant) else f"{{{ast.unparse(x.value)}}}" for x in node.values)
            print("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            print(node.value)
"""


@functools.cache
def said() -> str:
    """By a process of its own: ast.parse of Python 3.11 fails now and then where another thread parses too."""
    command = [sys.executable, "-X", "utf8", "-c", _TEXTS, str(ROOT / "gemma_tpu")]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=120).stdout


def test_each_error_that_is_explained_is_one_of_the_code() -> None:
    messages = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        assert message in said(), message


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_commands(page: Path) -> None:
    """Those in its blocks and, with more than their name, in its text; shell variables stand for a word."""
    text = page.read_text()
    lines = [line for language, code in blocks(text) if language in ("bash", "sh") for line in code.splitlines()]
    commands = [found for line in lines for found in re.findall(r"(?<![\w/-])gemma-tpu (\w[^&|;]+)", line)]
    commands = [found.rstrip("'") if found.count("'") % 2 else found for found in commands]  # in another's quotes
    for command in commands + re.findall(r"`gemma-tpu ([^`]+)`", text):
        words = shlex.split(re.sub(r"\$join \d|\$\w+", lambda found: "" if " " in found[0] else "X", command))
        if len(words) > 1 and "-h" not in words:
            make_parser(words).parse_args(words)
        else:
            assert words[0] in (*command_names(), "--version"), command


@pytest.mark.parametrize("page", ["docs/releasing.md", "CONTRIBUTING.md", "notebooks/README.md"])
def test_what_a_checklist_runs_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)", text)) <= set(targets)
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    for path in re.findall(r"`?\b((?:docs|tests|demo|gemma_tpu)/[\w/]+\.(?:md|py|html))", text):
        assert (ROOT / path).exists(), path


def test_the_code_of_a_guide_runs() -> None:
    (code,) = (
        content for language, content in blocks((DOCS / "getting_started.md").read_text()) if language == "python"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "42" in done.stdout, done.stderr
