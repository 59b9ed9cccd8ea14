"""What answers, requests under way and conversations hold of a large picture."""

from __future__ import annotations

import dataclasses
import gc
import io
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_models import TEXT, VISION, make_deployment, random_params

import gemma_tpu
from gemma_tpu.deployment import REMEMBERED_IMAGES
from gemma_tpu.engine.engine import Engine

TOKENIZER = gemma_tpu.Tokenizer(Path(__file__).parent / "goldens" / "text" / "tokenizer.model")
CONFIG = dataclasses.replace(TEXT, vocab_size=TOKENIZER.vocab_size, vision=VISION)
LARGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).resize((3000, 2000))
DECODED = 4 * LARGE.width * LARGE.height
GREEDY = {"max_new_tokens": 4, "stop_tokens": ()}
# What belongs to the model and the interpreter, not to what is asked about.
_ELSEWHERE = (gemma_tpu.Model, Engine, gemma_tpu.Tokenizer, types.ModuleType, types.FunctionType, type)


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with gemma_tpu.Model(make_deployment(CONFIG, max_rows=2), random_params(CONFIG), TOKENIZER) as model:
        yield model


def held(root: object) -> int:
    """Bytes of the arrays, images and strings of bytes that `root` keeps."""
    seen: set[int] = set()
    todo, size = [root], 0
    while todo:
        this = todo.pop()
        if id(this) in seen or isinstance(this, _ELSEWHERE) or (isinstance(this, dict) and "__builtins__" in this):
            continue
        seen.add(id(this))
        if isinstance(this, bytes):
            size += len(this)
        elif isinstance(this, np.ndarray | jax.Array):
            size += this.nbytes
        elif isinstance(this, Image.Image):
            size += 4 * this.width * this.height
        todo += gc.get_referents(this)
    return size


def file_of(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "BMP", None])
@pytest.mark.parametrize("pan_and_scan", [False, True])
def test_a_stream_a_completion_and_a_chat_hold_little(
    model: gemma_tpu.Model, kind: str | None, pan_and_scan: bool
) -> None:
    source = LARGE if kind is None else file_of(LARGE, kind)
    stream = model.stream("Which?", images=[source], pan_and_scan=pan_and_scan, **GREEDY)
    assert held(stream) < DECODED + (1 << 20)  # its pixels or, if its soft tokens are known, the picture
    completion = stream.finish()
    assert held(stream) + held(completion) < 1 << 20
    chat = model.chat(pan_and_scan=pan_and_scan, **GREEDY)
    for question, images in (("Which?", [source]), ("And now?", None)):
        chat.send(question, images=images)
        assert held(chat) < DECODED // 4


def test_a_conversation_shows_what_was_sent(model: gemma_tpu.Model, tmp_path: Path) -> None:
    path, small = tmp_path / "a.png", Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8))
    answers = []
    for change in (False, True):
        small.save(path)
        chat = model.chat(**GREEDY)
        first = chat.send("Which?", images=[path]).tokens
        if change:
            small.rotate(180).save(path)
            # Soft tokens of other pictures in their place, so that those of the first one are made again.
            model.encode_images(np.random.default_rng(2).integers(0, 256, (REMEMBERED_IMAGES, 8, 8, 3), np.uint8))
            model.generate("Something else entirely", **GREEDY)
            model.generate(["Something else", "or other"], **GREEDY)
        answers.append([first, chat.send("And now?").tokens])
        asked = chat.messages[0]["content"][0]["image"]
        np.testing.assert_array_equal(np.asarray(gemma_tpu.load_image(asked)), np.asarray(small))
    assert answers[0] == answers[1]


def test_a_follow_up_decodes_nothing(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = model.chat(pan_and_scan=True, **GREEDY)
    chat.send("Which?", images=[file_of(LARGE.resize((900, 300)), "JPEG")])
    monkeypatch.setattr("gemma_tpu.picture.decode", None)
    chat.send("And now?")
