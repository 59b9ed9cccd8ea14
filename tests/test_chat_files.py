"""The files of the Chat page: libraries as their packages have them, modules that find each other, texts."""

from __future__ import annotations

import re
import shutil
import string
from pathlib import Path

import pytest

from demo.chat_page.texts import CHAT_TEXTS
from demo.chat_page.vendor import FOLDER, fetch


@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm")
def test_the_libraries_are_those_of_their_packages(tmp_path: Path) -> None:
    fetched = fetch(tmp_path)
    assert {path.name for path in fetched} == {path.name for path in FOLDER.iterdir()}
    for path in fetched:
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


def test_every_import_of_the_page_is_there() -> None:
    folder = FOLDER.parent
    imported = set()
    for path in folder.glob("*.js"):
        for name in re.findall(r'(?:from|import\() ?"(\./[^"]+)"', path.read_text()):
            assert (folder / name).is_file(), f"{path.name}: {name}"
            imported.add((folder / name).name)
    assert {path.name for path in folder.glob("*.js")} - imported == {"main.js"}


def test_texts_exist_in_both_languages_and_all_are_used() -> None:
    code = "".join(path.read_text() for path in FOLDER.parent.glob("*.js"))
    made_up = re.compile(r"^(inside|memory|preset|ended|keys)_|^(top_k|min_p|temperature)_hint$")
    for key, texts in CHAT_TEXTS.items():
        assert len(texts) == 2
        assert all(texts), key
        fields = [{name for _, name, _, _ in string.Formatter().parse(one) if name} for one in texts]
        assert fields[0] == fields[1], key
        assert made_up.search(key) or re.search(rf"\b{key}\b", code), f"{key} is not used"
    asked = set(re.findall(r'\bsay\(\s*"(\w+)"', code))
    assert asked <= set(CHAT_TEXTS)
