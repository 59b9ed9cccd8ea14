"""The inputs of both sides: token ids, pixels, and the output rows to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from gemma_tpu.image import load_image
from gemma_tpu.text import Tokenizer, expand_images, render_messages

if TYPE_CHECKING:
    from gemma_tpu.api import Model

# A row of 262,144 logits takes a megabyte; every vision block has 4,096 rows per image.
_LOGIT_ROWS, _HIDDEN_ROWS = 64, 256

_SHORT = "The capital of France is"
_QUESTION = "How many days are there in a week? Answer in one sentence."
_ABOUT_IMAGE = "What is in the picture?"
_PARAGRAPH = (
    "The river rises in the hills above the town, turns south past the old mill and the two bridges, and reaches the "
    "sea some 40 kilometres later. In spring it floods the meadows; in August one can cross it on foot. "
)


@dataclasses.dataclass(frozen=True)
class Question:
    """One prompt; hashable, so that it can be a static argument of a jitted function.

    `tokens` has one <start_of_image> per image, `expanded` its whole block of tokens (gemma_tpu.text); its soft tokens
    begin at the positions `images`. Logits are compared at `logit_rows` of `tokens`, which are `logit_positions` of
    `expanded` (a block's first token corresponds to its <start_of_image>, as in Google's package); hidden states at
    `hidden_positions` of `expanded`.
    """

    name: str
    tokens: tuple[int, ...]
    expanded: tuple[int, ...]
    images: tuple[int, ...]
    logit_rows: tuple[int, ...]
    logit_positions: tuple[int, ...]
    hidden_positions: tuple[int, ...]
    new_tokens: int


def make_questions(
    model: Model, prompts: Sequence[str | Sequence[int]] | None, image: Any, new_tokens: int
) -> tuple[list[Question], np.ndarray]:
    """The questions, and the image as uint8[S, S, 3] (empty without one), resized once for both sides."""
    vision = model.config.vision
    if prompts:
        named_tokens = [_named_tokens(model, prompt) for prompt in prompts]
    else:
        named_tokens = _default_prompts(model, with_image=vision is not None and image is not False)
    questions = [_question(name, tokens, model, new_tokens) for name, tokens in named_tokens]
    for question in questions:
        tokens = question.tokens
        if question.images and image is False:
            raise ValueError(f"prompt {question.name!r} has <start_of_image>, but images are left out")
        if not tokens or min(tokens) < 1 or max(tokens) >= model.config.vocab_size:
            raise ValueError(
                f"prompt {question.name!r} must hold token ids in [1, {model.config.vocab_size}); 0 is padding"
            )
    if vision is None or not any(question.images for question in questions):
        if image is not None and image is not False:
            raise ValueError("no prompt shows the image: the model takes none, or no prompt has <start_of_image>")
        return questions, np.zeros((0, 0, 3), np.uint8)
    side = vision.image_size
    loaded = load_image(image) if image is not None else drawing(side)
    return questions, np.asarray(loaded.resize((side, side), Image.Resampling.BILINEAR))


def _named_tokens(model: Model, prompt: str | Sequence[int]) -> tuple[str, list[int]]:
    if isinstance(prompt, str):
        return prompt, _encode(model.tokenizer, prompt)
    return f"{len(prompt)} token ids", [int(token) for token in prompt]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens = tokenizer.encode(text, control=True)
    return tokens if tokens[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *tokens]


def _default_prompts(model: Model, *, with_image: bool) -> list[tuple[str, list[int]]]:
    tokenizer, config = model.tokenizer, model.config
    past_window = min(max(layer.window or 0 for layer in config.layers) + 64, config.max_context // 2)
    named_tokens = [
        ("text", _encode(tokenizer, _SHORT)),
        ("question", _turn(tokenizer, _QUESTION)),
        ("past the window", _encode(tokenizer, _PARAGRAPH * (past_window // 10 + 1))[:past_window]),
    ]
    if with_image and tokenizer.start_of_image is not None:
        turn = _turn(tokenizer, _ABOUT_IMAGE)
        after_role = turn.index(tokenizer.start_of_turn) + 1 + len(tokenizer.encode("user\n"))
        named_tokens.append(("image", [*turn[:after_role], tokenizer.start_of_image, *turn[after_role:]]))
    return named_tokens


def _turn(tokenizer: Tokenizer, text: str) -> list[int]:
    return render_messages([{"role": "user", "content": text}], tokenizer, None).tokens


def _question(name: str, tokens: list[int], model: Model, new_tokens: int) -> Question:
    tokenizer, vision = model._tokenizer, model.config.vision
    expanded = expand_images(tokens, vision.num_soft_tokens if vision else None, tokenizer)
    rows = range(max(0, len(tokens) - _LOGIT_ROWS), len(tokens))
    return Question(
        name=name,
        tokens=tuple(tokens),
        expanded=tuple(expanded.tokens),
        images=tuple(expanded.starts),
        logit_rows=tuple(rows),
        logit_positions=tuple(expanded.kept[row] for row in rows),
        hidden_positions=spread(len(expanded.tokens)),
        new_tokens=new_tokens,
    )


def spread(count: int, limit: int = _HIDDEN_ROWS) -> tuple[int, ...]:
    """At most `limit` indices below `count`, evenly spaced, including the first and the last."""
    return tuple(sorted({int(i) for i in np.linspace(0, count - 1, min(count, limit)).round()}))


def drawing(side: int) -> Image.Image:
    """A deterministic test image with edges, areas and colours."""
    image = Image.new("RGB", (side, side), (236, 240, 245))
    draw = ImageDraw.Draw(image)
    unit = side / 16
    draw.rectangle((0, 11 * unit, side, side), fill=(90, 150, 80))
    draw.ellipse((10 * unit, unit, 14 * unit, 5 * unit), fill=(250, 190, 40))
    draw.rectangle((3 * unit, 6 * unit, 8 * unit, 12 * unit), fill=(190, 60, 50))
    draw.polygon([(2 * unit, 6 * unit), (5.5 * unit, 3 * unit), (9 * unit, 6 * unit)], fill=(70, 50, 90))
    for i in range(4):
        draw.line((0, (12 + i) * unit, side, (12.5 + i) * unit), fill=(40, 90, 40), width=max(1, round(unit / 8)))
    return image
