from __future__ import annotations

import pytest

from gemma_tpu.text import FUNCTION_GEMMA, GEMMA3, SHIELD_GEMMA, TRANSLATE_GEMMA, choose_format, recognise_format

# What the relatives' templates say and Gemma's own does not, as public copies and guides quote them.
FUNCTIONS = "{{- '<start_function_declaration>' -}}{{- format_function_declaration(tool) | trim }}"
TRANSLATION = "{%- set source = content['source_lang_code'] -%}{%- set target = content['target_lang_code'] -%}"
SAFETY = "{{ '<BEGIN_SAFETY_POLICY>\\n' }}{{ item['text'] + '\\n' }}"
GEMMA = "{{ bos_token }}{{ '<start_of_turn>' + role }}{{ '<start_of_image>' }}{{ '<end_of_turn>\\n' }}"


def test_a_checkpoint_wants_the_format_of_its_template():
    for template, format in ((FUNCTIONS, FUNCTION_GEMMA), (TRANSLATION, TRANSLATE_GEMMA), (SAFETY, SHIELD_GEMMA)):
        assert recognise_format(template) is format
        assert choose_format(template, {"model_type": "gemma3"}) is format
    assert recognise_format(GEMMA) is None
    assert choose_format(GEMMA, {}) is choose_format(None, {}) is GEMMA3


def test_shieldgemma_is_known_by_its_config_too():
    raw = {"model_type": "shieldgemma2"}
    assert choose_format(None, raw) is SHIELD_GEMMA
    assert choose_format(GEMMA, raw | {"yes_token_index": 7, "no_token_index": 9}).answers == (7, 9)


def test_options_of_another_format():
    TRANSLATE_GEMMA.check({"source_lang": "cs", "target_lang": "de"})
    GEMMA3.check({"tools": []})
    with pytest.raises(
        ValueError, match=r"source_lang: an option for TranslateGemma; this .* prompt format of Gemma 3"
    ):
        GEMMA3.check({"source_lang": "cs"})
    with pytest.raises(ValueError, match=r"tools: an option for Gemma 3 and FunctionGemma; this"):
        SHIELD_GEMMA.check({"tools": []})
    with pytest.raises(ValueError, match=r"source_lang, tools: an option for Gemma 3 and TranslateGemma and Fun"):
        SHIELD_GEMMA.check({"tools": [], "source_lang": "cs"})
