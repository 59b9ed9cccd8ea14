"""Makes tests/goldens/text: a small tokenizer of Gemma's kind, and what Hugging Face's Gemma 3 processor does with it.

Run in an environment of its own, with `pip install torch transformers==5.23.0 sentencepiece pillow`:

    python tests/reference/make_text_goldens.py [--keep-tokenizer]

`tokenizer.model` is trained by SentencePiece with the options of Gemma's own (byte fallback, identity normalisation, no
dummy prefix, extra whitespace kept, Gemma's special pieces and ids 0 to 3). `processor.json` holds token ids of
conversations, crops of pan and scan, and a sample of resized pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from pathlib import Path

import numpy as np
import PIL
import sentencepiece
import transformers
from PIL import Image
from transformers import AddedToken
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.tokenization_utils_base import generate_merges

OUT = Path(__file__).parents[1] / "goldens" / "text"
NUM_SOFT_TOKENS = 4
SPECIAL = ["<mask>", "[multimodal]", *(f"<unused{i}>" for i in range(4)), "<start_of_turn>", "<end_of_turn>"]
ORDINARY = [*("\n" * n for n in range(1, 6)), *("\t" * n for n in range(1, 3)), *("▁" * n for n in range(2, 6))]
ORDINARY += ["<table>", "</table>", "<b>", "</b>", "<code>"]
IMAGE = ["<start_of_image>", "<end_of_image>"]

# The chat template of the released it models in fewer words: the same text for every conversation here.
TEMPLATE = """{{ bos_token }}
{%- set ns = namespace(prefix="", turns=messages) -%}
{%- if messages[0].role == "system" -%}
  {%- set first = messages[0].content -%}
  {%- set ns.prefix = (first if first is string else first[0].text) + "\n\n" -%}
  {%- set ns.turns = messages[1:] -%}
{%- endif -%}
{%- for turn in ns.turns -%}
  {{ "<start_of_turn>" + ("model" if turn.role == "assistant" else turn.role) + "\n" + ns.prefix }}
  {%- set ns.prefix = "" -%}
  {%- if turn.content is string -%}{{ turn.content | trim }}
  {%- else -%}
    {%- for part in turn.content -%}
      {{ "<start_of_image>" if part.type == "image" else part.text | trim }}
    {%- endfor -%}
  {%- endif -%}
  {{ "<end_of_turn>\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<start_of_turn>model\n" }}{%- endif -%}"""


def train_tokenizer() -> bytes:
    rng = random.Random(0)
    words = """
    the a an is are what in of and to red green blue yellow circle square triangle image picture crop how many
    colour answer user model here original some crops help you see better hello world one two three left right above
    below describe count read word number please thank yes no not this that small large between next
    红色 蓝色 圆形 方块 图片 什么 颜色 有 几个 你好 世界 左边 右边 café naïve straße функция привет
    """.split()  # noqa: SIM905 - a list of single words would be a page long
    marks = [".", ",", "?", "!", ":", " -", " =", " +", "\n"]

    def sentence() -> str:
        picked = [rng.choice(words) if rng.random() < 0.85 else str(rng.randrange(1000)) for _ in range(12)]
        return " ".join(w.capitalize() if rng.random() < 0.2 else w for w in picked) + rng.choice(marks)

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(sentence() for _ in range(4000)),
        model_writer=model,
        model_type="bpe",
        vocab_size=800,
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=1.0,
        user_defined_symbols=SPECIAL + ORDINARY + IMAGE,
        **{f"{name}_id": i for i, name in enumerate(["pad", "eos", "bos", "unk"])},
        **{f"{name}_piece": f"<{name}>" for name in ["pad", "eos", "bos", "unk"]},
        minloglevel=2,
    )
    return model.getvalue()


def processor_of(model: bytes) -> Gemma3Processor:
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    # Given symbols are not merged but found in the text; runs of spaces excepted, which are no spaces there yet.
    given = {piece for piece in SPECIAL + ORDINARY + IMAGE if not piece.startswith("▁")}
    own = {piece: i for piece, i in vocab.items() if piece not in given}
    merges = generate_merges(own, {piece: sp.get_score(i) for piece, i in own.items()})
    tokenizer = GemmaTokenizer(
        vocab=vocab,
        merges=merges,
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=True) for piece in SPECIAL])
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in ORDINARY])
    assert tokenizer.image_token_id == len(vocab), "the placeholder must come after the vocabulary"
    images = Gemma3ImageProcessorPil(
        size={"height": 896, "width": 896},
        do_pan_and_scan=False,
        pan_and_scan_min_crop_size=256,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    return Gemma3Processor(images, tokenizer, chat_template=TEMPLATE, image_seq_length=NUM_SOFT_TOKENS)


def pattern(width: int, height: int) -> Image.Image:
    """A test image of a given size; tests/test_image.py draws the same."""
    y, x, c = np.mgrid[:height, :width, :3]
    return Image.fromarray(((x * 7 + y * 11 + (x * y // 50) * 3 + c * 60) % 256).astype(np.uint8))


def conversations() -> list[dict]:
    """Messages in the OpenAI shape; an image is given by its [width, height]."""

    def text(value: str) -> dict:
        return {"type": "text", "text": value}

    def image(width: int, height: int) -> dict:
        return {"type": "image", "image": [width, height]}

    def user(*parts: dict | str) -> dict:
        return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}

    def model(content: str) -> dict:
        return {"role": "assistant", "content": content}

    def system(content: str | list) -> dict:
        return {"role": "system", "content": content}

    square, wide, tall = image(300, 300), image(900, 300), image(280, 700)
    return [
        {"messages": [user("Hello, what is 12 + 30?")]},
        {"messages": [user("  \n hello  \n\n world \t\n")]},
        {"messages": [system("Answer in one word."), user("What colour?")]},
        {"messages": [system("  Yes or no.\n"), user("\nIs it red?")]},
        {"messages": [system([text("Be small. ")]), user(text(" one "), text(" two"))]},
        {
            "messages": [
                user("Hello"),
                model(" Hello, you! \n"),
                user("你好 世界 😀 café <b>red</b>\n\n\n\nnext\t\tleft"),
            ]
        },
        {"messages": [user(square, text("What is in the picture?"))]},
        {"messages": [user(text("What is in the picture?"), square)]},
        {"messages": [user(text("One\n\n"), square, text("\n\ntwo"), square, square, text("three"))]},
        {
            "messages": [
                system("Count."),
                user(square),
                model("2"),
                user("And blue?"),
                model("3"),
                user(text("Here:"), square),
            ]
        },
        {"messages": [user(wide, text("Describe the image."))], "pan_and_scan": True},
        {"messages": [user(text("See"), tall, text("and"), square, text("!"))], "pan_and_scan": True},
        {"messages": [user("Count to three."), model("One, two, ")], "continue_final": True},
    ]


def token_ids(processor: Gemma3Processor, case: dict) -> list[int]:
    messages = json.loads(json.dumps(case["messages"]))
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image":
                part["image"] = pattern(*part["image"])
    final = case.get("continue_final", False)
    encoded = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=not final,
        continue_final_message=final,
        processor_kwargs={"do_pan_and_scan": case.get("pan_and_scan", False)},
    )
    soft = processor.tokenizer.image_token_id
    return [-1 if i == soft else i for i in encoded["input_ids"][0]]


def crops(processor: Gemma3Processor, width: int, height: int) -> list[list[int]]:
    """Boxes (left, top, right, bottom) of the crops, read off an image of coordinates."""
    y, x = np.mgrid[:height, :width]
    found = processor.image_processor.pan_and_scan(np.stack([x, y, x]), 256, 4, 1.2)
    return [[int(c[0].min()), int(c[1].min()), int(c[0].max()) + 1, int(c[1].max()) + 1] for c in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep-tokenizer", action="store_true", help="use the tokenizer.model that is there")
    keep = parser.parse_args().keep_tokenizer
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "tokenizer.model"
    if not keep:
        path.write_bytes(train_tokenizer())
    processor = processor_of(path.read_bytes())

    rng = random.Random(1)
    sizes = [(rng.randrange(200, 1600), rng.randrange(200, 1600)) for _ in range(60)]
    sizes += [(1200, 1000), (1199, 1000), (1000, 1200), (512, 256), (511, 256), (2000, 256), (3000, 300), (256, 5000)]
    samples = []
    for width, height in [(300, 300), (640, 480), (57, 1333), (1201, 700)]:
        pixels = processor.image_processor(pattern(width, height), return_tensors="np")["pixel_values"][0]
        grid = np.rint((pixels.transpose(1, 2, 0)[7::97, 5::97] + 1) * 127.5).astype(int)
        samples.append({"size": [width, height], "pixels": grid.tolist()})
    golden = {
        "made_by": {m.__name__: m.__version__ for m in (transformers, sentencepiece, PIL)},
        "num_soft_tokens": NUM_SOFT_TOKENS,
        "conversations": [{**case, "tokens": token_ids(processor, case)} for case in conversations()],
        "crops": [{"size": size, "boxes": crops(processor, *size)} for size in sizes],
        "resized": samples,
    }
    (OUT / "processor.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
