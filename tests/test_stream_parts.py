"""What a completion has besides its text: thoughts apart from the answer, and the calls in it."""

from __future__ import annotations

import random

import format_samples

from gemma_tpu.engine.request import Request
from gemma_tpu.options import SamplingParams
from gemma_tpu.stream import AnswerText, TextStream
from gemma_tpu.text import FUNCTION_GEMMA, GEMMA3, Format, Tokenizer


def stream(tokenizer: Tokenizer, *events: list[int], format: Format = GEMMA3) -> TextStream:
    """Of a request whose answer came in these lists of tokens."""
    request = Request([2], [], SamplingParams())
    for tokens in events:
        request.push(tokens)
    request.finish("stop")
    return TextStream(request, tokenizer, call_reader=lambda: format.call_reader([]))


def test_thoughts():
    tokenizer = format_samples.tokenizer("<unused94>", "<unused95>")
    begin, end = tokenizer.id("<unused94>"), tokenizer.id("<unused95>")
    thought, answer = tokenizer.encode("thought\nA circle."), tokenizer.encode("It is red.")
    written = stream(tokenizer, [begin, *thought[:2]], [*thought[2:], end, *answer[:1]], answer[1:])
    assert "".join(written) == "It is red."
    assert written.completion.text == "It is red."
    assert written.completion.thinking == "A circle."
    assert written.completion.tokens == [begin, *thought, end, *answer]


def test_calls():
    tokenizer = format_samples.function_gemma()
    text = "Well. <start_function_call>call:f{x:<escape>y<escape>}<end_function_call>"
    completion = stream(tokenizer, tokenizer.encode(text, control=True), format=FUNCTION_GEMMA).finish()
    assert completion.text == text
    assert completion.tool_calls == [{"type": "function", "function": {"name": "f", "arguments": {"x": "y"}}}]
    plain = format_samples.tokenizer()
    assert stream(plain, plain.encode(text)).finish().tool_calls == [], "another model writes about calls"


def test_tokens_that_come_together_read_as_one_by_one() -> None:
    """With a stop string that never comes, they are looked at one by one."""
    rng, tokenizer = random.Random(0), format_samples.tokenizer("<unused94>", "<unused95>")
    some = [
        *tokenizer.encode("thought An é 🟦 b"),
        *(tokenizer.id(f"<0x{byte:02X}>") for byte in (0xE2, 0x82, 0xAC, 0xFF)),
    ]
    some += [tokenizer.id("<unused94>"), tokenizer.id("<unused95>"), tokenizer.id("<end_of_turn>")]
    for _ in range(300):
        tokens = rng.choices(some, k=rng.randrange(20))
        whole, singly = AnswerText(tokenizer, []), AnswerText(tokenizer, ["never said"])
        for read in (whole, singly):
            assert read.push(tokens) + read.flush() == read.text
        assert (whole.text, whole.thinking, whole.tokens) == (singly.text, singly.thinking, singly.tokens)
