"""Text side of the model: token ids from text and conversations, and text from token ids."""

from gemma_tpu.text.detokenizer import Detokenizer, StopStrings
from gemma_tpu.text.template import Prompt, expand_images, render_messages, render_raw
from gemma_tpu.text.tokenizer import SOFT_TOKEN, Tokenizer
from gemma_tpu.text.vocabulary import AddedToken

__all__ = [
    "SOFT_TOKEN",
    "AddedToken",
    "Detokenizer",
    "Prompt",
    "StopStrings",
    "Tokenizer",
    "expand_images",
    "render_messages",
    "render_raw",
]
