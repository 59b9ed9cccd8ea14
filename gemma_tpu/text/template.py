"""Conversations and raw text → prompts: token ids with a run of SOFT_TOKEN for each image.

Two ways to put an image between its newlines exist, and they differ by a token where the text beside the image begins
or ends with a newline. `render_messages` does as Hugging Face's processor (the it models are served with it): newlines
are part of the text before it is tokenized, so that they merge with their neighbours. `render_raw` and `expand_images`
do as Google's gemma package: the id of "\\n\\n" is put in after tokenizing.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from gemma_tpu import image as image_lib
from gemma_tpu.checks import brief
from gemma_tpu.picture import ImageT, Picture, PlacedImage
from gemma_tpu.text.tokenizer import SOFT_TOKEN, Tokenizer

Shown = Image.Image | Picture
LoadImage = Callable[[Any], Shown]
if TYPE_CHECKING:
    Messages = Sequence[Mapping[str, Any]]
else:
    Messages = Any  # they come from users: checked below, with errors that say where

# Gemma3Processor's words around the crops of a pan and scan (transformers 5.23, processing_gemma3.py).
_BEFORE_ORIGINAL = "Here is the original image "
_BEFORE_CROPS = " and here are some crops to help you see better "
_BETWEEN_CROPS = " "


@dataclasses.dataclass(frozen=True)
class Prompt:
    """`tokens`, fully expanded: an image is <start_of_image>, num_soft_tokens × SOFT_TOKEN, <end_of_image>.

    `images` (RGB) stand where their soft tokens begin, in that order.
    """

    tokens: list[int]
    images: list[PlacedImage[Shown]] = dataclasses.field(default_factory=list)


def render_messages(
    messages: Messages,
    tokenizer: Tokenizer,
    num_soft_tokens: int | None,
    *,
    load_image: LoadImage = image_lib.load_image,
    pan_and_scan: bool = False,
    continue_final: bool = False,
    write: Callable[..., None] | None = None,
    **options: Any,
) -> Prompt:
    """The prompt for the model's next turn in a conversation.

    A message is `{"role": "user" | "assistant" | "system", "content": …}` ("model" is another name of "assistant").
    Content is a string or a list of parts: `{"type": "text", "text": …}`, OpenAI's `{"type": "image_url", "image_url":
    {"url": …}}`, or Hugging Face's `{"type": "image", …}` with one of the keys "image" (anything `load_image` reads),
    "url" (http(s), data, or a path), "path" and "base64". Only users show images. Roles alternate, user first and last.
    A system message, only as the first, is put before the first user's text, with an empty line between. With
    `continue_final`, a last message of the assistant is left open for the model to go on.

    As in the chat template of the released it models, each text (part) is stripped of whitespace at both ends, but for
    the system's, and the parts of a message follow each other with nothing between. Unlike there, all text parts of a
    system message count, and an empty system message is as none.

    `num_soft_tokens` is None or 0 for a model that reads only text. With `pan_and_scan`, an image far from square is
    followed by crops of it (see `gemma_tpu.image.pan_and_scan`). `write`: writes the messages in the format of a
    relative, with its `options`, in place of `write_messages`.

    Raises ValueError, naming the message, for anything not of this shape.
    """
    builder = PromptBuilder(tokenizer, num_soft_tokens, load_image, pan_and_scan)
    builder.begin()
    (write or write_messages)(builder, messages, continue_final, **options)
    return builder.prompt()


def write_messages(builder: PromptBuilder, messages: Messages, continue_final: bool) -> None:
    """Gemma 3's own format."""
    system, turns = check_turns(messages, continue_final)

    def question(content: Any, where: str) -> None:
        if where == turns[0][0] and system and system.strip():
            builder.text(f"{system}\n\n")
        for at, kind, value in content_parts(content, where):
            if kind == "text":
                builder.text(value.strip())
            else:
                builder.image(value, at)

    write_turns(builder, turns, question, continue_final)


def write_turns(
    builder: PromptBuilder, turns: Sequence[Turn], question: Callable[[Any, str], None], continue_final: bool
) -> None:
    """Writes `turns` (see `check_turns`); `question` writes what a user says, from its content and its place."""
    for i, (where, role, message) in enumerate(turns):
        builder.begin_turn(role)
        if role == "user":
            question(message["content"], where)
        else:
            builder.text(answer_text(message["content"], where))
        if not (continue_final and role == "model" and i == len(turns) - 1):
            builder.end_turn()
    if turns[-1][1] == "user":
        builder.begin_turn("model")


def answer_text(content: Any, where: str, *, strip: bool = True) -> str:
    """The text of an assistant's message, as the format writes it or as it was given. ValueError if it has an image."""
    refusal = "an image in a message of the assistant; only users show images"
    return "".join(text.strip() if strip else text for text in _texts(content, where, refusal))


def render_raw(
    text: str,
    images: Sequence[Any],
    tokenizer: Tokenizer,
    num_soft_tokens: int | None,
    *,
    bos: bool = True,
    load_image: LoadImage = image_lib.load_image,
) -> Prompt:
    """The prompt for text taken as it is: control pieces in it are parsed, and nothing is stripped.

    Each <start_of_image> is the place of one of `images` (see `expand_images`). `bos` puts <bos> in front, if the text
    does not begin with it. ValueError if the numbers of markers and images differ.
    """
    tokens = tokenizer.encode(text, control=True)
    if bos and tokens[:1] != [tokenizer.bos_id]:
        tokens.insert(0, tokenizer.bos_id)
    if images:
        _image_block(tokenizer, num_soft_tokens)
    expanded = expand_images(tokens, num_soft_tokens, tokenizer)
    placed = place_images(expanded.starts, images)
    return Prompt(expanded.tokens, [PlacedImage(one.start, load_image(one.image)) for one in placed])


class Expanded(NamedTuple):
    """Tokens with whole images in them: where each token given has gone, and where each image's soft tokens begin."""

    tokens: list[int]
    kept: list[int]
    starts: list[int]


def expand_images(tokens: Sequence[int], num_soft_tokens: int | None, tokenizer: Tokenizer | None) -> Expanded:
    """`tokens` with the rest of an image put around each <start_of_image>.

    That is: the ids of "\\n\\n", <start_of_image>, num_soft_tokens × SOFT_TOKEN, <end_of_image>, the ids of "\\n\\n".
    A <start_of_image> is kept as the first of them; without a tokenizer no token is one. ValueError if there is one and
    the model reads only text, or if the tokens are expanded already.
    """
    if SOFT_TOKEN in tokens:
        raise ValueError("the tokens hold soft tokens already: expand the images of a prompt only once")
    expanded = Expanded([], [], [])
    for token in tokens:
        expanded.kept.append(len(expanded.tokens))
        if tokenizer is not None and token == tokenizer.start_of_image:
            block = _image_block(tokenizer, num_soft_tokens)
            expanded.starts.append(len(expanded.tokens) + len(tokenizer.double_newline) + 1)
            expanded.tokens.extend([*tokenizer.double_newline, *block, *tokenizer.double_newline])
        else:
            expanded.tokens.append(token)
    return expanded


def place_images(starts: Sequence[int], images: Sequence[ImageT]) -> list[PlacedImage[ImageT]]:
    """Each image at its start. ValueError if their numbers differ."""
    if len(starts) != len(images):
        raise ValueError(
            f"the prompt has {len(starts)} <start_of_image> but {len(images)} image(s) were given; it needs one for "
            "each"
        )
    return [PlacedImage(start, image) for start, image in zip(starts, images, strict=True)]


class PromptBuilder:
    """Collects a prompt; text between two control tokens is tokenized as one, as if the whole were one string."""

    def __init__(self, tokenizer: Tokenizer, num_soft_tokens: int | None, load_image: LoadImage, pan_and_scan: bool):
        self.tokenizer = tokenizer
        self._num_soft_tokens = num_soft_tokens
        self._load_image = load_image
        self.pan_and_scan = pan_and_scan
        self._tokens: list[int] = []
        self._images: list[PlacedImage[Shown]] = []
        self._text = ""

    def begin(self) -> None:
        self.control(self.tokenizer.bos_id)

    def begin_turn(self, role: str) -> None:
        self.control(self.tokenizer.start_of_turn)
        self.text(f"{role}\n")

    def end_turn(self) -> None:
        self.control(self.tokenizer.end_of_turn)
        self.text("\n")

    def text(self, text: str) -> None:
        self._text += text

    def control(self, *tokens: int) -> None:
        self._tokens += self.tokenizer.encode(self._text)
        self._tokens += tokens
        self._text = ""

    def image(self, source: Any, where: str) -> None:
        try:
            _image_block(self.tokenizer, self._num_soft_tokens)
            image = self._load_image(source)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        crops = [image.crop(box) for box in image_lib.crop_boxes(image.size)] if self.pan_and_scan else []
        if not crops:
            self._block(image)
            return
        self.text(_BEFORE_ORIGINAL)
        self._block(image)
        self.text(_BEFORE_CROPS)
        for i, crop in enumerate(crops):
            self.text(_BETWEEN_CROPS if i else "")
            self._block(crop)

    def _block(self, image: Shown) -> None:
        self.text("\n\n")
        start, *rest = _image_block(self.tokenizer, self._num_soft_tokens)
        self.control(start)
        self._images.append(PlacedImage(len(self._tokens), image))
        self.control(*rest)
        self.text("\n\n")

    def prompt(self) -> Prompt:
        self.control()
        return Prompt(self._tokens, self._images)


def _image_block(tokenizer: Tokenizer, num_soft_tokens: int | None) -> list[int]:
    """The ids of an image. ValueError if the model or the tokenizer is for text only."""
    if not num_soft_tokens:
        raise ValueError(
            "this model reads only text (it has no vision tower, or was loaded without: text_only); leave the images "
            "out, or use 4B or larger, whole"
        )
    if tokenizer.start_of_image is None or tokenizer.end_of_image is None:
        raise ValueError(
            f"{tokenizer.name}: a tokenizer for text only: its vocabulary lacks <start_of_image> or <end_of_image>"
        )
    return [tokenizer.start_of_image, *[SOFT_TOKEN] * num_soft_tokens, tokenizer.end_of_image]


Turn = tuple[str, str, Mapping[str, Any]]  # where it stands, "user", "model" or "tool", the message
_ROLES = {"user": "user", "assistant": "model", "model": "model", "tool": "tool"}
_NEXT = {"user": ["model"], "model": ["user"], "tool": ["tool", "model"]}


def check_turns(
    messages: Messages, continue_final: bool, *, tools: bool = False, user_after_tools: bool = False
) -> tuple[str | None, list[Turn]]:
    """The system text, None without one, and the turns.

    `tools`: a call in an assistant's message, which then needs no content, is followed by messages of the role "tool",
    with `user_after_tools` perhaps one of the user, and "developer" is another name of "system".
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages must be a list of messages, got {type(messages).__name__}")
    first = ("developer", "system") if tools else ("system",)
    known = [role for role in _ROLES if tools or role != "tool"]
    system, turns, expected, calls = None, list[Turn](), _NEXT["model"], None
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise ValueError(f'{where}: expected {{"role": …, "content": …}}, got {type(message).__name__}')
        calls = message.get("tool_calls") if tools and message.get("role") in ("assistant", "model") else None
        if missing := [key for key in ("role", "content") if key not in message and not (calls and key == "content")]:
            raise ValueError(f"{where}: lacks {' and '.join(missing)}")
        given = message["role"]
        if not isinstance(given, str) or given not in [*first, *known]:
            raise ValueError(f"{where}: unknown role {brief(given)}; known are {', '.join([*first, *known])}")
        if given in first:
            if i:
                raise ValueError(f"{where}: a {given} message may only be the first")
            system = "".join(_texts(message.get("content"), where, f"a {given} message holds only text"))
            continue
        role = _ROLES[given]
        if role not in expected:
            wanted = ["assistant" if role == "model" else role for role in expected]  # what callers write
            after = f"expected {' or '.join(wanted)}" if turns else "first, after a system message, comes a user"
            raise ValueError(f"{where}: role {brief(given)} out of turn: {after}")
        turns.append((where, role, message))
        expected = ["tool"] if calls else _NEXT[role]
        if role == "tool" and user_after_tools:
            expected = [*expected, "user"]
    if not turns:
        raise ValueError("messages hold no message of a user")
    if turns[-1][1] == "model" and not calls and not continue_final:
        raise ValueError(
            f"{turns[-1][0]}: the last message is the assistant's; end with a user's, or continue it (continue_final)"
        )
    return system, turns


def _texts(content: Any, where: str, refusal: str) -> list[str]:
    """The texts of a message that shows no image. ValueError, ending in `refusal`, if it does."""
    texts = []
    for at, kind, value in content_parts(content, where):
        if kind != "text":
            raise ValueError(f"{at}: {refusal}")
        texts.append(value)
    return texts


def content_parts(content: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    """The parts of a message's content: where it stands, "text" or "image", and the text or the image's source."""
    if isinstance(content, str):
        yield where, "text", content
        return
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence):
        raise ValueError(f"{where}: content must be a string or a list of parts, got {type(content).__name__}")
    for i, part in enumerate(content):
        at = f"{where}.content[{i}]"
        if not isinstance(part, Mapping):
            raise ValueError(f'{at}: expected a part such as {{"type": "text", "text": …}}, got {type(part).__name__}')
        kind = part.get("type")
        if kind not in ("text", "image", "image_url"):
            raise ValueError(f"{at}: unknown type {brief(kind)}; known are text, image and image_url")
        if kind == "image":
            yield at, "image", _image_source(part, at)
            continue
        value = part.get(kind)
        if value is None:
            raise ValueError(f"{at}: a part of type {brief(kind)} needs the key {brief(kind)}")
        if kind == "text":
            if not isinstance(value, str):
                raise ValueError(f"{at}: text must be a string, got {type(value).__name__}")
            yield at, "text", value
            continue
        value = value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(value, str):
            raise ValueError(f'{at}: image_url must be a string or {{"url": string}}')
        yield at, "image", value


_IMAGE_KEYS = ("image", "url", "path", "base64")  # of transformers 5.23, processing_utils.py; None is as absent there


def _image_source(part: Mapping[str, Any], at: str) -> Any:
    given = [key for key in _IMAGE_KEYS if part.get(key) is not None]
    if len(given) != 1:
        names = ", ".join(map(repr, _IMAGE_KEYS))
        raise ValueError(f"{at}: a part of type 'image' needs one of the keys {names}; it has {given or 'none'}")
    value = part[given[0]]
    if given == ["image"] or isinstance(value, str):
        data = given == ["base64"] and not value.startswith("data:")
        return f"data:;base64,{value}" if data else value
    if given == ["path"] and isinstance(value, os.PathLike):
        return value
    raise ValueError(f"{at}: {given[0]} must be a string, got {type(value).__name__}")
