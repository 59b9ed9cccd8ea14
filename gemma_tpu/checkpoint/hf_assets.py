"""Generates the tokenizer, processor and generation files that transformers needs, for checkpoints without them.

With them `AutoTokenizer` and `AutoProcessor` of transformers 5.24 produce the same ids as this package. The settings
are those of the released tokenizer_config.json and the defaults of Gemma3ImageProcessor and Gemma3Processor. The chat
template produces the released prompt format.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from gemma_tpu.checkpoint.errors import CheckpointWarning
from gemma_tpu.config import GemmaConfig, VisionConfig
from gemma_tpu.text import Tokenizer
from gemma_tpu.text.sentencepiece_proto import model_proto
from gemma_tpu.text.special import IMAGE_SOFT_TOKEN
from gemma_tpu.text.vocabulary import SPACE

_TOKENIZER_FILES = {"tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"}
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

CHAT_TEMPLATE = """{{ bos_token }}
{%- set ns = namespace(prefix="", turns=messages) -%}
{%- if messages[0].role == "system" -%}
  {%- set first = messages[0].content -%}
  {%- set ns.prefix = (first if first is string else first[0].text) + "\\n\\n" -%}
  {%- set ns.turns = messages[1:] -%}
{%- endif -%}
{%- for turn in ns.turns -%}
  {%- if (turn.role == "user") == (loop.index0 is odd) -%}
    {{ raise_exception("The roles of a conversation take turns: user, assistant, user, …") }}
  {%- endif -%}
  {{ "<start_of_turn>" + ("model" if turn.role == "assistant" else turn.role) + "\\n" + ns.prefix }}
  {%- set ns.prefix = "" -%}
  {%- if turn.content is string -%}{{ turn.content | trim }}
  {%- else -%}
    {%- for part in turn.content -%}
      {%- if part.type == "image" -%}{{ "<start_of_image>" }}
      {%- elif part.type == "text" -%}{{ part.text | trim }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{ "<end_of_turn>\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<start_of_turn>model\\n" }}{%- endif -%}
"""


def generate_missing(
    files: Mapping[str, bytes], config: GemmaConfig, special_ids: Mapping[str, int] | None = None
) -> dict[str, bytes]:
    """Generates the files that transformers needs beside the weights and that are not in `files`, by name.

    The image processor's files come from `config`; the tokenizer's, the chat template and the generation config come
    from tokenizer.model or tokenizer.json, unless `files` has tokenizer settings. `special_ids`: ids by role, from
    config.json. A `CheckpointWarning` says if the tokenizer cannot be used.
    """
    generated: dict[str, bytes] = {}
    if config.vision and not any(name in files for name in _PROCESSOR_FILES):
        generated |= {name: _dump(raw) for name, raw in zip(_PROCESSOR_FILES, _processors(config.vision), strict=True)}
    name = next((name for name in ("tokenizer.model", "tokenizer.json") if name in files), None)
    if name is None or files.keys() & _TOKENIZER_FILES:
        return generated
    try:
        pieces = [] if "tokenizer.json" in files else _pieces(files[name])
        tokenizer = Tokenizer(files[name], name=name, config_ids=special_ids)
        if config.vision and tokenizer.vocab_size != config.vocab_size:
            raise ValueError(f"it has {tokenizer.vocab_size} pieces, the model {config.vocab_size} rows")
    except ValueError as error:
        warnings.warn(
            f"{name}: no settings and chat template for transformers are made of it: {error}",
            CheckpointWarning,
            stacklevel=2,
        )
        return generated
    images = config.vision is not None and None not in (tokenizer.start_of_image, tokenizer.end_of_image)
    if "tokenizer.json" not in files:
        generated["tokenizer.json"] = convert_tokenizer(pieces, tokenizer, images).to_str().encode()
    generated["tokenizer_config.json"] = _dump(_tokenizer_config(tokenizer, config, images))
    if not {"chat_template.jinja", "chat_template.json"} & files.keys():
        generated["chat_template.jinja"] = CHAT_TEMPLATE.encode()
    if "generation_config.json" not in files:
        generated["generation_config.json"] = _dump(
            {
                "bos_token_id": tokenizer.bos_id,
                # No sampling settings, so that decoding stays greedy.
                "eos_token_id": [tokenizer.eos_id, tokenizer.end_of_turn],
                "pad_token_id": tokenizer.pad_id,
            }
        )
    return generated


def _dump(raw: Mapping[str, Any]) -> bytes:
    return (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode()


def _processors(vision: VisionConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Contents of processor_config.json and preprocessor_config.json."""
    image = {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_seq_length": vision.num_soft_tokens,
        "resample": 2,  # PIL's number for bilinear
        "rescale_factor": 1 / 255,
        "size": {"height": vision.image_size, "width": vision.image_size},
    }
    return {"processor_class": "Gemma3Processor", "image_seq_length": vision.num_soft_tokens}, image


def _tokenizer_config(tokenizer: Tokenizer, config: GemmaConfig, images: bool) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_context,
        "padding_side": "left",
        "spaces_between_special_tokens": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    if images:
        marks = {"boi_token": tokenizer.start_of_image, "eoi_token": tokenizer.end_of_image}
        pieces = {name: tokenizer.piece(token) for name, token in marks.items() if token is not None}
        pieces["image_token"] = IMAGE_SOFT_TOKEN
        raw |= {"processor_class": "Gemma3Processor", "extra_special_tokens": pieces, **pieces}
    return raw


def _pieces(model: bytes) -> Sequence[Any]:
    """The pieces of a SentencePiece model, with scores and types. Raises ValueError if they cannot be read."""
    proto = model_proto()
    try:
        return proto.FromString(model).pieces
    except Exception as error:  # protobuf's DecodeError
        raise ValueError(f"not a SentencePiece model, or a damaged one: {error}") from error


def convert_tokenizer(pieces: Sequence[Any], tokenizer: Tokenizer, images: bool) -> tokenizers.Tokenizer:
    """Converts the SentencePiece model of `tokenizer` to the format of the `tokenizers` package.

    SentencePiece merges the pair whose piece has the highest score, hence merges are sorted by score. Pieces that it
    matches before merging become added tokens; those with "▁" match normalized text. Special pieces get Gemma's names,
    as in tokenizer_config.json. With `images`, appends `IMAGE_SOFT_TOKEN`.
    """
    ids = {tokenizer.piece(i): i for i in range(len(pieces))}
    special = {tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id, tokenizer.start_of_turn}
    special |= {tokenizer.end_of_turn, tokenizer.start_of_image, tokenizer.end_of_image}
    added, merges = list[tuple[str, bool]](), []
    for i, piece in enumerate(pieces):
        if piece.type == piece.NORMAL:
            parts = ((piece.piece[:cut], piece.piece[cut:]) for cut in range(1, len(piece.piece)))
            merges += [(-piece.score, ids[a], ids[b], (a, b)) for a, b in parts if a in ids and b in ids]
        elif piece.type != piece.BYTE:
            added.append((tokenizer.piece(i), i in special))
    if images:
        added.append((IMAGE_SOFT_TOKEN, True))
    ordered = [pair for *_, pair in sorted(merges, key=lambda merge: merge[:3])]
    converted = tokenizers.Tokenizer(BPE(ids, ordered, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    converted.normalizer = normalizers.Replace(" ", SPACE)
    converted.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bos = [("<bos>", tokenizer.bos_id)]
    converted.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos>:1 $B:1", bos)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    converted.decoder = decoders.Sequence(steps)
    converted.add_tokens(
        [tokenizers.AddedToken(text, normalized=SPACE in text, special=special) for text, special in added]
    )
    return converted
