"""Prompts of TranslateGemma against the sentences of its chat template, as vLLM's and llama.cpp's tests quote them."""

from __future__ import annotations

import format_samples
import pytest
from PIL import Image

from gemma_tpu.text.formats import TRANSLATE_GEMMA
from gemma_tpu.text.languages import language

TOKENIZER = format_samples.tokenizer()
ROLE = (
    "You are a professional Czech (cs) to German (de-DE) translator. Your goal is to accurately convey the meaning and "
    "nuances of the original Czech text while adhering to German grammar, vocabulary, and cultural sensitivities.\n"
)
TEXT = (
    "Produce only the German translation, without any additional explanations or commentary. Please translate the "
    "following Czech text into German:\n\n\n"
)
IMAGE = (
    "Please translate the Czech text in the provided image into German. Produce only the German translation, without "
    "any additional explanations, alternatives or commentary. Focus only on the text, do not output where the text is "
    "located, surrounding objects or any other explanation about the picture. Ignore symbols, pictogram, and arrows!"
    "\n\n\n"
)
CODES = {"source_lang_code": "cs", "target_lang_code": "de_DE"}
PICTURE = Image.new("RGB", (3, 2))


def spelled(content, soft=None, **options) -> str:
    messages = content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]
    return format_samples.spelled(TOKENIZER, TRANSLATE_GEMMA.render(messages, TOKENIZER, soft, **options).tokens)


def test_a_text():
    expected = f"<bos><start_of_turn>user\n{ROLE}{TEXT}Dobrý den.<end_of_turn>\n<start_of_turn>model\n"
    assert spelled([{"type": "text", "text": " Dobrý den.\n", **CODES}]) == expected
    assert spelled("Dobrý den.", source_lang="cs", target_lang="de-DE") == expected
    assert spelled([{"type": "text", "text": "Dobrý den.", **CODES}], source_lang="fr", target_lang="fr") == expected


def test_a_picture():
    expected = (
        f"<bos><start_of_turn>user\n{ROLE}{IMAGE}\n\n<start_of_image>**<end_of_image>\n\n<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    part = {"type": "image", "image": PICTURE}
    assert spelled([part | CODES], 2) == expected
    assert spelled([part, {"type": "text", "text": ""}], 2, source_lang="cs", target_lang="de-DE") == expected


def test_several_turns():
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b "}, {"role": "user", "content": "c"}]
    turn = f"<start_of_turn>user\n{ROLE}{TEXT}"
    assert spelled(said, source_lang="cs", target_lang="de-DE") == (
        f"<bos>{turn}a<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n{turn}c<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a", {}, r"messages\[0\]: from which language into which\? Say source_lang="),
        ("a", {"source_lang": "cs"}, "from which language"),
        ("a", {"source_lang": "xx", "target_lang": "de"}, "no language has the code 'xx': give an ISO 639 code"),
        ("a", {"source_lang": "Germann", "target_lang": "de"}, "'Germann': do you mean 'de'"),
        ("a", {"source_lang": 3, "target_lang": "de"}, "must be a string such as 'de', got 3"),
        ([{"type": "text", "text": "a"}] * 2, {"source_lang": "cs", "target_lang": "de"}, "one image, got 2 parts"),
        (" ", {"source_lang": "cs", "target_lang": "de"}, "got 0 parts"),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], {}, "no system message"),
    ],
)
def test_what_is_no_translation(content, options, message):
    with pytest.raises(ValueError, match=message):
        spelled(content, **options)


def test_languages():
    assert language("pt_BR", "x") == ("pt-BR", "Portuguese")
    assert language("zh-Hant", "x") == ("zh-Hant", "Chinese")
    assert language("fil", "x") == ("fil", "Filipino")
    assert language("nb", "x") == ("nb", "Norwegian Bokmål")
