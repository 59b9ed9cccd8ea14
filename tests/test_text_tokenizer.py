"""Tokenizer against SentencePiece itself, on a small model of Gemma's kind (tests/reference/make_text_goldens.py)."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
import sentencepiece

from gemma_tpu.text import SOFT_TOKEN, Tokenizer

MODEL = Path(__file__).parent / "goldens" / "text" / "tokenizer.model"
TURNS = ["<start_of_turn>", "<end_of_turn>"]
IMAGE = ["<start_of_image>", "<end_of_image>"]
TYPED_CONTROLS = [
    *TURNS,
    *IMAGE,
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "[multimodal]",
    "<unused0>",
    "<unused3>",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


@pytest.fixture(scope="module")
def sp() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(MODEL))


def train(symbols: list[str], **options: object) -> bytes:
    model = io.BytesIO()
    settings = {
        "vocab_size": 320,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        **{f"{name}_id": i for i, name in enumerate(["pad", "eos", "bos", "unk"])},
        **{f"{name}_piece": f"<{name}>" for name in ["pad", "eos", "bos", "unk"]},
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the red circle is small", "a blue square, two lines"] * 50),
        model_writer=model,
        model_type="bpe",
        user_defined_symbols=symbols,
        hard_vocab_limit=False,
        minloglevel=2,
        **(settings | options),
    )
    return model.getvalue()


def test_ids_are_those_of_the_pieces(tokenizer: Tokenizer, sp: sentencepiece.SentencePieceProcessor) -> None:
    assert tokenizer.vocab_size == sp.vocab_size()
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    for name in ("start_of_turn", "end_of_turn", "start_of_image", "end_of_image"):
        assert sp.id_to_piece(getattr(tokenizer, name)) == f"<{name}>"
    assert tokenizer.double_newline == [sp.piece_to_id("\n\n")]
    assert tokenizer.id("▁the") == sp.piece_to_id("▁the")
    assert tokenizer.piece(tokenizer.id("\n\n\n")) == "\n\n\n"
    assert Tokenizer(MODEL.read_bytes()).encode("red") == Tokenizer(str(MODEL)).encode("red")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "   two  spaces ",
        "\n\n\n\n\n\n\n",
        "a\tb\r\n",
        "你好，世界 😀👩‍👩‍👧",
        "\0\x01é",
        "<table><b>x</b></table> <html>",
    ],
)
@pytest.mark.parametrize("control", [False, True])
def test_plain_text_is_encoded_as_sentencepiece_does(tokenizer, sp, text: str, control: bool) -> None:
    assert tokenizer.encode(text, control=control) == sp.encode(text)
    assert tokenizer.encode(text, bos=True, control=control) == [2, *sp.encode(text)]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ordinary_pieces_stay_whole(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.piece(i) for i in tokenizer.encode("<table>\n\n\n<b>")]
    assert pieces == ["<table>", "\n\n\n", "<b>"]


@pytest.mark.parametrize("piece", TYPED_CONTROLS)
def test_typed_control_pieces_are_text(tokenizer: Tokenizer, piece: str) -> None:
    control = tokenizer.id(piece)
    for text in (piece, f"a {piece}b", piece * 3, f"<{piece}>", f"\n\n{piece}\n\n", piece[:-1] + piece):
        ids = tokenizer.encode(text)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text
        parsed = tokenizer.encode(text, control=True)
        assert parsed.count(control) == text.count(piece)
        assert tokenizer.decode(parsed, skip_special=False) == text
        assert tokenizer.decode(parsed) == text.replace(piece, "")


def test_bytes_spelled_out_are_text(tokenizer: Tokenizer) -> None:
    for control in (False, True):
        ids = tokenizer.encode("<0x41>", control=control)
        assert tokenizer.id("<0x41>") not in ids
        assert tokenizer.decode(ids) == "<0x41>"


def test_random_text_comes_back(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    pool = [
        *TYPED_CONTROLS,
        "<image_soft_token>",
        "<",
        ">",
        "[",
        "]",
        " ",
        "\n",
        "\t",
        "red",
        "é",
        "你",
        "😀",
        "<table>",
        "\0",
    ]
    for _ in range(300):
        text = "".join(rng.choices(pool, k=rng.randrange(12)))
        ids = tokenizer.encode(text)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(tokenizer.encode(text, control=True), skip_special=False) == text


def test_many_brackets_are_no_slow_path(tokenizer: Tokenizer) -> None:
    text = "<[" * 50_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_is_sentencepieces(tokenizer: Tokenizer, sp: sentencepiece.SentencePieceProcessor) -> None:
    """Any ids, mostly bytes so that all ways of not being UTF-8 occur."""
    rng = random.Random(1)
    special = [i for i in tokenizer.special_ids if not sp.is_control(i)]  # SentencePiece spells these out
    plain = [i for i in range(sp.vocab_size()) if i not in special]
    byte_ids = [i for i in plain if sp.is_byte(i)]
    for _ in range(500):
        ids = [rng.choice(byte_ids if rng.random() < 0.8 else plain) for _ in range(rng.randrange(20))]
        assert tokenizer.decode(ids) == sp.decode(ids)
    for text in ("😀é你\u07ff\uffff", "\ud7ff\ue000\U0010ffff"):
        assert tokenizer.decode([sp.piece_to_id(f"<0x{b:02X}>") for b in text.encode()]) == text


def test_special_tokens_have_no_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    ids = [2, tokenizer.start_of_turn, *tokenizer.encode("user\n"), SOFT_TOKEN, tokenizer.unk_id, tokenizer.end_of_turn]
    assert tokenizer.decode(ids) == "user\n"
    spelled = "<bos><start_of_turn>user\n<image_soft_token><unk><end_of_turn>"
    assert tokenizer.decode(ids, skip_special=False) == spelled


@pytest.mark.parametrize("token", [-2, 800, 262_144])
def test_id_outside_the_vocabulary(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(ValueError, match=rf"token id {token} .* 800 pieces"):
        tokenizer.decode([token])
    with pytest.raises(ValueError, match="vocabulary lacks the piece '<nope>'"):
        tokenizer.id("<nope>")


def test_half_a_surrogate_pair(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"half a surrogate pair \('\\ud83d'\): decode"):
        tokenizer.encode("ab\ud83d")


def test_text_only_vocabulary_with_other_ids() -> None:
    tokenizer = Tokenizer(train(["<mask>", "<unused0>", *TURNS, "\n"]))
    assert tokenizer.start_of_image is None
    assert tokenizer.end_of_image is None
    assert tokenizer.start_of_turn == 6
    assert tokenizer.double_newline == [tokenizer.id("\n")] * 2
    assert tokenizer.decode(tokenizer.encode("<start_of_image>", control=True)) == "<start_of_image>"


def test_missing_pieces_are_named() -> None:
    with pytest.raises(ValueError, match="lacks <end_of_turn>"):
        Tokenizer(train(["<start_of_turn>"]))
    with pytest.raises(ValueError, match="empty"):
        Tokenizer(b"")


@pytest.mark.parametrize(
    "options", [{"add_dummy_prefix": True}, {"normalization_rule_name": "nmt_nfkc"}, {"remove_extra_whitespaces": True}]
)
def test_tokenizer_that_changes_text_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="changes the text it encodes"):
        Tokenizer(train([*TURNS, *IMAGE, "\n"], **options))


def test_not_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b'{"this": "is JSON"}')
    with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model"):
        Tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match="nowhere: no such file"):
        Tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Tokenizer(MODEL.read_bytes()[:5000])
