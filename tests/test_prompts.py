"""Prompts and images in every form that callers give, right or one clear error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gemma_tpu import Tokenizer
from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.prompts import Reading, as_list, images_of_rows, read_batch, read_prompt, render
from gemma_tpu.text import GEMMA3

TOKENIZER = Tokenizer(Path(__file__).parent / "goldens" / "text" / "tokenizer.model")
N = 4
RED = Image.new("RGB", (300, 100), "red")
HELLO = {"role": "user", "content": "Hello"}
IDS = [2, 70, 80]


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("", ""),
        ("Hello", "Hello"),
        (np.str_("Hello"), "Hello"),
        (HELLO, [HELLO]),
        ([HELLO], [HELLO]),
        ((HELLO,), [HELLO]),
        (tuple(IDS), IDS),
        (range(3), [0, 1, 2]),
        (np.array(IDS, np.uint16), IDS),
        (jnp.array(IDS), IDS),
        ([np.int64(2), 70, np.int32(80)], IDS),
    ],
)
def test_one_prompt(prompt: Any, plain: Any) -> None:
    assert read_batch(prompt) is None
    assert read_prompt(prompt) == plain


@pytest.mark.parametrize(
    "batch",
    [
        ["Hello"],
        ("a", ""),
        [[HELLO], [HELLO]],
        ["Hello", [HELLO], IDS, np.array(IDS)],
        [IDS, IDS],
        np.array([IDS, IDS]),
        jnp.array([IDS]),
        np.array(["a", "b"]),
    ],
)
def test_a_batch(batch: Any) -> None:
    elements = read_batch(batch)
    assert elements is not None
    assert len(elements) == len(batch)
    for element in elements:
        assert read_prompt(element) in ("Hello", "a", "b", "", [HELLO], IDS)
    with pytest.raises(ValueError, match=f"prompt is a batch of {len(batch)} prompts, where one is expected"):
        read_prompt(batch)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "prompt is of type NoneType: a prompt is a string, a message, a list of messages or a list of token"),
        (3, "of type int"),
        (b"Hello", "bytes: decode"),
        (bytearray(b"Hello"), "bytes: decode"),
        (memoryview(b"Hello"), "bytes: decode"),
        (Path("x"), "of type PosixPath"),
        ((token for token in IDS), "of type generator"),
        ([], "prompt is empty: a prompt is"),
        (np.zeros(0, int), "prompt is empty"),
        ([2, 3.5], r"prompt\[1\] is of type float"),
        ([True], r"prompt\[0\] is of type bool"),
        ([None], r"prompt\[0\] is of type NoneType"),
        (["a", b"b"], r"prompt\[1\] is of type bytes"),
        (np.array([1.0, 2.0]), r"prompt\[0\] is of type float"),
        (np.array(7), r"of shape \[T\], and a batch \[B, T\]; got \[\]"),
        (np.zeros((2, 2, 2), int), r"got \[2, 2, 2\]"),
        ([HELLO, "a"], "prompt mixes messages and prompts"),
        ([HELLO, 3], "prompt mixes messages and token ids"),
        ([3, "a"], "prompt mixes prompts and token ids"),
    ],
)
def test_what_is_no_prompt(prompt: Any, message: str) -> None:
    for read in (read_batch, read_prompt):
        with pytest.raises(ValueError, match=message):
            read(prompt)


def test_a_batch_in_a_batch() -> None:
    (inner,) = read_batch([["a", "b"]]) or []
    with pytest.raises(ValueError, match="a batch of 2 prompts, where one is expected"):
        read_prompt(inner)


@pytest.fixture
def red_png(tmp_path: Path) -> Path:
    RED.save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_images_alone_are_a_list_of_one(red_png: Path) -> None:
    array, data = np.asarray(RED), red_png.read_bytes()
    sources = [str(red_png), red_png, data, bytearray(data), memoryview(data), io.BytesIO(data), RED, array]
    for source in [*sources, jnp.asarray(array), array[..., 0]]:
        (image,) = Reading().images(source)
        assert image.size == RED.size
    for several in (sources[:2], tuple(sources[:2]), (source for source in sources[:2]), np.stack([array, array])):
        assert [image.open().getpixel((0, 0)) for image in Reading().images(several)] == [(255, 0, 0)] * 2
    assert as_list(None) == as_list([]) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "images is of type int; expected an image or a list of images"),
        ({"url": "x.png"}, "images is of type dict"),
        ([RED, 3], r"images\[1\]: cannot read an image from int"),
        ([[RED]], r"images\[0\]: cannot read an image from list"),
        ("", r"images\[0\]: an empty path"),
        (["no.png"], r"images\[0\]: no.png: no such file"),
        ("https://example.org/a.png", r"images\[0\]: https://example.org/a.png: .*only where that is allowed"),
    ],
)
def test_what_are_no_images(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reading().images(images)


def test_images_of_rows() -> None:
    assert images_of_rows(None, 2) == [[], []]
    assert images_of_rows([[RED], []], 2) == [[RED], []]
    assert images_of_rows([RED, [RED, RED]], 2) == [[RED], [RED, RED]]
    assert images_of_rows("x.png", 1) == [["x.png"]]
    with pytest.raises(ValueError, match="a list for each of the 3 rows, got 1"):
        images_of_rows(RED, 3)


def spelled(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens, skip_special=False).replace("<image_soft_token>", "*")


def test_a_string_is_a_message_with_its_images_first() -> None:
    prompt = render("Which?", [RED], GEMMA3, TOKENIZER, N, Reading())
    parts = [{"type": "image", "image": RED}, {"type": "text", "text": "Which?"}]
    assert prompt == render([{"role": "user", "content": parts}], None, GEMMA3, TOKENIZER, N, Reading())
    assert prompt.tokens.count(SOFT_TOKEN) == N
    assert render([HELLO], [], GEMMA3, TOKENIZER, N, Reading()) == render(
        "Hello", None, GEMMA3, TOKENIZER, N, Reading()
    )


def test_options_of_the_chat_format_reach_it() -> None:
    crops = render("Which?", RED.resize((1200, 300)), GEMMA3, TOKENIZER, N, Reading(pan_and_scan=True))
    assert [placed.image.size for placed in crops.images] == [(1200, 300), *[(300, 300)] * 4]
    assert "here are some crops" in spelled(crops.tokens)
    cut = [HELLO, {"role": "assistant", "content": "Hi the"}]
    assert spelled(render(cut, None, GEMMA3, TOKENIZER, N, Reading(continue_final=True)).tokens).endswith(
        "model\nHi the"
    )


@pytest.mark.parametrize(
    ("prompt", "images", "reading", "message"),
    [
        ([HELLO], [RED], Reading(), "images= goes with a string"),
        ([HELLO], None, Reading(raw=True), "raw goes with a string"),
        ("Hi", None, Reading(continue_final=True), "continue_final goes with messages"),
        (IDS, None, Reading(continue_final=True), "continue_final goes with messages"),
        ("Hi", None, Reading(raw=True, pan_and_scan=True), "pan_and_scan: part of the chat format"),
        (IDS, None, Reading(pan_and_scan=True), "pan_and_scan: part of the chat format"),
        ([HELLO, {"role": "assistant", "content": "x"}], None, Reading(), r"or continue it \(continue_final\)"),
    ],
)
def test_options_that_do_not_go_together(prompt: Any, images: Any, reading: Reading, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(prompt, images, GEMMA3, TOKENIZER, N, reading)


def test_raw_text_and_ids_take_images_at_their_marks() -> None:
    (soi,) = TOKENIZER.encode("<start_of_image>", control=True)
    raw = render("See <start_of_image>!", RED, GEMMA3, TOKENIZER, N, Reading(raw=True))
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode("See "), soi, *TOKENIZER.encode("!")]
    assert raw == render(ids, [RED], GEMMA3, TOKENIZER, N, Reading())
    assert [placed.start for placed in raw.images] == [raw.tokens.index(SOFT_TOKEN)]
    with pytest.raises(ValueError, match="has 1 <start_of_image> but 2 image"):
        render(ids, [RED, RED], GEMMA3, TOKENIZER, N, Reading())
    assert spelled(raw.tokens) == "<bos>See \n\n<start_of_image>****<end_of_image>\n\n!"
