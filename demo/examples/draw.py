"""Draws the pictures in this folder: python -m demo.examples.draw, in the repository."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from checkpoints.demo_model.render import render
from checkpoints.demo_model.scenes import Scene, Shape, Text

_SIZE = (384, 288)
_STREET = (
    Shape("circle", "red", 0.17, 0.2, 0.13),
    Shape("star", "blue", 0.5, 0.48, 0.19, 8),
    Shape("square", "green", 0.82, 0.8, 0.13),
)
SCENES = {
    "shapes": Scene("white", _STREET, _SIZE),
    "crowd": Scene(
        "light blue",
        (
            Shape("heart", "pink", 0.15, 0.8, 0.14),
            Shape("triangle", "orange", 0.32, 0.22, 0.16),
            Shape("hexagon", "purple", 0.5, 0.78, 0.15),
            Shape("ring", "black", 0.68, 0.24, 0.15),
            Shape("heart", "red", 0.85, 0.78, 0.14, -8),
        ),
        _SIZE,
    ),
    "word": Scene("light yellow", (), _SIZE, Text("LEMON", "blue", 0.5, 0.5, 0.7, 0)),
    "shapes-changed": Scene("white", (_STREET[0], Shape("star", "orange", 0.5, 0.48, 0.19, 8), _STREET[2]), _SIZE),
}


def main() -> None:
    for name, scene in SCENES.items():
        files = []
        for seed in range(20):
            file = io.BytesIO()
            render(scene, np.random.default_rng(seed)).save(file, "PNG", optimize=True)
            files.append(file.getvalue())
        # `render` varies the drawing; what packs best has neither noise nor blur.
        (Path(__file__).parent / f"{name}.png").write_bytes(min(files, key=len))


if __name__ == "__main__":
    main()
