"""What the place of a picture shows once a file has been laid into it. The browser's part is in test_demo_app.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import numpy as np
import pillow_heif
import pytest
from gradio.data_classes import ImageData
from PIL import Image

import gemma_tpu
from demo.pictures import Picture, check_upload, picture_input

NOISE = Image.effect_noise((30, 20), 90).convert("RGB")
SKIP = gr.skip()


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    NOISE.save(path, exif=exif)


def with_alpha(value: int) -> Image.Image:
    image = NOISE.copy()
    image.putalpha(value)
    return image


AS_IT_IS: dict[str, Callable[[Path], object]] = {
    "a.png": NOISE.save,
    "a.jpg": NOISE.save,
    "turned.jpg": turned,  # which browsers turn
    "grey.png": NOISE.convert("L").save,
    "opaque.png": with_alpha(255).save,
    "palette.gif": NOISE.save,
    "a.webp": NOISE.save,
}
CONVERTED: dict[str, Callable[[Path], object]] = {
    "clear.png": with_alpha(90).save,
    "clear.gif": with_alpha(0).save,
    "deep.png": Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save,
    "turned.png": turned,
    "inks.jpg": NOISE.convert("CMYK").save,
    "moving.gif": lambda path: NOISE.save(path, save_all=True, append_images=[Image.new("RGB", (30, 20))]),
    "scan.tiff": NOISE.save,
    "phone.heic": lambda path: pillow_heif.from_pillow(NOISE).save(path),
}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files would be left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("name", [*AS_IT_IS, *CONVERTED])
def test_the_place_shows_what_the_model_sees(tmp_path: Path, temporary: Path, name: str) -> None:
    path = tmp_path / name
    {**AS_IT_IS, **CONVERTED}[name](path)
    place, notice = asyncio.run(check_upload(str(path), "en"))
    assert notice == ""
    if name in AS_IT_IS:
        assert place == SKIP
    else:
        np.testing.assert_array_equal(np.asarray(place), np.asarray(gemma_tpu.load_image(path)))
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes <1>.txt", b"hello", ": notes &lt;1&gt;.txt: a text file"),
        ("broken.png", b"hello", ": broken.png: a text file"),
        ("empty.png", b"", ": empty.png: empty"),
        ("gone.png", None, ": gone.png: cannot be read (No such file or directory)"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_name_alone(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / ("6da" * 21) / name  # Gradio's folders have names of 64 digits: the library shortens such paths
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    place, notice = asyncio.run(check_upload(str(path), "en"))
    assert place is None
    assert said in notice
    assert "/" not in notice.replace("</p>", "")


def test_the_component_made_anew_still_hands_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Gradio does it: from the class and the arguments."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    first = picture_input(label="a")
    again = type(first)(**first.constructor_args)
    assert isinstance(again, Picture)
    assert again.get_block_name() == "image"
    file = tmp_path / "broken.png"
    file.write_bytes(b"no picture")
    payload = ImageData(path=str(file), orig_name="broken.png")
    assert again.preprocess(payload) == str(file)
    assert not Path(__file__).parent.parent.joinpath("demo", "pictures.pyi").exists()
    with pytest.raises(gr.Error, match="not been uploaded"):
        again.preprocess(ImageData(path="/etc/passwd"))
