from __future__ import annotations

import format_samples

from gemma_tpu.text import Thoughts

TOKENIZER = format_samples.tokenizer("<unused94>", "<unused95>")
BEGIN, END = TOKENIZER.id("<unused94>"), TOKENIZER.id("<unused95>")


def test_the_trace_is_apart_from_the_answer():
    trace, answer = TOKENIZER.encode("thought\nA circle, 红色.\n"), TOKENIZER.encode("It is red.")
    tokens = [BEGIN, *trace, END, *answer]
    for size in (1, 3, len(tokens)):
        thoughts = Thoughts(TOKENIZER)
        kept = [token for at in range(0, len(tokens), size) for token in thoughts.split(tokens[at : at + size])]
        assert kept == answer
        assert thoughts.text == "A circle, 红色."


def test_an_answer_without_thoughts_is_as_it_was():
    for tokenizer in (TOKENIZER, format_samples.tokenizer()):
        thoughts = Thoughts(tokenizer)
        tokens = tokenizer.encode("thought\nabout it")
        assert thoughts.split(tokens) == tokens
        assert thoughts.text == ""
    thoughts = Thoughts(TOKENIZER)
    assert thoughts.split([END, 20]) == [END, 20], "an end without a beginning is nobody's"


def test_thoughts_that_were_cut():
    thoughts = Thoughts(TOKENIZER)
    assert thoughts.split([BEGIN, *TOKENIZER.encode("thought\nhmm")]) == []
    assert thoughts.text == "hmm"
