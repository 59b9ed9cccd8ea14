"""Calls in what Gemma 3 writes: Google's documented forms, and those that are seen in the wild."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_tpu.text.tools import Call
from gemma_tpu.text.written_calls import WrittenCalls, _Notation

TOOLS: list[dict[str, Any]] = [
    {"name": "get_product_name_by_PID", "parameters": {"type": "object", "properties": {"PID": {"type": "string"}}}},
    {"name": "convert", "parameters": {"properties": {"amount": {}, "currency": {}, "new_currency": {}}}},
    {"name": "now"},
    {"name": "get-time.utc"},
]
PID = ("get_product_name_by_PID", {"PID": "807ZPKBL9V"})
NOW = ("now", {})


def pieces(text: str, size: int | None = None) -> list[str | tuple[str, dict[str, Any]]]:
    """Texts and calls of an answer that comes in parts of `size` characters; neighbouring texts are joined."""
    reader, size = WrittenCalls(TOOLS), size or max(len(text), 1)
    read: list[str | Call] = []
    for i in range(0, len(text), size):
        read += reader.push(text[i : i + size])
    joined: list[Any] = []
    for piece in [*read, *reader.flush()]:
        if isinstance(piece, dict):
            assert piece["type"] == "function"
            joined.append((piece["function"]["name"], piece["function"]["arguments"]))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


FOUND = [
    # ai.google.dev/gemma/docs/capabilities/function-calling, both forms.
    ('[get_product_name_by_PID(PID="807ZPKBL9V")]', [PID]),
    ('{"name": "get_product_name_by_PID", "parameters": {"PID": "807ZPKBL9V"}}', [PID]),
    # Google's tutorials, and vllm issue 14734.
    ("```tool_code\nget_product_name_by_PID(PID='807ZPKBL9V')\n```", [PID]),
    (
        "Okay, I can help.\n```tool_code\nprint(convert(amount=200000.0, currency='USD', new_currency=\"EUR\"))\n```",
        ["Okay, I can help.\n", ("convert", {"amount": 200000.0, "currency": "USD", "new_currency": "EUR"})],
    ),
    # Others.
    ("[now(), get_product_name_by_PID(PID='807ZPKBL9V')]", [NOW, PID]),
    ("[\n  now( ) ,\n  now(),\n]", [NOW, NOW]),
    ("now()", [NOW]),
    ("[get-time.utc()]", [("get-time.utc", {})]),
    ("It is\nnow()\nnow()", ["It is\n", NOW, "\n", NOW]),
    (
        "convert(200, 'USD', new_currency='EUR')",
        [("convert", {"amount": 200, "currency": "USD", "new_currency": "EUR"})],
    ),
    ('```json\n[{"name": "now", "arguments": {}}, {"name": "now"}]\n```', [NOW, NOW]),
    ('```\n{"name": "now"}\n{"name": "now", "parameters": {}}\n```\nWait.', [NOW, NOW, "\nWait."]),
    ('{"type": "function", "function": {"name": "now", "arguments": "{\\"a\\": [1]}"}}', [("now", {"a": [1]})]),
    ('{"name": "now", "parameters": {"a": 1}}\n{"name": "now"}', [("now", {"a": 1}), "\n", NOW]),
    ("```tool_code\nnow()", [NOW]),
]


@pytest.mark.parametrize(("text", "wanted"), FOUND)
@pytest.mark.parametrize("size", [None, 1, 2, 7])
def test_calls_in_any_pieces(text: str, wanted: list[Any], size: int | None) -> None:
    assert pieces(text, size) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Say now() in the middle, `now()`, [1], {x} and [link](https://example.com).",
        "now(x) is no call, for x has no value\n",
        "print('now')",
        "other(a=1)",
        '{"name": "other", "parameters": {}}',
        '{"title": "now", "name": "now"}',
        '{"name": "now", "parameters": [1]}',
        '{"name": ["now"]}',
        '{"name": "now", "arguments": "{"}',
        "[now(), other()]",
        "[now(), 5]",
        "[]",
        "convert(1, 2, 3, 4)",
        "convert(1, amount=2)",
        "now(a=1, a=2)",
        "now(a=NaN)",
        "now(a=1e999)",
        "now(a=nothing)",
        "now(a=",
        "[now()",
        "[convert(amount='1",
        "```python\ndef f():\n    return now()\n```",
        '```json\n{"a": 1}\n```',
        f"now(a={'[' * 1500}",
        f"now(a={'[' * 80}{']' * 80})",
    ],
)
@pytest.mark.parametrize("size", [None, 1, 5])
def test_what_is_no_call_stays_text(text: str, size: int | None) -> None:
    assert pieces(text, size) == [text] * bool(text)


def test_text_is_not_held_longer_than_it_may_be_a_call() -> None:
    reader = WrittenCalls(TOOLS)
    assert reader.push("A list: [1, 2]\n") == ["A list: [1, 2]\n"]
    assert reader.push("no") == []
    assert reader.push("thing. [n") == ["nothing. "]
    assert reader.push("ine]") == ["[nine]"]
    assert reader.push('{"na') == []
    assert reader.push('ture": ') == ['{"nature": ']
    assert reader.push("1}") == ["1}"]


def test_a_call_comes_when_it_ends() -> None:
    reader = WrittenCalls(TOOLS)
    assert [reader.push("[now(a='" if i == 0 else "a) ]") for i in range(150)] == [[]] * 150
    (call,) = reader.push("')]")
    assert isinstance(call, dict)
    assert call["function"]["arguments"] == {"a": "a) ]" * 149}


@pytest.mark.parametrize("end", ["'", "')]", ""])
def test_long_texts_are_not_read_too_often(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, take = [], _Notation._take
    monkeypatch.setattr(_Notation, "_take", lambda self, expected: read.append(expected) or take(self, expected))
    reader = WrittenCalls(TOOLS)
    said = ["[now(a='"] + ["[1]), now(a=["] * 1500 if end else ["[now()"] + [", now(a=[1])"] * 1500
    pieces = [piece for text in said for piece in reader.push(text)]
    pieces += reader.push(end) + reader.flush()
    if end == "')]":
        (call,) = pieces
        assert isinstance(call, dict)
        assert call["function"]["arguments"] == {"a": "".join(said[1:])}
    else:
        assert "".join(map(str, pieces)) == "".join(said) + end
    assert len(read) < 100 * len(said)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=5,
)


@settings(deadline=None, max_examples=25)
@given(
    arguments=st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
    ascii=st.booleans(),
    size=st.sampled_from([3, 7, 40]),
)
def test_any_json(arguments: dict[str, Any], ascii: bool, size: int) -> None:
    text = json.dumps({"name": "now", "parameters": arguments}, ensure_ascii=ascii)
    assert pieces(text, size) == [("now", arguments)]


@settings(deadline=None, max_examples=25)
@given(value=VALUES, size=st.sampled_from([3, 7, 40]))
def test_any_python(value: Any, size: int) -> None:
    assert ast.literal_eval(repr(value)) == value
    assert pieces(f"[now(a={value!r})]", size) == [("now", {"a": value})]
