"""What conversion writes for transformers, read by transformers itself: its ids are ours."""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentencepiece import sentencepiece_model_pb2

from checkpoints.demo_model import CHECKPOINT
from gemma_tpu.checkpoint import CheckpointWarning, convert, hf_assets, open_checkpoint
from gemma_tpu.text import SOFT_TOKEN, Tokenizer, render_messages
from gemma_tpu.text.special import IMAGE_SOFT_TOKEN

transformers = pytest.importorskip("transformers")
DEMO = open_checkpoint(CHECKPOINT).config
CONVERSATIONS = [
    [{"role": "user", "content": " Hello \n"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "\nc "},
        {"role": "user", "content": "d"},
    ],
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    return convert(CHECKPOINT, tmp_path_factory.mktemp("companions") / "hf", to="safetensors", progress=False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(CHECKPOINT / "tokenizer.model")


def texts() -> list[str]:
    rng = random.Random(0)
    fixed = [
        "hello  world",
        "a\n\n\n b",
        "\t\tx",
        " " * 40,
        "你好 <table></b>",
        "👩‍👩‍👧 مرحبا",
        "▁x",
        "a<start_of_turn>b",
        "",
    ]
    made = ["".join(rng.choice("abcdeT  \n\t<>éЖ你12.,'") for _ in range(rng.randint(1, 60))) for _ in range(200)]
    return fixed + made


def test_the_tokenizer(converted: Path, tokenizer: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(converted)
    for text in texts():
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text, control=True), repr(text)
    assert theirs.encode("x") == tokenizer.encode("x", bos=True)
    assert theirs.convert_tokens_to_ids(IMAGE_SOFT_TOKEN) == DEMO.vocab_size
    for name in ("pad", "bos", "eos", "unk"):
        assert getattr(theirs, f"{name}_token_id") == getattr(tokenizer, f"{name}_id")


def test_the_chat_template(converted: Path, tokenizer: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(converted)
    for messages in CONVERSATIONS:
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == render_messages(messages, tokenizer, None).tokens
    for roles in (["assistant"], ["user", "user"], ["user", "assistant", "assistant"]):
        with pytest.raises(Exception, match="take turns"):
            theirs.apply_chat_template([{"role": role, "content": "x"} for role in roles])


def test_the_processor(converted: Path, tokenizer: Tokenizer) -> None:
    processor = transformers.AutoProcessor.from_pretrained(converted)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    shown = {"type": "image", "image": image}
    messages = [{"role": "user", "content": [shown, {"type": "text", "text": "What is this?"}, shown]}]
    theirs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    ours = render_messages(messages, tokenizer, DEMO.vision.num_soft_tokens).tokens
    assert list(theirs["input_ids"][0]) == [DEMO.vocab_size if token == SOFT_TOKEN else token for token in ours]
    assert np.shape(theirs["pixel_values"][0]) == (3, DEMO.vision.image_size, DEMO.vision.image_size)
    assert np.abs(theirs["pixel_values"][0]).max() <= 1


def test_special_pieces_get_the_names_that_the_settings_beside_them_use(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """MaxText's vocabulary calls the end of an image <unused99>; config.json says which id is meant."""
    src = shutil.copytree(CHECKPOINT, tmp_path / "src")
    model = sentencepiece_model_pb2.ModelProto.FromString((src / "tokenizer.model").read_bytes())
    model.pieces[tokenizer.end_of_image].piece = "<unused99>"
    (src / "tokenizer.model").write_bytes(model.SerializeToString())
    made = convert(src, tmp_path / "hf", to="safetensors", progress=False, verify=False)
    theirs = transformers.AutoProcessor.from_pretrained(made).tokenizer
    assert theirs.convert_tokens_to_ids("<end_of_image>") == theirs.eoi_token_id == tokenizer.end_of_image
    assert len(theirs) == DEMO.vocab_size + 1, "with the stand-in for soft tokens, and no token of its own"


def test_a_tokenizer_json_alone(converted: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As fine-tunes come that were saved without the settings beside it."""
    src = shutil.copytree(CHECKPOINT, tmp_path / "src")
    (src / "tokenizer.model").unlink()
    shutil.copy(converted / "tokenizer.json", src)
    made = convert(src, tmp_path / "hf", to="safetensors", progress=False, verify=False)
    theirs = transformers.AutoProcessor.from_pretrained(made).tokenizer
    assert theirs.eoi_token_id == tokenizer.end_of_image
    for messages in CONVERSATIONS:
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == render_messages(messages, tokenizer, None).tokens


def test_generation_config(converted: Path, tokenizer: Tokenizer) -> None:
    config = transformers.GenerationConfig.from_pretrained(converted)
    assert config.eos_token_id == [tokenizer.eos_id, tokenizer.end_of_turn]
    assert not config.do_sample


def test_what_is_there_stays(tokenizer: Tokenizer) -> None:
    model = {"tokenizer.model": (CHECKPOINT / "tokenizer.model").read_bytes()}
    text_only = hf_assets.generate_missing(model, dataclasses.replace(DEMO, vision=None))
    assert set(text_only) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    }
    assert IMAGE_SOFT_TOKEN not in text_only["tokenizer.json"].decode()
    theirs = model | {"tokenizer_config.json": b"{}", "preprocessor_config.json": b"{}"}
    assert hf_assets.generate_missing(theirs, DEMO) == {}, (
        "settings of transformers: its tokenizer and template are whole"
    )
    own = model | {"chat_template.json": b"{}", "generation_config.json": b"{}"}
    assert not {"chat_template.jinja", "generation_config.json"} & set(hf_assets.generate_missing(own, DEMO))


def test_a_tokenizer_that_does_not_fit(tokenizer: Tokenizer) -> None:
    larger = dataclasses.replace(DEMO, vocab_size=3000)
    with pytest.warns(
        CheckpointWarning, match=r"no settings and chat template .* it has 2048 pieces, the model 3000 rows"
    ):
        made = hf_assets.generate_missing({"tokenizer.model": (CHECKPOINT / "tokenizer.model").read_bytes()}, larger)
    assert set(made) == {"processor_config.json", "preprocessor_config.json"}
    with pytest.warns(CheckpointWarning, match="not a SentencePiece model"):
        hf_assets.generate_missing({"tokenizer.model": b"junk"}, DEMO)


def test_the_released_vocabulary_gives_the_released_ids() -> None:
    """The ids of `tokenizer.json` as released, from the one that is made of `tokenizer.model`."""
    released = pytest.importorskip("released_files")
    tokenizers = pytest.importorskip("tokenizers")
    model = released.released_file("tokenizer.model").read_bytes()
    made = hf_assets.convert_tokenizer(hf_assets._pieces(model), Tokenizer(model), images=True)
    theirs = tokenizers.Tokenizer.from_file(str(released.released_file("tokenizer.json")))
    for text in texts():
        assert made.encode(text).ids == theirs.encode(text).ids, repr(text)
    assert made.token_to_id(IMAGE_SOFT_TOKEN) == theirs.token_to_id(IMAGE_SOFT_TOKEN) == 262_144
