"""Finds the ids of Gemma's special tokens in a vocabulary.

Names and ids differ between vocabularies: MaxText's calls <end_of_image> `<unused99>`, a retrained vocabulary has other
ids, a text-only one has no image tokens. An id therefore comes from the first of: the piece with the token's name,
config.json, the tokenizer file's settings, and, for a vocabulary of the released size, the released ids.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

# Roles; the piece of each is `<role>`. A text-only vocabulary lacks those of `IMAGE`.
REQUIRED = ("pad", "eos", "bos", "unk", "start_of_turn", "end_of_turn")
IMAGE = ("start_of_image", "end_of_image")
# The placeholder for soft tokens in Hugging Face's files, beyond the vocabulary; here it is config.SOFT_TOKEN.
IMAGE_SOFT_TOKEN = "<image_soft_token>"
# FunctionGemma's pieces: like control pieces never parsed from user text, but part of the text that the model writes.
FUNCTION_PIECES = (
    *(f"<{end}_function_{what}>" for what in ("declaration", "call", "response") for end in ("start", "end")),
    "<escape>",
)

# The released vocabulary (gemma/gm/text/_tokenizer.py, Gemma3Tokenizer).
_RELEASED_SIZE = 262_144
RELEASED = {
    "pad": 0,
    "eos": 1,
    "bos": 2,
    "unk": 3,
    "start_of_turn": 105,
    "end_of_turn": 106,
    "start_of_image": 255_999,
    "end_of_image": 256_000,
}
# Names of control pieces. Ordinary user-defined pieces (newline runs, tabs, <table>, </b>) do not match.
_CONTROL = re.compile(
    r"<(?:pad|eos|bos|unk|mask|2mass|unused\d+|(?:start|end)_of_\w+|\w+_soft_token)>|\[(?:@BOS@|multimodal)\]"
)


def control_ids(pieces: Sequence[str]) -> set[int]:
    """Ids of the pieces named like a control token."""
    return {i for i, piece in enumerate(pieces) if piece.startswith(("<", "[")) and _CONTROL.fullmatch(piece)}


def find_special_ids(
    pieces: Sequence[str], controls: Collection[int], roles: Mapping[str, int], config: Mapping[str, int]
) -> tuple[dict[str, int], list[str]]:
    """The id of each role that the vocabulary has, and a warning for each id of `config` that is not used.

    `pieces` by id; `controls`: ids without text. `roles` come from the tokenizer file, `config` from config.json; an id
    in either is used only if it is a control id.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    found: dict[str, int] = {}
    warnings: list[str] = []
    for role in (*REQUIRED, *IMAGE):
        name, configured = f"<{role}>", config.get(role)
        candidates = [roles.get(role)]
        if len(pieces) >= _RELEASED_SIZE:
            candidates.append(RELEASED[role])
        if configured is not None and configured in controls:
            candidates.insert(0, configured)
        chosen = ids.get(name, next((token for token in candidates if token in controls), None))
        if chosen is not None:
            found[role] = chosen
        if configured is None or configured == chosen or (configured in controls and role in ("pad", "eos")):
            continue  # a fine-tune may pad or end with another control token
        known = 0 <= configured < len(pieces)
        piece = f"the piece of {configured} is {pieces[configured]!r}" if known else f"{configured} has no piece"
        actual = f"{name} is {chosen}" if chosen is not None else f"the vocabulary has no {name}"
        warnings.append(f"config.json has id {configured} for {name}, but {piece}; {actual}")
    return found, warnings
