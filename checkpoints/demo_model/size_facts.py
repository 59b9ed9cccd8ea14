"""Facts that differ between the sizes of Gemma 3, read from their configs, as questions and answers."""

from __future__ import annotations

import numpy as np

from checkpoints.demo_model.asking import Phrasings, clauses, nouns, phrasings, statements
from checkpoints.demo_model.grammar import choose
from gemma_tpu.config import CONFIGS

_SIZES = {"270M": "gemma3-270m", "1B": "gemma3-1b", "4B": "gemma3-4b", "12B": "gemma3-12b", "27B": "gemma3-27b"}
_MODEL = (
    "[Gemma 3 {size}|the {size} model|Gemma 3 with {size} parameters|gemma3-{low}|the {size} Gemma 3|the {size} size]"
)


def _about(noun: str) -> Phrasings:
    """A number that every size has: "how many layers does the 4B model have"."""
    return phrasings(
        f"""
        How many {noun} does {_MODEL} have?
        How many {noun} are [there |]in {_MODEL}?
        [What is|What's|Tell me|Give me] the number of {noun} [of|in] {_MODEL}.
        {_MODEL}: how many {noun}?
        How many {noun} has {_MODEL}?
        """,
        f"""
        Can you tell me how many {noun} {_MODEL} has?
        Do you know the number of {noun} of {_MODEL}?
        """,
    ).plus(
        clauses(f"how many {noun} {_MODEL} has", f"how many {noun} there are in {_MODEL}")
        + nouns(f"the number of {noun} [of|in] {_MODEL}", f"the {noun} of {_MODEL}, how many [are there|they are]")
        + f"""
        How many {noun} [are used|are there|can one find|were put] [in|by] {_MODEL}?
        [With|Of] how many {noun} [is|was] {_MODEL} [built|made]?
        [How many|What number of] {noun} [has|does|will] {_MODEL}[| have| use]?
        [In|For] {_MODEL}, how many {noun} are there?
        """
    )


def _value(noun: str) -> Phrasings:
    """A value that every size has: "what is the context length of the 4B model"."""
    return phrasings(
        f"""
        [What is|What's|Tell me|Give me] the {noun} of {_MODEL}.
        What {noun} does {_MODEL} have?
        How [large|long|big] is the {noun} of {_MODEL}?
        {_MODEL}: what is the {noun}?
        Which {noun} does {_MODEL} use?
        """,
        f"""
        Can you tell me the {noun} of {_MODEL}?
        Do you know the {noun} of {_MODEL}?
        """,
    ).plus(
        clauses(f"what the {noun} of {_MODEL} is", f"[how large|how big|how long] the {noun} of {_MODEL} is")
        + nouns(f"the {noun} [of|in|for] {_MODEL}")
        + f"""
        [What|Which] {noun} [has|is used in|does|will|comes with] {_MODEL}[| have| use]?
        [How large|How big|How long] [is|of] a {noun} [does|has] {_MODEL}[| have| use]?
        [In|For] {_MODEL}, what is the {noun}?
        """
    )


# noun, phrasings, answer, value of a size
_NUMBERS = (
    (_about("layers"), "Gemma 3 {size} has {value} layers.", lambda c: c.num_layers),
    (
        _about("[attention heads|query heads|heads]"),
        "Gemma 3 {size} has {value} attention heads.",
        lambda c: c.num_heads,
    ),
    (
        _about("[key-value heads|kv heads|KV heads]"),
        "Gemma 3 {size} has {value} key-value heads.",
        lambda c: c.num_kv_heads,
    ),
    (
        _value("[embedding width|embedding size|width|embedding dimension]"),
        "The embedding width of Gemma 3 {size} is {value}.",
        lambda c: c.embed_dim,
    ),
    (
        _value("[sliding window|window|attention window|window size]"),
        "Gemma 3 {size} has a sliding window of {value} tokens.",
        lambda c: c.layers[0].window,
    ),
    (
        _value("[context length|context|context size|context window length]"),
        "Gemma 3 {size} has a context of {value} tokens.",
        lambda c: f"{c.max_context // 1024}K",
    ),
)
_VISION = phrasings(
    f"""
    [Can|Does] {_MODEL} [see|understand|read|handle] [images|pictures]?
    [Does|Can] {_MODEL} [have a vision tower|support images|take images|work with images]?
    Is {_MODEL} [multimodal|a multimodal model|able to see images]?
    """,
    f"""
    Can I show [an image|a picture] to {_MODEL}?
    Does {_MODEL} have vision?
    """,
).plus(
    statements(f"{_MODEL} [sees|understands|reads|takes|handles|accepts] [images|pictures]", f"{_MODEL} is multimodal")
    + f"""
    [Can|Could|May] [I|one|you|we] [give|send|feed|pass|add] [an image|images|pictures|a photo] to {_MODEL}?
    [Can|Does|Will] {_MODEL} [look at|work with|accept|take|process|deal with] [images|pictures|an image|photos]?
    Is {_MODEL} [text-only|for text only|able to look at pictures|a vision model|good for images]?
    [Is there|Has {_MODEL}] [a vision tower|vision|image support][| in {_MODEL}]?
    """
)


def number_of_size(rng: np.random.Generator, held_out: bool) -> tuple[str, str]:
    """A question about a number of some size, and the answer."""
    table, answer, value = choose(rng, _NUMBERS)
    size, name = choose(rng, tuple(_SIZES.items()))
    question = table.pick(rng, held_out, size=size, low=size.lower())
    number = value(CONFIGS[name])
    answer = answer.format(size=size, value=number)
    return question, answer.replace("heads.", "head.") if number == 1 else answer


def vision_of_size(rng: np.random.Generator, held_out: bool) -> tuple[str, str]:
    """Whether some size sees images, and the answer."""
    size, name = choose(rng, tuple(_SIZES.items()))
    question = _VISION.pick(rng, held_out, size=size, low=size.lower())
    sees = CONFIGS[name].vision is not None
    return question, f"Yes, Gemma 3 {size} sees images." if sees else f"No, Gemma 3 {size} is for text only."
