from __future__ import annotations

import format_samples
import pytest
from PIL import Image

from gemma_tpu.text import POLICIES
from gemma_tpu.text.formats import SHIELD_GEMMA

TOKENIZER = format_samples.tokenizer()
IMAGE = {"type": "image", "image": Image.new("RGB", (3, 2))}


def spelled(*parts, **options) -> str:
    messages = [{"role": "user", "content": list(parts)}]
    return format_samples.spelled(TOKENIZER, SHIELD_GEMMA.render(messages, TOKENIZER, 2, **options).tokens)


def test_the_prompt_of_transformers_template():
    """As transformers' tests have the template: a turn is opened before the image and again before the policy."""
    assert spelled(IMAGE, {"type": "text", "text": "No x."}) == (
        "<bos><start_of_turn>user\n\n\n<start_of_image>**<end_of_image>\n\n<start_of_turn>user\n"
        "You are a policy expert trying to help determine whether a generated or real image is in violation of the "
        "safety policy below. Your decision must very clearly follow the specific language used in the safety policy "
        "and should not include any interpretation outside of the safety policy.\n\n<BEGIN_SAFETY_POLICY>\nNo x.\n"
        "</END_SAFETY_POLICY>\n\nDoes the image violate the above policy? Your Answer must start with 'Yes' or 'No'."
        "<end_of_turn>\n<start_of_turn>model\n"
    )


def test_the_policies_of_transformers():
    pytest.importorskip("transformers")
    from transformers.models.shieldgemma2.processing_shieldgemma2 import DEFAULT_SHIELDGEMMA2_POLICIES

    assert POLICIES == DEFAULT_SHIELDGEMMA2_POLICIES


def test_anything_else():
    text = {"type": "text", "text": "No x."}
    for parts in ([text], [IMAGE], [text, IMAGE], [IMAGE, text, text]):
        with pytest.raises(ValueError, match=r"messages\[0\]: ShieldGemma 2 takes one user message, an image and"):
            spelled(*parts)
    with pytest.raises(ValueError, match="as a whole"):
        spelled(IMAGE, text, pan_and_scan=True)
