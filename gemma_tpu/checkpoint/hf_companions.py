"""The files beside the weights that transformers needs, for a checkpoint that has none: an Orbax one.

`AutoTokenizer` and `AutoProcessor` of transformers 5.24 then give the ids of this package. The settings are those of
the released files (their tokenizer_config.json; Gemma3ImageProcessor's and Gemma3Processor's defaults), the chat
template is written here: the prompt format of the released one in fewer words.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_tpu.checkpoint.errors import CheckpointWarning
from gemma_tpu.config import GemmaConfig, VisionConfig
from gemma_tpu.text import Tokenizer
from gemma_tpu.text.special import IMAGE_SOFT_TOKEN
from gemma_tpu.text.vocabulary import SPACE

_SETTINGS = {"tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"}  # of transformers' tokenizer
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")

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


def missing(
    files: Mapping[str, bytes], config: GemmaConfig, special_ids: Mapping[str, int] | None = None
) -> dict[str, bytes]:
    """What `files` (by name, those that go along already) lack of what transformers needs beside the weights.

    Tokenizer, chat template and generation settings are made of tokenizer.model, or of a tokenizer.json that is alone,
    unless the checkpoint has settings of transformers for its tokenizer; the image processor's of `config`. Warns
    (CheckpointWarning) if they cannot be. `special_ids`: ids by role, as config.json has them.
    """
    made: dict[str, bytes] = {}
    if config.vision and not any(name in files for name in _PROCESSORS):
        made |= {name: _dump(raw) for name, raw in zip(_PROCESSORS, _processors(config.vision), strict=True)}
    name = next((name for name in ("tokenizer.model", "tokenizer.json") if name in files), None)
    if name is None or files.keys() & _SETTINGS:
        return made
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
        return made
    images = config.vision is not None and None not in (tokenizer.start_of_image, tokenizer.end_of_image)
    if "tokenizer.json" not in files:
        converted = tokenizer_json(pieces, tokenizer, images)
        made["tokenizer.json"] = json.dumps(converted, ensure_ascii=False).encode()
    made["tokenizer_config.json"] = _dump(_tokenizer_config(tokenizer, config, images))
    if not {"chat_template.jinja", "chat_template.json"} & files.keys():
        made["chat_template.jinja"] = CHAT_TEMPLATE.encode()
    if "generation_config.json" not in files:
        made["generation_config.json"] = _dump(
            {
                "bos_token_id": tokenizer.bos_id,
                # No settings of sampling: answers stay what they were before the conversion, greedy.
                "eos_token_id": [tokenizer.eos_id, tokenizer.end_of_turn],
                "pad_token_id": tokenizer.pad_id,
            }
        )
    return made


def _dump(raw: Mapping[str, Any]) -> bytes:
    return (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode()


def _processors(vision: VisionConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """processor_config.json and preprocessor_config.json."""
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
    """The pieces of a SentencePiece model, with scores and types. ValueError if they cannot be read."""
    try:
        # Not at the top: with another protobuf than it was generated for, it cannot be imported.
        from sentencepiece import sentencepiece_model_pb2
    except Exception as error:
        raise ValueError(
            f"sentencepiece and protobuf do not fit together ({error}): pip install -U protobuf"
        ) from error
    proto: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    try:
        return proto.ModelProto.FromString(model).pieces
    except Exception as error:  # protobuf's DecodeError
        raise ValueError(f"not a SentencePiece model, or a damaged one: {error}") from error


def tokenizer_json(pieces: Sequence[Any], tokenizer: Tokenizer, images: bool) -> dict[str, Any]:
    """The SentencePiece model of `tokenizer` as the `tokenizers` package reads it.

    With `images`, `IMAGE_SOFT_TOKEN` is behind its pieces. Special ones have the names that Gemma's have, by which the
    settings beside it know them, whatever this vocabulary calls them. SentencePiece joins the pair whose piece has the
    highest score, which is what the order of merges says here. The pieces that it finds in a text before it joins
    anything are added tokens; those of spaces are looked for in the text that has "▁" for them already.
    """
    ids = {tokenizer.piece(i): i for i in range(len(pieces))}
    roles = {tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id, tokenizer.start_of_turn}
    roles |= {tokenizer.end_of_turn, tokenizer.start_of_image, tokenizer.end_of_image}
    added, merges = [], []
    for i, piece in enumerate(pieces):
        if piece.type == piece.NORMAL:
            parts = ((piece.piece[:cut], piece.piece[cut:]) for cut in range(1, len(piece.piece)))
            merges += [(-piece.score, ids[a], ids[b], [a, b]) for a, b in parts if a in ids and b in ids]
        elif piece.type != piece.BYTE:
            added.append(_added(i, tokenizer.piece(i), special=i in roles))
    if images:
        added.append(_added(len(ids), IMAGE_SOFT_TOKEN, special=True))
    space, bos = {"String": " "}, "<bos>"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": space, "content": SPACE},
        "pre_tokenizer": {"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {part: {"id": name, "type_id": kind}}
                for kind, sequence in enumerate("AB")
                for part, name in (("SpecialToken", bos), ("Sequence", sequence))
            ],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [pair for *_, pair in sorted(merges, key=lambda merge: merge[:3])],
        },
    }


def _added(token: int, text: str, *, special: bool) -> dict[str, Any]:
    no = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": token, "content": text, **no, "normalized": SPACE in text, "special": special}
