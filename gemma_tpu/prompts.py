"""What callers give as a prompt and as images: told apart, checked, and rendered."""

from __future__ import annotations

import bisect
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from PIL import Image

from gemma_tpu.checks import brief, check_flag, one_line
from gemma_tpu.picture import Picture
from gemma_tpu.text import Format, Prompt, Tokenizer, expand_images, render_raw
from gemma_tpu.text.template import place_images

Message = Mapping[str, Any]  # {"role": …, "content": …}, see gemma_tpu.text.render_messages
SinglePrompt = str | Message | Sequence[Message] | Sequence[int] | np.ndarray
Images = Any  # an image in any form that `load_image` reads, or several of them
PlainPrompt = str | list[Message] | list[int]

_EXPECTED = "a prompt is a string, a message, a list of messages or a list of token ids, and a list of those is a batch"
_BYTES = bytes | bytearray | memoryview


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a prompt is read, see `Model.generate`. `format_options` go to the prompt format (`Format.options`)."""

    raw: bool = False
    pan_and_scan: bool = False
    continue_final: bool = False
    allow_urls: bool = False
    format_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _pictures: dict[Any, tuple[Any, Picture]] = dataclasses.field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name in ("raw", "pan_and_scan", "continue_final", "allow_urls"):
            check_flag(name, getattr(self, name))

    def picture(self, source: Any) -> Picture:
        return Picture.of(source, allow_urls=self.allow_urls)

    def picture_once(self, source: Any) -> Picture:
        """`picture`, and the same one again for the same source: a conversation may be rendered several times."""
        key = source if isinstance(source, str) else id(source)
        if key not in self._pictures:
            self._pictures[key] = source, self.picture(source)  # with the source, whose id is nobody else's meanwhile
        return self._pictures[key][1]

    def images(self, images: Images) -> list[Picture]:
        """What was given as `images`; None is none."""
        pictures = []
        for i, source in enumerate(as_list(images)):
            try:
                pictures.append(self.picture(source))
            except ValueError as error:
                raise ValueError(f"images[{i}]: {error}") from error
        return pictures


def read_prompt(prompt: Any) -> PlainPrompt:
    """One prompt, with arrays as lists and a single message in a list. ValueError for anything else, also a batch."""
    if (batch := read_batch(prompt)) is not None:
        raise ValueError(f"prompt is a batch of {len(batch)} prompts, where one is expected")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        return [prompt]
    elements = _elements(prompt)
    return elements if isinstance(elements[0], Mapping) else [int(token) for token in elements]


def are_messages(given: Any) -> bool:
    return isinstance(given, list | tuple) and bool(given) and isinstance(given[0], Mapping)


def read_messages(messages: Any) -> list[Message]:
    """A conversation. ValueError for what is none."""
    if not are_messages(messages):
        raise ValueError(f"messages must be a list of messages, got {brief(messages)}")
    return list(messages)


def read_token_rows(tokens: Any, vocab_size: int) -> np.ndarray:
    """Token ids [B, T]. ValueError for anything else."""
    try:
        array = np.asarray(tokens)
    except Exception as error:  # rows of several lengths, or an object of another library that fails
        reason = "these rows differ in length" if isinstance(error, ValueError) else one_line(error)
        raise ValueError(f"tokens must be integers of shape [B, T]: {reason}") from None
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"tokens must be integers of shape [B, T], got {array.dtype}{list(array.shape)}")
    if not (array.min() >= 0 and array.max() < vocab_size):
        raise ValueError(f"tokens must be in [0, {vocab_size})")
    return array


def read_batch(prompt: Any) -> list[Any] | None:
    """The prompts of a batch, as they were given; None for a single prompt. ValueError for what is neither."""
    if isinstance(prompt, str | Mapping):
        return None
    elements = _elements(prompt)
    if not elements:
        raise ValueError(f"prompt is empty: {_EXPECTED}")
    kinds = {_kind(element, f"prompt[{i}]") for i, element in enumerate(elements)}
    if len(kinds) > 1:
        raise ValueError(f"prompt mixes {' and '.join(sorted(kinds))}: {_EXPECTED}")
    return elements if kinds == {"prompts"} else None


def _elements(prompt: Any) -> list[Any]:
    if isinstance(prompt, _BYTES):
        raise ValueError("prompt is bytes: decode them to a string first")
    if hasattr(prompt, "__array__"):
        try:
            array = np.asarray(prompt)
        except Exception as error:  # it is another library's
            raise ValueError(f"prompt cannot be read as an array ({one_line(error)})") from error
        if array.ndim not in (1, 2):
            raise ValueError(f"an array of token ids is of shape [T], and a batch [B, T]; got {list(array.shape)}")
        return array.tolist()
    if not isinstance(prompt, Sequence):
        raise ValueError(f"prompt is of type {type(prompt).__name__}: {_EXPECTED}")
    return list(prompt)


def _kind(element: Any, where: str) -> str:
    if isinstance(element, Mapping):
        return "messages"
    if isinstance(element, int | np.integer) and not isinstance(element, bool):
        return "token ids"
    if hasattr(element, "__array__") or (isinstance(element, Sequence) and not isinstance(element, _BYTES)):
        return "prompts"
    raise ValueError(f"{where} is of type {type(element).__name__}: {_EXPECTED}")


def as_list(images: Images) -> list[Any]:
    """Images given one by one, as a list, or as an array [I, H, W, C]; None is none."""
    if images is None:
        return []
    if isinstance(images, str | os.PathLike | Image.Image | Picture | _BYTES) or hasattr(images, "read"):
        return [images]
    if hasattr(images, "__array__"):
        return list(np.asarray(images)) if getattr(images, "ndim", 0) == 4 else [images]
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise ValueError(f"images is of type {type(images).__name__}; expected an image or a list of images")
    try:
        return list(images)
    except Exception as error:  # an iterator that fails
        raise ValueError(f"images cannot be read one by one ({one_line(error)})") from error


def images_of_rows(images: Any, rows: int) -> list[list[Any]]:
    """A list of images for each of `rows` rows; None is none, and a single image that of a single row."""
    if images is None:
        return [[]] * rows
    given = as_list(images)
    if len(given) != rows:
        raise ValueError(f"images must be a list for each of the {rows} rows, got {len(given)} of them")
    return [as_list(row) for row in given]


def render(
    prompt: PlainPrompt,
    images: Images,
    format: Format,
    tokenizer: Tokenizer | None,
    num_soft_tokens: int | None,
    reading: Reading,
) -> Prompt:
    """Tokens and images of one prompt. `images` go before a string, or where a raw one or token ids mark them.

    Ids alone need no tokenizer.
    """
    given = reading.format_options
    options = {"pan_and_scan": reading.pan_and_scan, "continue_final": reading.continue_final, **given}
    if isinstance(prompt, list) and isinstance(prompt[0], Mapping):
        if as_list(images):
            raise ValueError("images= goes with a string: in messages, images are parts of their content")
        if reading.raw:
            raise ValueError("raw goes with a string: messages are written in the chat format")
        return format.render(
            prompt, require_tokenizer(tokenizer), num_soft_tokens, load_image=reading.picture_once, **options
        )
    if reading.continue_final:
        raise ValueError("continue_final goes with messages of which the last is the assistant's")
    shown = reading.images(images)
    if isinstance(prompt, str) and not reading.raw:
        parts = [{"type": "image", "image": image} for image in shown]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
        return format.render(messages, require_tokenizer(tokenizer), num_soft_tokens, load_image=Picture.of, **options)
    if reading.pan_and_scan or given:
        named = ", ".join([*["pan_and_scan"] * reading.pan_and_scan, *given])
        raise ValueError(f"{named}: part of the chat format, which goes with a string that is not raw, or messages")
    if isinstance(prompt, str):
        return render_raw(prompt, shown, require_tokenizer(tokenizer), num_soft_tokens, load_image=Picture.of)
    expanded = expand_images(cast(list[int], prompt), num_soft_tokens, tokenizer)
    return Prompt(expanded.tokens, list(place_images(expanded.starts, shown)))


def drop_oldest(
    messages: list[Message], prompt: Prompt, limit: int, render: Callable[[list[Message]], Prompt]
) -> tuple[list[Message], Prompt, int]:
    """Messages without their oldest turns, their prompt, and how many turns went: none if `prompt` is within `limit`.

    The fewest turns go that leave a prompt of `limit` tokens; the last one always stays.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "user"]

    def without(dropped: int) -> tuple[list[Message], Prompt]:
        kept = [*messages[: turns[0]], *messages[turns[dropped] :]]
        return kept, render(kept)

    if len(prompt.tokens) <= limit or len(turns) < 2:
        return messages, prompt, 0
    fewer = range(1, len(turns) - 1)  # than all but the last
    dropped = 1 + bisect.bisect_left(fewer, True, key=lambda count: len(without(count)[1].tokens) <= limit)
    return *without(dropped), dropped


def read_indices(name: str, given: Any, size: int) -> np.ndarray:
    """What of `size` things is meant by `given`: all by None. ValueError, with `name`, for what are no indices."""
    everything = np.arange(size)
    try:
        chosen = everything if given is None else everything[np.asarray(given)]
    except Exception:  # it may be anything that NumPy asks for its elements
        chosen = np.zeros((), int)
    if chosen.ndim != 1 or not chosen.size:
        raise ValueError(f"{name} must be a list of integers in [{-size}, {size}), got {brief(given)}")
    return chosen


def require_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """`tokenizer`. ValueError if there is none."""
    if tokenizer is None:
        raise ValueError(
            "this checkpoint has no tokenizer, without which there is no text: put its tokenizer.model or "
            "tokenizer.json beside the weights, and load it again"
        )
    return tokenizer
