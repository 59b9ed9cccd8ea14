"""Incremental text against `Tokenizer.decode` of everything, and stop strings against a search in the whole text."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from gemma_tpu.text import Detokenizer, StopStrings, Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(Path(__file__).parent / "goldens" / "text" / "tokenizer.model")


def cut(rng: random.Random, items):
    """`items` in consecutive pieces of random lengths, some of them empty."""
    while len(items):
        n = rng.choice([0, 1, 1, 1, 2, 3, 7])
        yield items[:n]
        items = items[n:]


@pytest.mark.parametrize("skip_special", [True, False])
def test_pieces_add_up_to_the_whole(tokenizer: Tokenizer, skip_special: bool) -> None:
    rng = random.Random(0)
    byte_ids = [tokenizer.id(f"<0x{b:02X}>") for b in range(256)]
    texts = [" a  leading space", "😀 👩‍👩‍👧 flags 🇫🇷", "你好，世界", "naïve\n\n\n", "<start_of_turn>"]
    for _ in range(600):
        ids: list[int] = []
        for _ in range(rng.randrange(8)):
            kind = rng.randrange(4)
            if kind == 0:
                ids += tokenizer.encode(rng.choice(texts))
            elif kind == 1:
                ids += rng.choices(byte_ids, k=rng.randrange(6))
            elif kind == 2:
                ids += [byte_ids[b] for b in rng.choice("é你😀").encode()][: rng.randrange(5)]
            else:
                ids.append(rng.randrange(tokenizer.vocab_size))
        whole = tokenizer.decode(ids, skip_special=skip_special)
        detokenizer = Detokenizer(tokenizer, skip_special=skip_special)
        shown = ""
        for part in cut(rng, ids):
            shown += detokenizer.push(part)
            assert whole.startswith(shown)  # what was shown is never taken back
        assert shown + detokenizer.flush() == whole
        assert detokenizer.flush() == ""


def test_a_character_of_several_bytes_is_held_until_complete(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([tokenizer.id(f"<0x{b:02X}>")]) for b in "é😀你".encode()]
    assert pieces == ["", "é", "", "", "", "😀", "", "", "你"]


def test_bytes_known_to_be_invalid_are_not_held(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    byte_ids = {b: tokenizer.id(f"<0x{b:02X}>") for b in (0xE4, 0xBD, 0xFF, 0xF0, 0x80)}
    assert detokenizer.push([byte_ids[0xFF]]) == "\ufffd"
    assert detokenizer.push([byte_ids[0xE4], byte_ids[0xBD]]) == ""
    assert detokenizer.push(tokenizer.encode(" the")) == "\ufffd\ufffd the"
    assert detokenizer.push([byte_ids[0xF0], byte_ids[0x80]]) == "\ufffd\ufffd"  # no character begins so
    assert detokenizer.push([byte_ids[0xE4]]) == ""
    assert detokenizer.push([tokenizer.end_of_turn]) == "\ufffd"
    assert detokenizer.flush() == ""


def test_spaces_come_with_their_token(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([tokenizer.id(p)]) for p in ("▁the", "▁▁", "▁", "\n", "▁red")] == [
        " the",
        "  ",
        " ",
        "\n",
        " red",
    ]


def test_cost_of_a_token_does_not_grow(tokenizer: Tokenizer) -> None:
    """A detokenizer that decodes its history again at each token would need half a minute for this."""
    ids = tokenizer.encode("the red circle 😀 ") * 1000
    detokenizer = Detokenizer(tokenizer)
    began = time.process_time()
    text = "".join(detokenizer.push([token]) for token in ids) + detokenizer.flush()
    assert text == "the red circle 😀 " * 1000
    assert time.process_time() - began < 8


def first_completed(text: str, stops: list[str]) -> tuple[str, bool]:
    """The rule, tried at each length of the text."""
    for n in range(len(text) + 1):
        ends = [stop for stop in stops if text[:n].endswith(stop)]
        if ends:
            return text[: n - max(map(len, ends))], True
    return text, False


def test_stop_strings_are_cut_wherever_the_text_is_cut() -> None:
    rng = random.Random(2)
    for _ in range(3000):
        stops = ["".join(rng.choices("ab\n", k=rng.randrange(1, 5))) for _ in range(rng.randrange(4))]
        text = "".join(rng.choices("ab\nc", k=rng.randrange(14)))
        expected, expected_stop = first_completed(text, stops)
        checker = StopStrings(stops)
        shown, stopped = "", False
        for part in cut(rng, text):
            emitted, stopped = checker.push(part)
            shown += emitted
            assert expected.startswith(shown)
            if stopped:
                break
        assert (shown + checker.flush(), stopped) == (expected, expected_stop), (text, stops)


def test_stop_strings_hold_back_no_more_than_needed() -> None:
    checker = StopStrings(["\n\nUser:", "END"])
    assert checker.push("Hello") == ("Hello", False)
    assert checker.push(" E") == (" ", False)
    assert checker.push("x\n") == ("Ex", False)
    assert checker.push("\nUse") == ("", False)
    assert checker.push("d EN") == ("\n\nUsed ", False)
    assert checker.push("D of it") == ("", True)
    assert checker.stopped == "END"
    assert checker.push("more") == ("", True)
    assert checker.flush() == ""


def test_no_stop_strings_hold_nothing() -> None:
    assert StopStrings([]).push("anything\n") == ("anything\n", False)


def test_empty_stop_string() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        StopStrings(["\n", ""])
