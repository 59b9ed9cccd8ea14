"""Tokenizer, prompt formats and detokenizer: text and conversations ↔ token ids."""

from gemma_tpu.text.detokenizer import Detokenizer, StopStrings
from gemma_tpu.text.formats import (
    FUNCTION_GEMMA,
    GEMMA3,
    OPTIONS,
    SHIELD_GEMMA,
    TRANSLATE_GEMMA,
    Format,
    choose_format,
    recognise_format,
)
from gemma_tpu.text.safety import POLICIES
from gemma_tpu.text.template import Prompt, answer_text, check_turns, expand_images, render_messages, render_raw
from gemma_tpu.text.thoughts import Thoughts
from gemma_tpu.text.tokenizer import SOFT_TOKEN, Tokenizer
from gemma_tpu.text.tools import Call, CallReader, MakeReader, read_calls, read_tools
from gemma_tpu.text.vocabulary import AddedToken

__all__ = [
    "FUNCTION_GEMMA",
    "GEMMA3",
    "OPTIONS",
    "POLICIES",
    "SHIELD_GEMMA",
    "SOFT_TOKEN",
    "TRANSLATE_GEMMA",
    "AddedToken",
    "Call",
    "CallReader",
    "Detokenizer",
    "Format",
    "MakeReader",
    "Prompt",
    "StopStrings",
    "Thoughts",
    "Tokenizer",
    "answer_text",
    "check_turns",
    "choose_format",
    "expand_images",
    "read_calls",
    "read_tools",
    "recognise_format",
    "render_messages",
    "render_raw",
]
