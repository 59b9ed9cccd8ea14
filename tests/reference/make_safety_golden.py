"""Makes tests/goldens/safety.json: what transformers' ShieldGemma 2 says of an image with a small random model.

Run in transformers' environment (requirements-transformers.txt), from the repository's root:

    python tests/reference/make_safety_golden.py [DIRECTORY]

The vocabulary is tests/goldens/text/tokenizer.model, the weights are those of models.py, the image `picture` below.
With DIRECTORY, the model is saved there too, as transformers saves it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import make_text_goldens
import mapping
import models
import numpy as np
import torch
import transformers
from PIL import Image
from run_transformers import build
from transformers import ShieldGemma2Config, ShieldGemma2ForImageClassification, ShieldGemma2Processor

GOLDEN = Path(__file__).parents[1] / "goldens" / "safety.json"
YES, NO = 40, 41
OWN_POLICY = "No circle: the picture shall not show a circle."
# The turns and sentences of the chat template in transformers' conversion script, written for one message.
TEMPLATE = """{{ bos_token }}{% for part in messages[0].content %}{{ "<start_of_turn>user\n" }}
{%- if part.type == "image" %}{{ "<start_of_image>" }}{% else %}{{ before + part.text + after }}{% endif %}
{%- endfor %}{{ "<end_of_turn>\n<start_of_turn>model\n" }}"""


def case(vocab_size: int) -> models.Case:
    """Wide windows: an image block longer than one is masked otherwise in transformers."""
    changes = {"vocab_size": vocab_size, "sliding_window": 64}
    return models.Case("safety", 41, changes, models.TOWER)


def picture(side: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(5).randint(0, 256, (side, side, 3)).astype(np.uint8))


def main(directory: str | None = None) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from gemma_tpu.text import safety

    template = TEMPLATE.replace("before", json.dumps(safety._BEFORE)).replace("after", json.dumps(safety._AFTER))
    parts = make_text_goldens.processor_of((make_text_goldens.OUT / "tokenizer.model").read_bytes())
    soft, side = models.TOWER["num_soft_tokens"], models.TOWER["image_size"]
    parts.image_processor.size = {"height": side, "width": side}
    processor = ShieldGemma2Processor(
        parts.image_processor, parts.tokenizer, chat_template=template, image_seq_length=soft
    )
    vocab_size = processor.tokenizer.image_token_id
    small = case(vocab_size)
    params = models.weights(small)
    inner = build(small.config, params)
    config = ShieldGemma2Config(
        text_config=inner.config.text_config,
        vision_config=inner.config.vision_config,
        mm_tokens_per_image=soft,
        image_token_index=vocab_size,
        boi_token_index=processor.tokenizer.boi_token_id,
        eoi_token_index=processor.tokenizer.eoi_token_id,
        yes_token_index=YES,
        no_token_index=NO,
    )
    model = ShieldGemma2ForImageClassification(config).eval()
    model.model.load_state_dict(
        {name: torch.tensor(value) for name, value in mapping.to_transformers(small.config, params).items()}
    )
    inputs = processor(images=[picture(side)], custom_policies={"own": OWN_POLICY}, return_tensors="pt")
    names = [*safety.POLICIES, "own"]
    with torch.no_grad():
        probabilities = [model(**row(inputs, i)).probabilities[0].tolist() for i in range(len(names))]
    tokens = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist()
    golden = {
        "made_by": {module.__name__: module.__version__ for module in (transformers, torch)},
        "tokens": [-1 if token == vocab_size else token for token in tokens],
        "probabilities": dict(zip(names, probabilities, strict=True)),
    }
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    if directory:
        model.save_pretrained(directory)


def row(inputs, i: int) -> dict:
    """One row without its padding."""
    kept = inputs["attention_mask"][i].bool()
    of_tokens = {name: inputs[name][i][kept][None] for name in ("input_ids", "attention_mask", "token_type_ids")}
    return of_tokens | {"pixel_values": inputs["pixel_values"][i : i + 1]}


if __name__ == "__main__":
    main(*sys.argv[1:])
