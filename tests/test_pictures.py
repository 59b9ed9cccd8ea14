"""`python -m docs.pictures` makes the pictures that are committed, and there are no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from demo_site import CHROMIUM
from PIL import Image
from test_packaging import source_files

from docs import pictures, request_path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGBA"), float)


def test_every_picture_has_its_maker() -> None:
    ours = {name for name in source_files() if name.endswith((".png", ".jpg", ".svg", ".gif", ".webp", ".ico"))}
    made = [pictures.EXAMPLES / f"{name}.png" for name in pictures.SCENES] + [
        pictures.FAVICON,
        pictures.PAGE,
        pictures.CHAT,
    ]
    assert ours == {str(path.relative_to(pictures.ROOT)) for path in [*made, pictures.LOGO, request_path.PICTURE]}


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = pictures.EXAMPLES
    monkeypatch.setattr(pictures, "EXAMPLES", tmp_path)
    for path in pictures.examples():
        assert np.array_equal(pixels(path), pixels(committed / path.name)), path.name


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
def test_favicon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = pictures.FAVICON
    monkeypatch.setattr(pictures, "FAVICON", tmp_path / "favicon.png")
    (path,) = pictures.favicon()
    assert np.abs(pixels(path) - pixels(committed)).mean() < 1
