"""The model of tests/goldens/gguf: the Hugging Face directory that llama.cpp's converter has read, and prompts.

In the environment of tests/reference/make_gguf_goldens.py too.
"""

from __future__ import annotations

import json
from pathlib import Path

import checkpoint_samples as samples
import numpy as np
import sentencepiece
from PIL import Image
from sentencepiece import sentencepiece_model_pb2 as proto

from gemma_tpu.checkpoint.hf_assets import CHAT_TEMPLATE
from gemma_tpu.config import GemmaConfig, VisionConfig, gemma3_layers

TOKENIZER = Path(__file__).parent / "goldens" / "text" / "tokenizer.model"
VISION = VisionConfig(width=32, depth=1, mlp_dim=64, num_heads=2, image_size=56, patch_size=7, num_soft_tokens=16)
# Rows of a multiple of 32, as its blocks are. Seven layers: the sixth sees the whole context. The window holds a
# whole image: of longer ones llama.cpp sees less (GEMMA3.md, table of differences).
CONFIG = GemmaConfig(
    vocab_size=800,
    embed_dim=32,
    hidden_dim=64,
    layers=gemma3_layers(7, window=24, rope_scale=8.0),
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    query_scale=32**-0.5,
    max_context=1024,
    vision=VISION,
)
IMAGE_PROMPT = "What is{}?"
BLOCK = "\n\n{}\n\n"  # around an image: written by llama.cpp's clients, and not by llama.cpp
TEXTS = [
    "The cat sat on the mat.",
    "  two  spaces,     five\n\n\nlines\t\ttabs ",
    "naïve café 日本語 🙂👩‍👩‍👧",
    "def f(x):\n    return x**2  # <b>bold</b>\n",
    "\x00\x7f\u00a0\u3000",
]
_SPECIAL = ("<start_of", "<end_of")


def sample() -> samples.Sample:
    return samples.sample(CONFIG, std=0.3)


def prompts() -> dict[str, list[int]]:
    """Token ids. A <start_of_image> stands for the whole block of an image, as in `Model.logits`."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=TOKENIZER.read_bytes())
    ids = [2, *np.random.RandomState(0).randint(300, 800, 40).tolist()]
    before, after = (processor.encode(text) for text in IMAGE_PROMPT.split("{}"))
    return {"short": ids[:5], "long": ids, "image": [2, *before, processor.piece_to_id("<start_of_image>"), *after]}


def picture() -> Image.Image:
    """A picture of the size that the tower reads, so that nothing is resized."""
    pixels = np.random.RandomState(1).randint(0, 256, (VISION.image_size, VISION.image_size, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def save_hf(path: Path) -> Path:
    config = {"architectures": ["Gemma3ForConditionalGeneration"], **samples.hf_config(CONFIG)}
    samples.save_hf(path, sample().hf, config | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2})
    model = TOKENIZER.read_bytes()
    (path / "tokenizer.model").write_bytes(model)
    kinds = proto.ModelProto.SentencePiece
    pieces = proto.ModelProto.FromString(model).pieces
    added = {
        i: {"content": piece.piece, "special": piece.piece.startswith(_SPECIAL) or piece.type != kinds.USER_DEFINED}
        for i, piece in enumerate(pieces)
        if piece.type not in (kinds.NORMAL, kinds.BYTE)
    }
    added[len(pieces)] = {"content": "<image_soft_token>", "special": True}
    tokens = {f"{role}_token": f"<{role}>" for role in ("bos", "eos", "pad", "unk")}
    settings = {"added_tokens_decoder": added, "chat_template": CHAT_TEMPLATE, **tokens}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    soft = {"image_seq_length": VISION.num_soft_tokens, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (path / "preprocessor_config.json").write_text(json.dumps(soft))
    (path / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 64, "top_p": 0.95}))
    return path
