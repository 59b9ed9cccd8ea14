from __future__ import annotations

import pytest

from gemma_tpu.text.functions import FunctionCalls
from gemma_tpu.text.tools import Call


def call(body: str, end: str = "<end_function_call>") -> str:
    return f"<start_function_call>call:{body}{end}"


def pieces(text: str, size: int | None = None) -> list[str | Call]:
    """Of a text that comes in parts of `size` characters; neighbouring texts are joined."""
    reader, size = FunctionCalls(), size or len(text)
    read: list[str | Call] = []
    for i in range(0, len(text), size):
        read += reader.push(text[i : i + size])
    joined: list[str | Call] = []
    for piece in [*read, *reader.flush()]:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def calls(text: str) -> list[Call]:
    return [piece for piece in pieces(text) if isinstance(piece, dict)]


def test_values():
    (found,) = calls(
        call(
            "f{a:<escape>x, {y}: [z]<escape>,b:[1,-2.5,true,null,<escape><escape>],c:{d:<escape>e<escape>,f:{}},g:[],"
            "h: word}"
        )
    )
    assert found == {
        "type": "function",
        "function": {
            "name": "f",
            "arguments": {
                "a": "x, {y}: [z]",
                "b": [1, -2.5, True, None, ""],
                "c": {"d": "e", "f": {}},
                "g": [],
                "h": "word",
            },
        },
    }


def test_several_calls_and_what_comes_before():
    text = f"Let me see. {call('one{}')}{call('two{city:<escape>Paris<escape>}', '')}"
    before, *found = pieces(text)
    assert before == "Let me see. "
    assert [one["function"]["name"] for one in found if isinstance(one, dict)] == ["one", "two"]
    assert pieces("plain") == ["plain"]


def test_a_call_comes_once_it_is_whole_and_text_at_once():
    reader, text = FunctionCalls(), call("f{a:<escape>x<escape>}")
    assert reader.push("Well. ") == ["Well. "]
    assert reader.push(text[:-19]) == reader.push(text[-19:-17]) == []
    (found,) = reader.push(text[-17:])
    assert found["function"] == {"name": "f", "arguments": {"a": "x"}}
    assert reader.push("Then.") == ["Then."]
    assert reader.flush() == []


@pytest.mark.parametrize("body", ["f{a:<escape>x}", "f{a}", "f{a:[1,2}", "f", "{}", "f{a:1", "f{a:1}}"])
def test_what_is_no_call(body):
    assert pieces(f"a {call(body)} b") == [f"a {call(body)} b"]


@pytest.mark.parametrize("opening", ["[", "{a:", "[{a:"])
def test_calls_nested_too_deep_are_skipped(opening: str) -> None:
    deep = call("f{a:" + opening * 3000 + "}")
    assert [found["function"]["name"] for found in calls(deep + call("g{a:" + "[" * 63 + "]" * 63 + "}"))] == ["g"]
