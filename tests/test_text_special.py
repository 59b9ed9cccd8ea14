"""Special ids from each of the things that say them, and what is not believed."""

from __future__ import annotations

import pytest

from gemma_tpu.text.special import control_ids, find_special_ids

NAMES = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
ROLES = [name[1:-1] for name in NAMES]
RELEASED = dict(zip(ROLES, [0, 1, 2, 3, 105, 106, 255_999, 256_000], strict=True))


def find(pieces: list[str], config: dict[str, int] | None = None, own: dict[str, int] | None = None):
    return find_special_ids(pieces, control_ids(pieces), own or {}, config or {})


def released(**names: str) -> list[str]:
    """A vocabulary of the released size, words but for the special pieces; `names` calls some of those otherwise."""
    pieces = [f"word{i}" for i in range(262_144)]
    for role, token in RELEASED.items():
        pieces[token] = names.get(role, f"<{role}>")
    return pieces


def test_ids_are_those_of_the_names() -> None:
    assert find(["x", *reversed(NAMES)]) == (dict(zip(ROLES, range(8, 0, -1), strict=True)), [])
    assert find(NAMES[:6])[0] == dict(zip(ROLES[:6], range(6), strict=True))  # for text only


def test_a_config_says_what_no_name_does() -> None:
    pieces = [*NAMES[:6], "<unused0>", "<unused1>", "word"]
    assert find(pieces, {"start_of_image": 6, "end_of_image": 7}) == (
        find(NAMES)[0],
        [],
    )
    found, warnings = find(pieces, {"start_of_image": 8, "end_of_image": 99})
    assert "start_of_image" not in found
    assert "config.json has id 8 for <start_of_image>, but the piece of 8 is 'word'" in warnings[0]
    assert "id 99 for <end_of_image>, but 99 has no piece; the vocabulary has no <end_of_image>" in warnings[1]


def test_a_config_that_contradicts_the_names_is_not_believed() -> None:
    found, warnings = find([*NAMES, "<unused0>"], {"start_of_image": 8, "bos": 5, "eos": 5, "pad": 1})
    assert found == find(NAMES)[0]
    assert [warning.split(",")[0] for warning in warnings] == [
        "config.json has id 5 for <bos>",
        "config.json has id 8 for <start_of_image>",
    ]
    assert warnings[1].endswith("the piece of 8 is '<unused0>'; <start_of_image> is 6")


def test_the_tokenizer_files_own_settings_come_next() -> None:
    pieces = ["<unused0>", "<unused1>", *NAMES[2:]]
    assert find(pieces, own={"pad": 1, "eos": 0})[0] == find(NAMES)[0] | {"pad": 1, "eos": 0}
    assert find(pieces, {"pad": 0}, own={"pad": 1, "eos": 1})[0]["pad"] == 0


@pytest.mark.parametrize("role", ROLES)
def test_a_vocabulary_of_the_released_size_has_the_released_ids(role: str) -> None:
    """MaxText's calls the end of an image <unused99>."""
    assert find(released(**{role: "<unused99>"})) == (RELEASED, [])
    found, _ = find(released(**{role: "word"}))
    assert role not in found
    assert role not in find(released(**{role: "<unused99>"})[:-1])[0]
