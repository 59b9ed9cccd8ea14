"""Both formats of tokenizer file give the same ids; what only one of them can say."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tokenizers
from tokenizer_files import renamed, tokenizer_json, with_settings

from gemma_tpu.text import AddedToken, Tokenizer

ROOT = Path(__file__).parents[1]
MODELS = [
    ROOT / "tests" / "goldens" / "text" / "tokenizer.model",
    ROOT / "checkpoints" / "gemma3-demo" / "tokenizer.model",
]
SMALL = MODELS[0].read_bytes()
PARTS = ["the", " red", "circle ", "<start_of_turn>", "<end_of_image>", "<unused2>", "<bos>", "<image_soft_token>", "<"]
PARTS += [
    ">",
    "[multimodal]",
    "\n",
    "\n\n\n",
    "\t",
    "  ",
    "é",
    "你好",
    "😀",
    "<table>",
    "</b>",
    "12",
    "\r\n",
    "▁",
    "\0",
]


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(PARTS, k=rng.randrange(15))) for _ in range(count)]


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.parent.name)
def test_both_formats_are_the_same_tokenizer(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(model.read_bytes()))
    one, other = Tokenizer(model), Tokenizer(tmp_path / "tokenizer.json")
    assert vars(one).keys() == vars(other).keys()
    for name in ("vocab_size", "special_ids", "double_newline", "start_of_turn", "end_of_turn", "start_of_image"):
        assert getattr(one, name) == getattr(other, name), name
    assert [one.piece(i) for i in range(one.vocab_size)] == [other.piece(i) for i in range(one.vocab_size)]
    for text in random_texts(300):
        for control in (False, True):
            ids = one.encode(text, control=control)
            assert other.encode(text, control=control) == ids, text
            for skip in (False, True):
                assert other.decode(ids, skip_special=skip) == one.decode(ids, skip_special=skip)


def test_a_file_that_cuts_and_pads_is_made_to_do_neither() -> None:
    file = tokenizers.Tokenizer.from_str(tokenizer_json(SMALL).decode())
    file.enable_truncation(3)
    file.enable_padding(length=64)
    text = "the red circle and the blue square"
    assert Tokenizer(file.to_str().encode()).encode(text) == Tokenizer(SMALL).encode(text)


def test_tokens_behind_the_pieces() -> None:
    """As a tokenizer.json has them, and as the files beside a SentencePiece model do."""
    tokens = [("<think>", False), ("<|call|>", True), ("two words", False), ("end-of-plan", True)]
    added = [AddedToken(800 + i, text, special) for i, (text, special) in enumerate(tokens)]
    of_json, of_model = Tokenizer(tokenizer_json(SMALL, tokens)), Tokenizer(SMALL, added=added)
    text = "the<think> red<|call|> two words, end-of-plan"
    for tokenizer in (of_json, of_model):
        assert tokenizer.vocab_size == 804
        assert {801, 803} == tokenizer.special_ids - Tokenizer(SMALL).special_ids
        typed = tokenizer.encode(text)
        assert [token for token in typed if token >= 800] == [800, 802]  # the special ones are text in a user's mouth
        assert tokenizer.decode(typed) == text
        parsed = tokenizer.encode(text, control=True)
        assert [token for token in parsed if token >= 800] == [800, 801, 802, 803]
        assert tokenizer.decode(parsed) == "the<think> red two words, "
        assert tokenizer.decode(parsed, skip_special=False) == text
    assert of_json.encode(text) == of_model.encode(text)
    for text in random_texts(100):
        assert of_json.encode(f"{text}<think>{text}") == of_model.encode(f"{text}<think>{text}")


def test_ids_between_the_pieces_and_an_added_token_stand_for_nothing() -> None:
    tokenizer = Tokenizer(SMALL, added=[AddedToken(805, "<think>")])
    assert tokenizer.vocab_size == 806
    assert [i for i in range(790, 810) if not tokenizer.has_piece(i)] == [*range(800, 805), *range(806, 810)]
    assert tokenizer.decode([800, 805, 804]) == "<think>"


def test_the_stand_in_for_soft_tokens_is_no_piece() -> None:
    for tokenizer in (
        Tokenizer(tokenizer_json(SMALL, [("<image_soft_token>", True)])),
        Tokenizer(SMALL, added=[AddedToken(800, "<image_soft_token>", True)]),
    ):
        assert tokenizer.vocab_size == 800
        for control in (False, True):
            ids = tokenizer.encode("<image_soft_token>", control=control)
            assert ids == Tokenizer(SMALL).encode("<image_soft_token>")


def test_a_reserved_piece_under_another_name() -> None:
    """As some trainers do: a row that the model has, for a token of one's own."""
    plain = Tokenizer(SMALL)
    reserved = plain.id("<unused2>")
    tokenizer = Tokenizer(SMALL, added=[AddedToken(reserved, "<think>")])
    assert tokenizer.encode("<think>") == [reserved]
    assert tokenizer.decode([reserved]) == "<think>"
    for control in (False, True):
        ids = tokenizer.encode("<unused2>", control=control)
        assert reserved not in ids
        assert tokenizer.decode(ids) == "<unused2>"


def test_a_special_piece_without_its_name_gets_it() -> None:
    """MaxText's name for the end of an image; a user who writes it does not end one."""
    end = Tokenizer(SMALL).end_of_image
    assert end is not None
    tokenizer = Tokenizer(renamed(SMALL, {end: "<unused99>"}), config_ids={"end_of_image": end})
    assert (tokenizer.end_of_image, tokenizer.warnings) == (end, [])
    assert tokenizer.piece(end) == "<end_of_image>"
    assert tokenizer.encode("<end_of_image>", control=True) == [end]
    for control in (False, True):
        assert end not in tokenizer.encode("<unused99>", control=control)
        assert tokenizer.decode(tokenizer.encode("<unused99>", control=control)) == "<unused99>"
    assert end not in tokenizer.encode("<end_of_image>")
    assert Tokenizer(renamed(SMALL, {end: "<unused99>"})).end_of_image is None


def test_what_is_no_tokenizer_json() -> None:
    file = tokenizer_json(SMALL)
    with pytest.raises(ValueError, match=r"not a tokenizer\.json that tokenizers [\d.]+ reads: "):
        Tokenizer(json.dumps({"version": "1.0", "model": {"type": "Newer"}}).encode())
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        Tokenizer(file[:2000])
    with pytest.raises(ValueError, match="changes the text it encodes"):
        Tokenizer(with_settings(file, normalizer={"type": "NFKC"}))
    with pytest.raises(ValueError, match="lacks <pad>, <eos>"):
        Tokenizer(b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}')
