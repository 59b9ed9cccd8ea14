from __future__ import annotations

import pytest

from gemma_tpu.text import parse_calls, text_before_calls


def call(body: str, end: str = "<end_function_call>") -> str:
    return f"<start_function_call>call:{body}{end}"


def test_values():
    (found,) = parse_calls(
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
    assert [found["function"]["name"] for found in parse_calls(text)] == ["one", "two"]
    assert text_before_calls(text) == "Let me see. "
    assert text_before_calls("plain") == "plain"


@pytest.mark.parametrize("body", ["f{a:<escape>x}", "f{a}", "f{a:[1,2}", "f", "{}", "f{a:1", "f{a:1}}"])
def test_what_is_no_call(body):
    assert parse_calls(call(body)) == []


@pytest.mark.parametrize("opening", ["[", "{a:", "[{a:"])
def test_calls_nested_too_deep_are_skipped(opening: str) -> None:
    deep = call("f{a:" + opening * 3000 + "}")
    assert [found["function"]["name"] for found in parse_calls(deep + call("g{a:" + "[" * 63 + "]" * 63 + "}"))] == [
        "g"
    ]
