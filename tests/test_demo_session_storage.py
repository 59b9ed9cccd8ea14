"""What a browser keeps of a conversation: packed, handed back, and not believed."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from demo.chat import Conversation, Turn
from demo.session_storage import StoredAnswer, pack, unpack


def upload(size: tuple[int, int], path: Path) -> str:
    """The path of a picture as uploaded; its content differs from test to test."""
    Image.effect_noise(size, 90).convert("RGB").save(path)
    return save_bytes_to_cache(path.read_bytes(), path.name, get_upload_folder())


def stored(kept: str | dict[str, Any], draft: str = "") -> str:
    return json.dumps({"kept": kept if isinstance(kept, str) else json.dumps(kept), "draft": draft})


def example(*pictures: str) -> Conversation:
    conversation = Conversation()
    first = Turn("What?", pictures[:1], StoredAnswer("A <b>cat</b>.", False, {"en": "3 tokens", "zh": "3 个 token"}))
    second = Turn("And?", pictures[1:], StoredAnswer("It", True, {}), fresh=True)
    conversation.restore([first, second], 1, pictures)
    return conversation


def test_a_conversation_comes_back_as_it_was(tmp_path: Path) -> None:
    pictures = [upload((30, 20), tmp_path / f"{i}.png") for i in range(2)]
    before, after = example(*pictures), Conversation()
    assert unpack(stored(pack(before), "a draft"), after) == ("a draft", [], True)
    for lang in ("en", "zh"):
        assert after.messages(lang) == before.messages(lang)
        assert after.footer(lang) == before.footer(lang)
    assert (after.can_continue, after.attached, after.state[1]) == (True, tuple(pictures), 1)
    assert unpack(stored(pack(example(*pictures))), after) == ("", [], True)
    assert len(after.state[0]) == 2  # it goes on already
    assert unpack(stored(""), Conversation()) == ("", [], True)


@pytest.mark.parametrize("side", [40, 1500])
def test_pictures_that_are_gone_are_made_again(tmp_path: Path, side: int) -> None:
    pictures = [upload((side, side // 2), tmp_path / f"{i}.png") for i in range(2)]
    kept = json.loads(pack(example(*pictures), pictures[:1]))
    whole = Path(pictures[0]).read_bytes()
    for path in pictures:
        Path(path).unlink()
    conversation = Conversation()
    _, remade, readable = unpack(stored(kept), conversation)
    assert readable
    first, second = conversation.state[0]
    assert first.pictures == tuple(remade)
    again = Path(remade[0]).read_bytes()
    assert (again == whole) == (side == 40)
    assert Image.open(io.BytesIO(again)).size == (min(side, 1024), min(side, 1024) // 2)
    assert (second.pictures, second.lost) == ((), 1)  # the browser did not have it
    assert "no longer here" in str(conversation.messages("en"))
    assert conversation.attached == tuple(remade)


def test_nothing_that_is_handed_over_is_believed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    picture = upload((30, 20), tmp_path / "mine.png")
    kept = json.loads(pack(example(picture, picture)))
    for path in (str(secret), f"{Path(picture).parent}/../../../..{secret}", "/etc/passwd", "\0", "", "x" * 9000):
        turns = [{**turn, "pictures": [path]} for turn in kept["turns"]]
        for data in ({}, {path: "no base64"}, {path: base64.b64encode(b"no picture").decode()}):
            conversation = Conversation()
            assert unpack(stored({**kept, "turns": turns, "pictures": data, "attached": [path]}), conversation)[2]
            assert [turn.pictures for turn in conversation.state[0]] == [(), ()]
            assert conversation.attached == ()
    marked = [{**turn, "statistics": {"en": "<img src=x>"}} for turn in kept["turns"]]
    conversation = Conversation()
    unpack(stored({**kept, "turns": marked, "start": 10**9}), conversation)
    assert "<" not in conversation.footer("en")
    assert conversation.state[1] == 2
    for wrong in ("[]", "{}", "no json", {**kept, "version": 0}, {**kept, "turns": 5}, {**kept, "turns": [{}]}):
        conversation = Conversation()
        assert unpack(stored(wrong, "typed"), conversation) == ("typed", [], False)
        assert conversation.state[0] == []
    assert unpack("no json", Conversation()) == ("", [], False)
