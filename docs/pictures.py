"""Makes every picture of the repository anew: python -m docs.pictures [examples | favicon | page | chat], in its root.

Those in the notebooks are made by the notebooks (`make notebooks`); demo/static/logo.svg is drawn by hand.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from checkpoints.demo_model.scenes import Scene, Shape, Text, render
from demo.webui.browser import open_browser

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "demo" / "examples"
LOGO = ROOT / "demo" / "static" / "logo.svg"
FAVICON = ROOT / "demo" / "static" / "favicon.png"
PAGE = ROOT / "docs" / "images" / "demo.png"
CHAT = ROOT / "docs" / "images" / "chat.webp"

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


def examples() -> list[Path]:
    """The demo page's examples."""
    paths = []
    for name, scene in SCENES.items():
        files = []
        for seed in range(20):
            file = io.BytesIO()
            render(scene, np.random.default_rng(seed), "plain").save(file, "PNG", optimize=True)
            files.append(file.getvalue())
        # `render` varies the drawing; what packs best has neither noise nor blur.
        paths.append(EXAMPLES / f"{name}.png")
        paths[-1].write_bytes(min(files, key=len))
    return paths


def favicon() -> list[Path]:
    """The logo, 64 × 64 pixels."""
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 64, "height": 64})
        page.set_content(f"<style>* {{ margin: 0 }} svg {{ width: 64px; height: 64px }}</style>{LOGO.read_text()}")
        page.screenshot(path=FAVICON, omit_background=True)
    return [FAVICON]


def page() -> list[Path]:
    """The demo page on the shipped checkpoint, after two questions about an example.

    Shows the fonts of this machine, which needs one with Chinese characters (Debian's `fonts-noto-cjk`).
    """
    expect.set_options(timeout=120_000)
    with _serve() as url, open_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 880}, device_scale_factor=1.5, locale="en-GB")
        page.goto(url)
        expect(page.locator('[data-phase="ready"]')).to_be_attached()  # the model is loaded
        for number, question in enumerate(["What is in the picture?", "How many hearts are there?"]):
            if number == 0:
                page.locator(".image-example", has_text="How many hearts").click()
                expect(page.locator("#picture-1 img")).to_be_visible()
            page.locator("#image-prompt textarea").fill(question)
            page.locator("#image-prompt textarea").press("Enter")
            expect(page.locator("#image-chat [data-testid=bot]")).to_have_count(number + 1)
            expect(page.locator("#image-stats")).to_contain_text("first token after")
            expect(page.locator("#image-stop")).to_be_hidden()
        picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(PAGE, optimize=True)
    return [PAGE]


def chat() -> list[Path]:
    """A recording of the Chat page on the shipped checkpoint: a question, its tokens, where the model looked."""
    expect.set_options(timeout=120_000)
    shots: list[tuple[bytes, int]] = []  # PNG, milliseconds
    with _serve() as url, open_browser() as browser:
        page = browser.new_page(viewport={"width": 1080, "height": 720}, locale="en-GB")
        page.goto(f"{url}/chat/")
        expect(page.locator('.chip-state[data-phase="ready"]')).to_be_visible()

        def shoot(milliseconds: int) -> None:
            page.wait_for_timeout(250)
            shots.append((page.screenshot(), milliseconds))

        shoot(1800)
        page.locator(".card").first.click()
        shoot(1200)
        page.locator(".composer .send").first.click()
        answer = page.locator("article.assistant")
        expect(answer.locator(".state")).to_contain_text("first token after")
        shoot(2200)
        answer.get_by_role("button", name="Tokens and their probabilities").click()
        star = answer.locator(".token", has_text="star")
        star.click()
        shoot(2600)
        answer.get_by_role("button", name="Where in the pictures the model looked").click()
        expect(page.locator("dialog.attention")).to_be_visible()
        shoot(3200)
        page.keyboard.press("Escape")
        page.click("[data-drawer=inside]")
        expect(page.locator("[data-section=pictures] img")).to_be_visible()
        shoot(2800)
        page.keyboard.press("Escape")
        answer.get_by_role("button", name="Reproduce this answer").click()
        shoot(2800)
    frames = [Image.open(io.BytesIO(shot)).convert("RGB") for shot, _ in shots]
    times = [milliseconds for _, milliseconds in shots]
    frames[0].save(CHAT, save_all=True, append_images=frames[1:], duration=times, loop=0, quality=70, method=6)
    return [CHAT]


@contextlib.contextmanager
def _serve() -> Iterator[str]:
    """Runs `python -m demo` at a free port; its address."""
    command = [sys.executable, "-m", "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = re.search(r"http://\S+", process.stdout.readline() if process.stdout else "")
            if found is None:
                raise RuntimeError(f"{' '.join(command)}: ended without an address")
            yield found[0]
        finally:
            process.terminate()


KINDS = {"examples": examples, "favicon": favicon, "page": page, "chat": chat}


def main(kinds: list[str]) -> None:
    for kind in kinds or KINDS:
        for path in KINDS[kind]():
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
