"""Against the released vocabulary and chat template: `tokenizers` for ids, jinja2 for prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jinja2
import pytest
import sentencepiece
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from released_files import released_file

from gemma_tpu.checkpoint.added_tokens import read_added_tokens
from gemma_tpu.checkpoint.text_assets import read_chat_template
from gemma_tpu.text import SOFT_TOKEN, Detokenizer, Tokenizer, render_messages, render_raw
from gemma_tpu.text.recognition import writes_gemma3

ROOT = Path(__file__).parents[1]
PICTURE = Image.new("RGB", (3, 2))
IMAGE = {"type": "image", "image": PICTURE}
PIECES = {
    **{0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 5: "[multimodal]", 6: "<unused0>"},
    **{104: "<unused98>", 105: "<start_of_turn>", 106: "<end_of_turn>", 107: "\n", 108: "\n\n", 109: "\n\n\n"},
    **{255_999: "<start_of_image>", 256_000: "<end_of_image>", 256_001: "<unused99>", 262_143: "<unused6241>"},
}
CONTROLS = [piece for piece in PIECES.values() if piece.startswith(("<", "["))]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(released_file("tokenizer.model"))


@pytest.fixture(scope="module")
def of_json() -> Tokenizer:
    return Tokenizer(released_file("tokenizer.json"))


@pytest.fixture(scope="module")
def reference() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(released_file("tokenizer.json")))


@pytest.fixture(scope="module")
def template() -> jinja2.Template:
    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    # As transformers 5.23 compiles it (utils/chat_template_utils.py).
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    return environment.from_string(json.loads(released_file("tokenizer_config.json").read_text())["chat_template"])


def reference_ids(reference: tokenizers.Tokenizer, text: str, num_soft: int = 0) -> list[int]:
    """With images put in as Gemma3Processor does (transformers 5.23, processing_gemma3.py)."""
    block = f"\n\n<start_of_image>{'<image_soft_token>' * num_soft}<end_of_image>\n\n"
    ids = reference.encode(text.replace("<start_of_image>", block), add_special_tokens=False).ids
    return [SOFT_TOKEN if token == 262_144 else token for token in ids]


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def user(*content: str | dict) -> dict:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def model(content: str) -> dict:
    return {"role": "assistant", "content": content}


def system(*content: str | dict) -> dict:
    return user(*content) | {"role": "system"}


CONVERSATIONS = [
    # Images: alone, first, last, between texts, next to each other, beside newlines, in later turns.
    [user(IMAGE)],
    [user(IMAGE, text("What is this?"))],
    [user(text("What is this?"), IMAGE)],
    [user(text("Between this"), IMAGE, text("and that"))],
    [user(IMAGE, IMAGE, text("Compare them."))],
    [user(text("These two"), IMAGE, IMAGE, text("and this"), IMAGE)],
    [user(text("One\n\n"), IMAGE, text("\n\ntwo\n"))],
    [user(text("   "), IMAGE, text("\t\n"))],
    [user(text("`code`"), IMAGE, text("    indented"))],
    [system("Be brief."), user(IMAGE, text("What is this?"))],
    [user(IMAGE, text("What is this?")), model("A star."), user("What colour?")],
    [user("Hello."), model("Hello!"), user(IMAGE, text("And this?")), model("A tree."), user(text("This?"), IMAGE)],
    # Text.
    [user("Hello")],
    [user("")],
    [user("  \n spaces around \t\n")],
    [user("two\n\nparagraphs\n\n\n\nfar apart")],
    [user("\n\nnewlines first")],
    [user("你好，世界。これは何ですか？")],
    [user("مرحبا بالعالم، كيف حالك؟")],
    [user("👩‍👩‍👧‍👦 🇫🇷 ✊🏽 ☃️")],
    [user("def f(x):\n\treturn x ** 2\r\n\r\n    # four spaces")],
    [user("<b>bold</b> <table><tr><td>1</td></tr></table> </s>")],
    [user(text("one"), text(" two "), text("three"))],
    # Turns and system messages.
    [user("a"), model("b"), user("c")],
    [user(" a "), model(" b \n"), user("\nc")],
    [user("1"), model("2"), user("3"), model("4"), user("5"), model(""), user("7")],
    [system("Answer in one word."), user("What colour?")],
    [system("  Yes or no.\n"), user("\n\nIs it red?")],
    [system(text("Be small. ")), user(text(" one "), text(" two"))],
    [system("- a\n- b\n\n"), user("Go on."), model("…"), user("And?")],
]


def test_there_are_thirty_conversations() -> None:
    assert len(CONVERSATIONS) == 30


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_prompts_are_those_of_the_released_template(
    tokenizer: Tokenizer, reference: tokenizers.Tokenizer, template: jinja2.Template, number: int
) -> None:
    messages = CONVERSATIONS[number]
    expected = template.render(messages=messages, bos_token="<bos>", add_generation_prompt=True)
    prompt = render_messages(messages, tokenizer, 256)
    assert prompt.tokens == reference_ids(reference, expected, 256)
    assert len(prompt.images) == expected.count("<start_of_image>")


def test_pieces_and_special_ids(tokenizer: Tokenizer, of_json: Tokenizer) -> None:
    for one in (tokenizer, of_json):
        assert one.vocab_size == 262_144
        assert {token: one.piece(token) for token in PIECES} == PIECES
        assert (one.pad_id, one.eos_id, one.bos_id, one.unk_id) == (0, 1, 2, 3)
        assert (one.start_of_turn, one.end_of_turn, one.start_of_image, one.end_of_image) == (
            105,
            106,
            255_999,
            256_000,
        )
        assert one.double_newline == [108]
        assert one.special_ids == frozenset([*range(107), 255_999, *range(256_000, 262_144)])
    some = random.Random(0).sample(range(262_144), 5000)
    assert [tokenizer.piece(token) for token in some] == [of_json.piece(token) for token in some]


def test_an_image_and_a_question(tokenizer: Tokenizer) -> None:
    expected = [2, 105, 2364, 109, 255_999, *[SOFT_TOKEN] * 256, 256_000, 108, 3689, 563, 672, 236_881, 106, 107]
    prompt = render_messages([user(IMAGE, text("What is this?"))], tokenizer, 256)
    assert prompt.tokens == [*expected, 105, 4368, 107]


def test_maxtexts_names_for_the_same_vocabulary(tokenizer: Tokenizer) -> None:
    """Its <unused99> is the end of an image, and the unused pieces behind it count one higher."""
    variant = Tokenizer(released_file("tokenizer.gemma3"))
    assert variant.end_of_image == 256_000
    assert variant.piece(256_001) == "<unused100>"
    assert variant.special_ids == tokenizer.special_ids
    for messages in CONVERSATIONS:
        assert render_messages(messages, variant, 256) == render_messages(messages, tokenizer, 256)
    for typed in ("<unused99>", "<end_of_image>"):
        assert 256_000 not in variant.encode(typed)
        assert variant.decode(variant.encode(typed)) == typed
    assert variant.encode("<end_of_image>", control=True) == [256_000]


@pytest.mark.parametrize("piece", CONTROLS)
def test_control_tokens_in_a_users_mouth_are_text(
    tokenizer: Tokenizer, of_json: Tokenizer, reference: tokenizers.Tokenizer, piece: str
) -> None:
    plain = render_messages([user("x")], tokenizer, 256).tokens
    for said in (piece, f"a{piece}b", f"<{piece}>", f"\n\n{piece}\n", piece * 2, piece[:-1] + piece):
        prompt = render_messages([user(said)], tokenizer, 256)
        assert prompt.images == []
        assert [token for token in prompt.tokens if token in tokenizer.special_ids] == [
            token for token in plain if token in tokenizer.special_ids
        ]
        assert tokenizer.decode(prompt.tokens).strip() == f"user\n{said.strip()}\nmodel"
        assert of_json.encode(said) == tokenizer.encode(said)
        # Where they are meant, they are what the reference takes them for.
        meant = reference.encode(said, add_special_tokens=False).ids
        assert tokenizer.encode(said, control=True) == of_json.encode(said, control=True) == meant


def test_raw_prompts(tokenizer: Tokenizer, reference: tokenizers.Tokenizer) -> None:
    for raw in ("<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n", "Once upon a time", "\n\n a \n", ""):
        assert render_raw(raw, [], tokenizer, 256).tokens == [2, *reference_ids(reference, raw)]
    assert render_raw("<bos>Once", [], tokenizer, 256).tokens == reference_ids(reference, "<bos>Once")
    # Google's package puts ids in: the newlines of an image do not merge with those of the text.
    block = [108, 255_999, *[SOFT_TOKEN] * 256, 256_000, 108]
    prompt = render_raw("A:\n<start_of_image>\nB<start_of_image><start_of_image>", [PICTURE] * 3, tokenizer, 256)
    before, between = reference_ids(reference, "A:\n"), reference_ids(reference, "\nB")
    assert prompt.tokens == [2, *before, *block, *between, *block, *block]


def strings() -> list[str]:
    """500 of them: lines of this repository, mixtures of scripts and whitespace, any characters of Unicode."""
    rng = random.Random(0)
    files = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "gemma_tpu").rglob("*.py"))]
    lines = sorted({line for file in files for line in file.read_text().splitlines(keepends=True)})
    lines = [line for line in lines if "▁" not in line]  # which is a space to every one of them
    mixed = [
        "the",
        " quick",
        "ﬁne",
        "naïve",
        "x_1",
        "3.14",
        "2026",
        "你好",
        "世界",
        "مرحبا",
        "שלום",
        "привет",
        "ไทย",
        "한국어",
    ]
    mixed += ["👩‍👩‍👧‍👦", "🇫🇷", "é", "e\u0301", "\u200b", "\ufeff", "\0", "\x7f", "\ue000", "\U0010ffff"]
    mixed += [
        " ",
        "  ",
        " " * 31,
        " " * 32,
        " " * 70,
        "\n",
        "\n" * 31,
        "\n" * 40,
        "\t",
        "\t" * 33,
        "\r\n",
        "\r",
        "\x0b",
    ]
    mixed += ["<table>", "</b>", "</s>", "<", ">", "[", "]", "{}", "0x1F", "==", "...", "'s", "—"]
    found = ["", " ", "\n\n \n\n", *rng.sample(lines, 197)]
    found += ["".join(rng.choices(mixed, k=rng.randrange(1, 20))) for _ in range(250)]
    while len(found) < 500:
        points = [rng.choice([rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x110000)]) for _ in range(30)]
        found.append("".join(chr(point) for point in points if point != 0x2581))
    return found


def test_tokens_are_those_of_the_tokenizers_package_and_come_back(
    tokenizer: Tokenizer, of_json: Tokenizer, reference: tokenizers.Tokenizer
) -> None:
    checked = strings()
    assert len(checked) == 500
    expected = [encoding.ids for encoding in reference.encode_batch(checked, add_special_tokens=False)]
    for string, ids in zip(checked, expected, strict=True):
        # In code that writes of control tokens they are text; the reference takes them for what they name.
        parse = not tokenizer.special_ids.isdisjoint(ids)
        for one in (tokenizer, of_json):
            assert one.encode(string, control=parse) == ids, repr(string)
            assert one.decode(one.encode(string)) == string


def test_text_in_pieces_is_the_text_at_once(tokenizer: Tokenizer) -> None:
    """2,000 random sequences of any ids, bytes of broken characters among them; what they are, SentencePiece says."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(released_file("tokenizer.model")))
    rng = random.Random(1)
    byte_ids = [tokenizer.id(f"<0x{byte:02X}>") for byte in range(256)]
    for number in range(2000):
        ids: list[int] = []
        while len(ids) < 12:
            kind = rng.randrange(4)
            if kind == 0:
                ids += rng.choices(byte_ids, k=rng.randrange(5))
            elif kind == 1:
                ids += [byte_ids[byte] for byte in rng.choice("é你😀\u07ff").encode()][: rng.randrange(1, 5)]
            elif kind == 2:
                ids += tokenizer.encode(rng.choice([" a", "\n\n\n", "👩‍👧", "مرحبا", "  x\t", "ß"]))
            else:
                ids.append(rng.randrange(tokenizer.vocab_size))
        skip = number % 2 == 0
        detokenizer, shown = Detokenizer(tokenizer, skip_special=skip), ""
        whole = tokenizer.decode(ids, skip_special=skip)
        for token in ids:
            shown += detokenizer.push([token])
            assert whole.startswith(shown)
        assert shown + detokenizer.flush() == whole
        text_ids = [token for token in ids if token not in tokenizer.special_ids]
        assert tokenizer.decode(text_ids) == processor.decode(text_ids)


@pytest.mark.parametrize("model", ["tokenizer.model", "tokenizer.gemma3", None])
def test_the_files_of_a_hub_together(tokenizer: Tokenizer, tmp_path: Path, model: str | None) -> None:
    """With the settings beside it, MaxText's file is the released one to the last piece, without a warning."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(released_file(name))
    (tmp_path / "added_tokens.json").write_text('{"<image_soft_token>": 262144}')
    added = read_added_tokens([str(tmp_path)])
    assert len(added) == 6415
    config_ids = {"bos": 2, "eos": 1, "pad": 0, "start_of_image": 255_999, "end_of_image": 256_000}
    file = released_file(model) if model else tmp_path / "tokenizer.json"
    together = Tokenizer(file, added=added, config_ids=config_ids)
    assert (together.warnings, together.vocab_size) == ([], 262_144)
    assert together.special_ids == tokenizer.special_ids
    some = [256_000, 256_001, 262_143, *random.Random(0).sample(range(262_144), 2000)]
    assert [together.piece(token) for token in some] == [tokenizer.piece(token) for token in some]
    for string in ("<unused99> <end_of_image>\n\n", "<table>\t\t def f():", "<unused6242>"):
        for control in (False, True):
            assert together.encode(string, control=control) == tokenizer.encode(string, control=control)
    template, _ = read_chat_template([str(tmp_path)]) or ("", "")
    assert writes_gemma3(template, together, images=True)
