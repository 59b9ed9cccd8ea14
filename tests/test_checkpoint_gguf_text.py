"""The tokenizer in a GGUF file: the same ids as by the SentencePiece model from which llama.cpp's converter has it."""

from __future__ import annotations

import random
from pathlib import Path

import gguf_files as files
import numpy as np
import pytest
import sentencepiece
from released_files import released_file
from sentencepiece import sentencepiece_model_pb2 as proto

from gemma_tpu.checkpoint import CheckpointError
from gemma_tpu.checkpoint.gguf_file import GgufFile, read_file
from gemma_tpu.checkpoint.gguf_text import read_text
from gemma_tpu.text import AddedToken, Tokenizer

ROOT = Path(__file__).parents[1]
MODELS = {
    "tests": ROOT / "tests" / "goldens" / "text" / "tokenizer.model",
    "demo": ROOT / "checkpoints" / "gemma3-demo" / "tokenizer.model",
}
TEXTS = [
    "",
    " ",
    "  two  spaces   \n\n\n\n tabs\t\t\t" + " " * 40 + "\n" * 40,
    "naïve café, 日本語テキスト mixed, 🙂👩‍👩‍👧 \x00\x7f\u00a0\u3000 ﬁ ▁",
    "<start_of_turn>user\n<table><b>x</b></table><unused0><pad><0x0A><end_of_turn>",
    "def f(x):\n    return x**2  # 12345678\n",
]


def written(model: bytes, path: Path, rows: int = 0, *, listed: bool = True, **others: object) -> GgufFile:
    """The file that holds a SentencePiece model's pieces."""
    metadata = {**files.vocabulary(model, rows, listed=listed), **others}
    return read_file(str(files.write(path, {"a": np.zeros((1, 32), np.float32)}, metadata)))


def check_same(model: bytes, found: bytes, texts: list[str]) -> None:
    ours, theirs = Tokenizer(found), Tokenizer(model)
    assert ours.special_ids == theirs.special_ids
    assert ours.vocab_size == theirs.vocab_size
    raw, expected = (sentencepiece.SentencePieceProcessor(model_proto=proto) for proto in (found, model))
    for text in texts:
        assert raw.encode(text) == expected.encode(text)
        for control in (False, True):
            assert (ids := ours.encode(text, control=control)) == theirs.encode(text, control=control), text
            assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special=False)


def varied(model: bytes, count: int) -> list[str]:
    """Texts of random characters, and of random pieces in a row."""
    rng = random.Random(0)
    ranges = [(32, 127), (0x20, 0x3000), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (9, 11), (32, 33)]
    pieces = [
        piece.piece.replace("▁", " ") for piece in proto.ModelProto.FromString(model).pieces if piece.type in (1, 4)
    ]
    characters = ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(50)) for _ in range(count)]
    return TEXTS + characters + ["".join(rng.choices(pieces, k=12)) for _ in range(count)]


@pytest.mark.parametrize("listed", [True, False], ids=["with tokenizer_config.json", "without it"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padding", [0, 64])
def test_the_same_ids_as_by_the_model(name: str, listed: bool, padding: int, tmp_path: Path) -> None:
    model = MODELS[name].read_bytes()
    pieces = len(proto.ModelProto.FromString(model).pieces)
    text = read_text(written(model, tmp_path / "a.gguf", pieces + padding, listed=listed))
    assert (text.rows, text.pieces, text.added_tokens) == (pieces, pieces, ())
    assert text.tokenizer_model is not None
    check_same(model, text.tokenizer_model, varied(model, 150))


def test_the_released_vocabulary(tmp_path: Path) -> None:
    model = released_file("tokenizer.model").read_bytes()
    for listed in (True, False):
        text = read_text(written(model, tmp_path / "a.gguf", 262_208, listed=listed))
        assert (text.rows, text.added_tokens) == (262_144, ())
        assert text.tokenizer_model is not None
        check_same(model, text.tokenizer_model, varied(model, 300))


def test_types_that_are_wrong_for_control_pieces(tmp_path: Path) -> None:
    """As in the first files of Google's quantisation-aware training."""
    model = MODELS["tests"].read_bytes()
    metadata = files.vocabulary(model, 0, listed=True)
    types = metadata["tokenizer.ggml.token_type"]
    for token, text in enumerate(metadata["tokenizer.ggml.tokens"]):
        if text.startswith(("<start_of", "<end_of", "<unused", "<pad", "<bos")):
            types[token] = 1
    text = read_text(written(model, tmp_path / "a.gguf", 0, **{"tokenizer.ggml.token_type": types}))
    assert text.tokenizer_model is not None
    check_same(model, text.tokenizer_model, TEXTS)


def test_a_first_merge_that_lost_its_sign(tmp_path: Path) -> None:
    """Its score is 0, as that of user-defined pieces; the one that follows has -1."""
    model = MODELS["demo"].read_bytes()
    scores = np.array(files.vocabulary(model, 0, listed=False)["tokenizer.ggml.scores"]) + 0.0
    assert not np.signbit(scores[scores == 0]).any()
    others = {"tokenizer.ggml.scores": scores.tolist()}
    text = read_text(written(model, tmp_path / "a.gguf", 0, listed=False, **others))
    assert text.tokenizer_model is not None
    check_same(model, text.tokenizer_model, varied(model, 50))


def test_tokens_that_a_fine_tune_added(tmp_path: Path) -> None:
    """In the extra rows behind the placeholder, and special ones in place of unused pieces."""
    model = MODELS["tests"].read_bytes()
    metadata = files.vocabulary(model, 864, listed=True)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    tokens[801], types[801] = "<tool>", 3
    tokens[803], types[803] = "word", 4
    tokens[7], types[7] = "<mine>", 3
    others = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    text = read_text(written(model, tmp_path / "a.gguf", 864, **others))
    assert (text.pieces, text.rows) == (800, 804)
    assert text.added_tokens == (
        AddedToken(7, "<mine>", True),
        AddedToken(801, "<tool>", True),
        AddedToken(803, "word"),
    )
    assert text.tokenizer_model is not None
    tokenizer = Tokenizer(text.tokenizer_model, added=text.added_tokens)
    assert tokenizer.encode("<tool>word<mine>", control=True) == [801, 803, 7]
    assert {7, 801} <= tokenizer.special_ids
    assert not {7, 801} & set(tokenizer.encode("<tool><mine>"))


def test_template_and_defaults(tmp_path: Path) -> None:
    others = {"tokenizer.chat_template": "{{ x }}", "general.sampling.top_k": 64, "general.sampling.top_p": 0.95}
    others |= {"general.sampling.temp": 0.7, "general.sampling.mirostat": 2, "tokenizer.ggml.eot_token_id": 1}
    text = read_text(written(MODELS["tests"].read_bytes(), tmp_path / "a.gguf", **others))
    assert text.chat_template == "{{ x }}"
    expected = {
        "top_k": 64,
        "top_p": 0.95,
        "temperature": 0.7,
        "mirostat": 2,
        "do_sample": True,
        "eos_token_id": [11, 1],
    }
    assert text.generation_config == expected


REFUSED = {
    "another kind": ({"tokenizer.ggml.model": "gpt2"}, r"its tokenizer is of kind 'gpt2', .* put the tokenizer.model"),
    "too few scores": ({"tokenizer.ggml.scores": [0.0]}, r"tokenizer.ggml.scores has not one value for each of 800"),
    "too few types": ({"tokenizer.ggml.token_type": [1]}, r"tokenizer.ggml.token_type has not one value for each"),
    "no texts": ({"tokenizer.ggml.tokens": [1, 2]}, r"tokenizer.ggml.tokens is .*, no list of texts"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_tokenizer_of_gemma(what: str, tmp_path: Path) -> None:
    others, message = REFUSED[what]
    file = written(MODELS["tests"].read_bytes(), tmp_path / "a.gguf", **others)
    with pytest.raises(CheckpointError, match=rf"^{file.path}: .*{message}"):
        _ = read_text(file).tokenizer_model


@pytest.mark.parametrize(("token", "text", "message"), [(2, "<s>", "lacks <bos>"), (700, "<bos>", "has '<bos>' twice")])
def test_a_vocabulary_of_another_model(token: int, text: str, message: str, tmp_path: Path) -> None:
    model = MODELS["tests"].read_bytes()
    tokens = files.vocabulary(model, 0, listed=True)["tokenizer.ggml.tokens"]
    tokens[token] = text
    file = written(model, tmp_path / "a.gguf", **{"tokenizer.ggml.tokens": tokens})
    with pytest.raises(CheckpointError, match=rf"^{file.path}: .*{message}"):
        _ = read_text(file).tokenizer_model


def test_a_file_without_tokens(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.gguf", {"a": np.zeros((1, 32), np.float32)}, {})
    text = read_text(read_file(str(path)))
    assert (text.tokenizer_model, text.rows, text.generation_config) == (None, 0, {})
