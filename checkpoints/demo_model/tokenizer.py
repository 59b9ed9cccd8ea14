"""Trains the demo model's SentencePiece vocabulary: `python -m checkpoints.demo_model.tokenizer`.

Like Gemma's: BPE, byte fallback, identity normalisation, no dummy prefix, digits one by one, <pad> <eos> <bos> <unk>
<mask> as 0 … 4, the control pieces and runs of newlines as pieces of their own. The text is what the generators write
for training, so nothing held out is in it.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import sentencepiece

from checkpoints.demo_model import mixture
from checkpoints.demo_model.dialog import plain

MODEL = Path(__file__).with_name("tokenizer.model")
VOCAB_SIZE = 2048
CONTROL = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
NEWLINES = tuple("\n" * n for n in range(1, 9))
_SPACES = tuple("▁" * n for n in range(2, 5))
# Every printable character has a piece, whether the generators write it or not.
_LISTED = ("text reversing", "text sorting", "text follow-up", "text json", "image read")
_NONSENSE = re.compile(r"[a-z ]+")
_CHARACTERS = "".join(map(chr, range(32, 127))) + "“”，。？！：、（）"

# What those tasks say around their words.
_FRAMES = [
    text.strip()
    for text in [
        "\n    Sort these words alphabetically: ",
        "Put the numbers in ascending order: ",
        "Arrange the following in alphabetical order: ",
        "\n    Sort these numbers in descending order, from largest to smallest: ",
        "Reverse the word ",
        "Spell the word ",
        " backwards. ",
        "\n    What is the largest of these numbers: ",
        "Reverse the order of this list: ",
        "What are the letters of ",
        "\n    Write these words as a JSON list. ",
        "Answer as JSON with the keys name, age and city. ",
        "and lives in ",
        "years old ",
        '\n    {"name": "',
        '", "age": ',
        '", "city": "',
        '"]',
        '["',
        '", "',
        '{"age": ',
        "And the other way round? ",
        "Now reverse it. ",
        "Now in reverse order.\n    ",
    ]
]


def corpus(groups: int, seed: int = 0) -> list[str]:
    """Lines of questions and answers, a quarter of the groups about images."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(groups):
        group = mixture.text_group(rng, False) if i % 4 else _about_images(rng, i)
        for conversation in group.conversations:
            lines += [conversation.system] if conversation.system else []
            for turn in conversation.turns:
                # Listed words stay out: one that became a piece of its own could not be spelt if it is held out.
                if turn.task not in _LISTED and not _NONSENSE.fullmatch(turn.question):
                    lines += [turn.question, plain(turn.answer)]
    return [line for line in lines if "\n" not in line]


def _about_images(rng: np.random.Generator, index: int) -> mixture.Group:
    return mixture.pair_group(rng, False) if index % 8 else mixture.scene_group(rng, False)


def train(lines: list[str], vocab_size: int = VOCAB_SIZE) -> bytes:
    """The serialized model."""
    out = io.BytesIO()
    lines = [*lines, *_FRAMES * 60]
    roles = ["user", "model", "user\nmodel"] * 50
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, *roles, *[_CHARACTERS] * 20]),
        model_writer=out,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=True,
        max_sentencepiece_length=12,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=["<mask>", *CONTROL, *NEWLINES, *_SPACES],
        minloglevel=2,
    )
    return out.getvalue()


def main() -> None:
    lines = corpus(12_000)
    MODEL.write_bytes(train(lines))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    tokens = sum(len(ids) for ids in processor.encode(lines))
    print(f"{MODEL}: {processor.vocab_size()} pieces, {sum(map(len, lines)) / tokens:.2f} characters a token")


if __name__ == "__main__":
    main()
