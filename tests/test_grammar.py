"""Grammars: what callers give, the masks that follow, and answers of a random model that are held to them."""

from __future__ import annotations

import functools
import json
import re
from typing import Any
from unittest import mock

import jsonschema
import llguidance
import numpy as np
import pytest
from plain_answers import plain_answer
from small_models import random_params
from test_api import CONFIG, FREE, TOKENIZER, make_model

import gemma_tpu
from gemma_tpu import Grammar
from gemma_tpu.constraint import Constraint, Grammars
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.row_params import allowed_bits
from gemma_tpu.grammar import GrammarError
from gemma_tpu.prompts import Reading

V = TOKENIZER.vocab_size
ENDS = (TOKENIZER.eos_id, TOKENIZER.end_of_turn)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 2},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}
LARK = """
start: greeting " " NAME ("!" | "?")
greeting: "Hi" | "Hello"
NAME: /[a-z]{1,5}/
"""


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER, ENDS)


def constraint(grammars: Grammars, grammar: Grammar, forbidden: list[int] = []) -> Constraint:  # noqa: B006
    return grammars.constraint(grammar, allowed_bits(V, None, forbidden))


def allowed(made: Constraint) -> set[int]:
    return {int(token) for token in np.flatnonzero(np.unpackbits(made.mask(), bitorder="little"))}


def test_a_mask_has_what_may_come_next(grammars: Grammars) -> None:
    made = constraint(grammars, Grammar.choice(["yes", "no."]))
    begins = {token for token in range(V) if TOKENIZER.decode([token]) in ("y", "ye", "yes", "n", "no", "no.")}
    assert allowed(made) == begins - TOKENIZER.special_ids
    assert not made.push(TOKENIZER.encode("n"))
    assert {TOKENIZER.decode([token]) for token in allowed(made)} == {"o", "o."} & {
        TOKENIZER.decode([token]) for token in range(V)
    }
    assert made.push(TOKENIZER.encode("o."))


def test_an_answer_may_end_where_its_grammar_may(grammars: Grammars) -> None:
    made = constraint(grammars, Grammar.regex("[0-9]+"))
    assert not allowed(made) & {*ENDS}
    assert not made.push(TOKENIZER.encode("7"))
    assert allowed(made) >= {*ENDS}
    assert made.push([ENDS[1]])


def test_tokens_that_the_request_does_not_allow_are_left_out(grammars: Grammars) -> None:
    forbidden = [token for token in range(V) if "e" in TOKENIZER.decode([token])]
    made = constraint(grammars, Grammar.choice(["yes", "you"]), forbidden)
    made.push(TOKENIZER.encode("y"))
    assert not allowed(made) & {*forbidden}
    stuck = constraint(grammars, Grammar.choice(["eee"]), forbidden)
    with pytest.raises(ValueError, match="the grammar has no next token among those that the request"):
        stuck.mask()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grammar.json_schema("{"), "a JSON schema is a JSON object: Expecting property name"),
        (lambda: Grammar.json_schema("[1]"), r"a JSON schema is a JSON object: it is '\[1\]'"),
        (lambda: Grammar.json_schema({"enum": {3}}), "a JSON schema is a JSON object: .* not JSON serializable"),
        (lambda: Grammar.regex(""), "regex must be a non-empty string, got ''"),
        (lambda: Grammar.lark(""), "lark must be a non-empty string, got ''"),
        (lambda: Grammar.choice("yes"), "choice must be a list, got 'yes'"),
        (lambda: Grammar.choice([]), "choice has no options"),
    ],
)
def test_what_is_no_grammar_is_one_clear_error(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar.json_schema({"type": "objekt"}), r"\(json_schema\) is refused: .*objekt"),
        (Grammar.json_schema({"type": "string", "format": "nope"}), "refused: .*nope"),
        (Grammar.regex("(a"), r"\(regex\) is refused: .*unclosed group"),
        (Grammar.json_schema({"type": "string", "pattern": "(?=a)"}), "look-ahead and look-behind, is not supported"),
        (Grammar.lark("start: foo"), 'refused: .*unknown name: "foo"'),
        (Grammar.json_schema(functools.reduce(lambda inner, _: {"items": inner}, range(200), {})), "refused: "),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused(grammars: Grammars, grammar: Grammar, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        constraint(grammars, grammar)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("grammar", [Grammar.lark("start: start"), Grammar.json_schema({"$ref": "#"})])
def test_a_grammar_that_nothing_fits_has_no_next_token(grammars: Grammars, grammar: Grammar) -> None:
    with pytest.raises(GrammarError, match="the grammar has no next token among those"):
        constraint(grammars, grammar).mask()


@pytest.fixture(scope="module", params=[False, True], ids=["rows alone", "rows together on 8 devices"])
def model(request):
    together = request.param
    engine = functools.partial(Engine, batch_always=together)
    with mock.patch("gemma_tpu.api.Engine", engine), make_model(*(2, 4) if together else (), max_context=512) as model:
        yield model


DRAWN = {"temperature": 1.5, "top_k": 0, "top_p": 1.0}


def checked(grammar: str, text: str) -> None:
    if grammar == "schema":
        jsonschema.validate(json.loads(text), SCHEMA)
    elif grammar == "object":
        assert isinstance(json.loads(text), dict)
    elif grammar == "regex":
        assert re.fullmatch("[a-c]{3,5}-[0-9]{2}", text)
    elif grammar == "choice":
        assert text in ("north (up)", "south|down")
    else:
        assert re.fullmatch("(Hi|Hello) [a-z]{1,5}[!?]", text)


GRAMMARS = {
    "schema": Grammar.json_schema(SCHEMA),
    "regex": Grammar.regex("[a-c]{3,5}-[0-9]{2}"),
    "choice": Grammar.choice(["north (up)", "south|down"]),
    "lark": Grammar.lark(LARK),
}


def test_answers_keep_their_grammars_and_leave_others_alone(model: gemma_tpu.Model) -> None:
    """Constrained and free requests in one batch, each the answer of the slow way."""
    free = model.generate("Hello", max_new_tokens=40, stop_tokens=(), seed=3, **DRAWN)
    asked = [(name, seed) for seed in (1, 2) for name in GRAMMARS]
    streams = {
        one: model.stream(f"{one}", grammar=GRAMMARS[one[0]], seed=one[1], max_new_tokens=300, **DRAWN) for one in asked
    }
    beside = [model.stream("Hello", max_new_tokens=40, stop_tokens=(), seed=3, **DRAWN) for _ in range(2)]
    answers = {one: stream.finish() for one, stream in streams.items()}
    assert [stream.finish().tokens for stream in beside] == [free.tokens] * 2
    for (name, seed), answer in answers.items():
        assert answer.finish_reason == "stop", answer
        checked(name, answer.text)
        params = model._sampling_params({"seed": seed, "max_new_tokens": 300, **DRAWN})
        made = Grammars(TOKENIZER, ENDS).constraint(GRAMMARS[name], allowed_bits(V, None, params.forbidden_tokens))
        prompt = model._render(f"{(name, seed)}", None, Reading()).tokens
        slow = plain_answer(CONFIG, random_params(CONFIG), prompt, params, 512, ENDS, made)
        assert answer.tokens == slow, (name, seed)


def test_other_wishes_go_with_a_grammar(model: gemma_tpu.Model) -> None:
    options = {"grammar": GRAMMARS["regex"], "seed": 5, "max_new_tokens": 60, **DRAWN}
    ruled = model.generate("Hello", logit_bias={TOKENIZER.id("a"): -100}, logprobs=1, repetition_penalty=1.2, **options)
    checked("regex", ruled.text)
    assert [one.token for one in ruled.logprobs] == ruled.tokens
    ends = model.generate("Hello", grammar=Grammar.regex("[0-9]{2}"), min_tokens=9, max_new_tokens=9, ignore_eos=True)
    assert re.fullmatch("[0-9]{2}", ends.text)
    cut = model.generate("Hello", grammar=GRAMMARS["lark"], stop=["l", "i"], max_new_tokens=60)
    assert cut.text in ("He", "H")
    assert model.generate("Hello", grammar=Grammar.json_object(), max_new_tokens=3).finish_reason == "length"


def test_a_grammar_that_leaves_no_token_fails_alone(model: gemma_tpu.Model) -> None:
    free = model.stream("Hello", **FREE)
    digits = [token for token in range(V) if TOKENIZER.decode([token]).isdigit()]
    for options in ({"grammar": Grammar.regex("[0-9]")}, {"grammar": Grammar.regex("a[0-9]")}):
        with pytest.raises(ValueError, match="no next token among those"):
            model.generate("Hello", forbidden_tokens=digits, max_new_tokens=9, **options)
    with pytest.raises(ValueError, match="is refused"):
        model.generate("Hello", grammar=Grammar.regex("("))
    assert free.finish().tokens == model.generate("Hello", **FREE).tokens
    assert all(row.request is None for row in model.engine._scheduler.rows)


class Unspellable:
    """A tokenizer that fails where llguidance does not expect it."""

    is_tokenizer_wrapper, tokens, special_token_ids = True, [b"a", b"</s>"], [1]
    bos_token_id, eos_token_id = None, 1

    def __call__(self, text: str) -> list[int]:
        raise KeyError(text)


def panic(*_: object) -> None:
    """In Rust."""
    llguidance.LLTokenizer(Unspellable()).tokenize_str("a")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("method", ["compute_bitmask", "consume_tokens"])
def test_a_panic_of_llguidance_fails_alone(model: gemma_tpu.Model, monkeypatch, method: str) -> None:
    with pytest.raises(BaseException, match="unwrap") as raised:
        panic()
    assert not isinstance(raised.value, Exception)
    free = model.stream("Hello", **FREE)
    made = Grammars.constraint

    def spoiled(*args: Any) -> Constraint:
        constraint = made(*args)
        constraint._matcher = mock.Mock(wraps=constraint._matcher, **{method: panic})
        return constraint

    with monkeypatch.context() as patch:
        patch.setattr(Grammars, "constraint", spoiled)
        with pytest.raises(RuntimeError, match="llguidance has failed on the grammar"):
            model.generate("Hello", grammar=GRAMMARS["choice"], max_new_tokens=9)
    assert free.finish().tokens == model.generate("Hello", **FREE).tokens
    assert model.generate("Hello", grammar=GRAMMARS["choice"], max_new_tokens=60).finish_reason == "stop"


def chained(count: int, kind: str) -> Grammar:
    if kind == "refs":
        links = {f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(count)}
        return Grammar.json_schema({"$ref": "#/$defs/a0", "$defs": links | {f"a{count}": {"type": "string"}}})
    name = "T" if kind == "terminals" else "r"
    links = [f'{name}{i}: "x" {name}{i + 1}' for i in range(count)]
    return Grammar.lark("\n".join([f"start: {name}0", *links, f'{name}{count}: "a"\n']))


@pytest.mark.parametrize("kind", ["refs", "rules", "terminals"])
def test_what_would_overflow_the_stack_is_refused(grammars: Grammars, kind: str) -> None:
    """llguidance ends the process over a chain of some thousands."""
    constraint(grammars, chained(900, kind)).mask()
    for count in (1001, 20_000):
        with pytest.raises(ValueError, match="rules and references, and at most 1,000 are followed"):
            constraint(grammars, chained(count, kind))


def test_what_would_take_long_is_refused(grammars: Grammars) -> None:
    for grammar in (Grammar.regex("a?" * 5001), Grammar.json_schema({"type": "string", "pattern": "a{0,1}" * 5001})):
        with pytest.raises(ValueError, match=r"5,00. repetitions, and at most 5,000"):
            constraint(grammars, grammar)


def test_warm_up_indexes_the_vocabulary() -> None:
    with make_model() as model, mock.patch("llguidance.LLTokenizer", wraps=llguidance.LLTokenizer) as index:
        model.warmup()
        assert index.call_count == 1
        model.generate("Hello", grammar=GRAMMARS["choice"], max_new_tokens=60)
        assert index.call_count == 1
