"""TranslateGemma's prompt, as its chat template renders it.

vLLM's examples/tool_chat_template_translategemma.jinja has the same sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_tpu.text.languages import language
from gemma_tpu.text.template import Messages, PromptBuilder, check_turns, content_parts, write_turns

_ROLE = (
    "You are a professional {source} ({source_code}) to {target} ({target_code}) translator. Your goal is to "
    "accurately convey the meaning and nuances of the original {source} text while adhering to {target} grammar, "
    "vocabulary, and cultural sensitivities.\n"
)
_TEXT = (
    "Produce only the {target} translation, without any additional explanations or commentary. Please translate the "
    "following {source} text into {target}:\n\n\n"
)
_IMAGE = (
    "Please translate the {source} text in the provided image into {target}. Produce only the {target} translation, "
    "without any additional explanations, alternatives or commentary. Focus only on the text, do not output where the "
    "text is located, surrounding objects or any other explanation about the picture. Ignore symbols, pictogram, and "
    "arrows!\n\n\n"
)


def write_translation(
    builder: PromptBuilder, messages: Messages, continue_final: bool, source_lang: Any = None, target_lang: Any = None
) -> None:
    """Writes the prompt that translates the last message.

    A user message is one text or one image. Its languages are the part's `source_lang_code` and `target_lang_code`, as
    in Hugging Face's messages, else `source_lang` and `target_lang`: ISO 639 codes such as "cs" or "pt-BR". A system
    message is an error. Otherwise as `render_messages`.
    """
    system, turns = check_turns(messages, continue_final)
    if system:
        raise ValueError("messages[0]: TranslateGemma takes no system message, only what is to be translated")

    def question(content: Any, location: str) -> None:
        _question(builder, content, location, source_lang, target_lang)

    write_turns(builder, turns, question, continue_final)


def _question(builder: PromptBuilder, content: Any, location: str, source: Any, target: Any) -> None:
    parts = [part for part in content_parts(content, location) if part[1] != "text" or part[2].strip()]
    if len(parts) != 1:
        raise ValueError(
            f"{location}: TranslateGemma translates one text or the text in one image, got {len(parts)} parts"
        )
    ((at, kind, value),) = parts
    for part in content if not isinstance(content, str) else ():
        if isinstance(part, Mapping):
            source, target = part.get("source_lang_code", source), part.get("target_lang_code", target)
    if source is None or target is None:
        raise ValueError(
            f"{at}: from which language into which? Say source_lang= and target_lang= (--source-lang, --target-lang), "
            "or source_lang_code and target_lang_code in the message"
        )
    (source_code, source_name), (target_code, target_name) = language(source, at), language(target, at)
    sentences = _ROLE + (_TEXT if kind == "text" else _IMAGE)
    builder.text(
        sentences.format(source=source_name, source_code=source_code, target=target_name, target_code=target_code)
    )
    if kind == "text":
        builder.text(value.strip())
    else:
        builder.image(value, at)
