"""Which ids of a vocabulary are Gemma's special tokens: the one place that decides.

The same token has different names and ids in the vocabularies that are in use: MaxText's calls the end of an image
`<unused99>`, a vocabulary trained anew has other ids, one for text only has no images. So an id is taken from what
says it, in this order: the piece that bears the token's name, config.json, the tokenizer file's own settings, and, in
a vocabulary of the released size, the released ids.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

# Roles; the piece of each is called `<role>`. A vocabulary for text only lacks the image's.
REQUIRED = ("pad", "eos", "bos", "unk", "start_of_turn", "end_of_turn")
IMAGE = ("start_of_image", "end_of_image")
# Stands for an image's soft tokens in Hugging Face's files, behind the vocabulary; here config.SOFT_TOKEN does.
IMAGE_SOFT_TOKEN = "<image_soft_token>"
# FunctionGemma's own pieces: never what a user types, like control pieces, but part of the text that the model writes.
FUNCTION_PIECES = (
    *(f"<{end}_function_{what}>" for what in ("declaration", "call", "response") for end in ("start", "end")),
    "<escape>",
)

# Of the released vocabulary: gemma/gm/text/_tokenizer.py, Gemma3Tokenizer.
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
# What a control piece may look like. Ordinary user-defined pieces (newline runs, tabs, <table>, </b>) do not match.
_CONTROL = re.compile(
    r"<(?:pad|eos|bos|unk|mask|2mass|unused\d+|(?:start|end)_of_\w+|\w+_soft_token)>|\[(?:@BOS@|multimodal)\]"
)


def control_ids(pieces: Sequence[str]) -> set[int]:
    """Ids of the pieces that are named like a control token."""
    return {i for i, piece in enumerate(pieces) if piece.startswith(("<", "[")) and _CONTROL.fullmatch(piece)}


def find_special_ids(
    pieces: Sequence[str], controls: Collection[int], own: Mapping[str, int], config: Mapping[str, int]
) -> tuple[dict[str, int], list[str]]:
    """Ids by role, of the roles that the vocabulary has; and a sentence for each id of `config` that is not believed.

    `pieces` by id; `controls`: the ids that stand for no text. `own` is what the tokenizer's file says of roles,
    `config` what config.json does. An id of an ordinary piece is nobody's special token, whoever says so.
    """
    named = {piece: i for i, piece in enumerate(pieces)}
    found: dict[str, int] = {}
    doubts: list[str] = []
    for role in (*REQUIRED, *IMAGE):
        name, said = f"<{role}>", config.get(role)
        candidates = [own.get(role)]
        if len(pieces) >= _RELEASED_SIZE:
            candidates.append(RELEASED[role])
        if said is not None and said in controls:
            candidates.insert(0, said)
        believed = named.get(name, next((token for token in candidates if token in controls), None))
        if believed is not None:
            found[role] = believed
        if said is None or said == believed or (said in controls and role in ("pad", "eos")):
            continue  # a fine-tune may pad or end with another control token: no contradiction
        piece = f"the piece of {said} is {pieces[said]!r}" if 0 <= said < len(pieces) else f"{said} has no piece"
        taken = f"{name} is {believed}" if believed is not None else f"the vocabulary has no {name}"
        doubts.append(f"config.json has id {said} for {name}, but {piece}; {taken}")
    return found, doubts
