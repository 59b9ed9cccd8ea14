"""Masks of the tokens that may come next in an answer that is held to a grammar, made by llguidance."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from gemma_tpu.checks import one_line
from gemma_tpu.grammar import JSON_SPACE, Grammar, GrammarError
from gemma_tpu.text.special import FUNCTION_PIECES

if TYPE_CHECKING:
    from gemma_tpu.text import Tokenizer


# llguidance (1.9) recurses through rules and references, which overflows the stack and ends the process from some
# thousands on, and takes time with the square of a regular expression's repetitions: 20 s for 50,000.
_DEFINITION = re.compile(r"^[^\S\n]*[!?]*[A-Za-z_][^:\n]*:|\"\$ref\"|\"\$dynamicRef\"|\\u0024", re.MULTILINE)
_REPETITION = re.compile(r"[?*+]|\{\d")
_MAX_DEFINITIONS, _MAX_REPETITIONS = 1000, 5000
_EMPTY_MASK = "NoExtensionBias"  # as llguidance calls it
_NO_NEXT = "the grammar has no next token among those that the request and the model allow"


def _check_size(source: str) -> None:
    """GrammarError for what would take llguidance too much of stack or time."""
    for pattern, limit, named in (
        (_DEFINITION, _MAX_DEFINITIONS, "rules and references"),
        (_REPETITION, _MAX_REPETITIONS, "repetitions"),
    ):
        if (count := sum(1 for _ in pattern.finditer(source))) > limit:
            raise GrammarError(f"the grammar is refused: it has {count:,} {named}, and at most {limit:,} are followed")


class Constraint:
    """A grammar's state in one answer. `allowed`: bits of the tokens that the request allows, see `masks`."""

    def __init__(self, matcher: Any, allowed: UInt8[np.ndarray, "bytes"]) -> None:
        self._matcher, self._allowed = matcher, allowed

    def mask(self) -> UInt8[np.ndarray, "bytes"]:
        """Bit t % 8 of byte t // 8 says whether token t may come next. GrammarError if none may."""
        with _panics_as_errors():
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)[: len(self._allowed)]
            self._check()
        mask = np.zeros_like(self._allowed)
        mask[: len(bits)] = bits
        mask &= self._allowed
        if not mask.any():
            raise GrammarError(_NO_NEXT)
        return mask

    def push(self, tokens: Sequence[int]) -> bool:
        """Takes tokens of the answer; whether it is complete with them, and nothing can follow."""
        with _panics_as_errors():
            self._matcher.consume_tokens(list(tokens))
            self._check()
            return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise GrammarError(_NO_NEXT if reason == _EMPTY_MASK else f"the grammar cannot be followed: {reason}")


class Grammars:
    """Makes the constraints of one tokenizer's answers, which end with any of `eos_tokens`. For any thread."""

    def __init__(self, tokenizer: Tokenizer, eos_tokens: Sequence[int]) -> None:
        self._tokenizer, self._eos_tokens = tokenizer, list(eos_tokens)
        self._lock = threading.Lock()
        self._made: Any = None

    def constraint(self, grammar: Grammar, allowed: UInt8[np.ndarray, "bytes"]) -> Constraint:
        """GrammarError for a grammar that cannot be compiled."""
        from llguidance import LLMatcher

        _check_size(grammar.source)
        with _panics_as_errors():
            options = {"overrides": {"whitespace_pattern": JSON_SPACE}} if grammar.kind == "json_schema" else {}
            refusal = f"the grammar ({grammar.kind}) is refused"
            try:
                source = getattr(LLMatcher, f"grammar_from_{grammar.kind}")(grammar.source, **options)
            except ValueError as error:  # JSON that is nested too deep for it
                raise GrammarError(f"{refusal}: {_reason(str(error))}") from error
            matcher = LLMatcher(self._vocabulary(), source, log_level=0)
            if matcher.is_error():
                raise GrammarError(f"{refusal}: {_reason(matcher.get_error())}")
        return Constraint(matcher, allowed)

    def prepare(self) -> None:
        """Makes the index of the vocabulary, which takes a second or two for the released one."""
        self._vocabulary()

    def _vocabulary(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._lock:
            if self._made is None:
                pieces = _Pieces(self._tokenizer)
                self._made = LLTokenizer(TokenizerWrapper(pieces), eos_token=self._eos_tokens or None)
            return self._made


class _Pieces:
    """A tokenizer as llguidance takes it. Ids without text count as special: they stand in no answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spelled = list(tokenizer.spell(range(tokenizer.vocab_size)))
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, tokenizer.eos_id
        self.tokens = [text or (name or f"<none_{i}>").encode() for i, (text, name) in enumerate(spelled)]
        self.special_token_ids = [i for i, (text, _) in enumerate(spelled) if not text]
        self._encode = tokenizer.encode

        pieces = {piece: tokenizer.find(piece) for piece in FUNCTION_PIECES}
        self._functions = {piece: token for piece, token in pieces.items() if token is not None}

    def __call__(self, text: str) -> list[int]:
        """Where only this text may come next: FunctionGemma writes its calls with the pieces that are made for them."""
        if not self._functions:
            return self._encode(text)
        parts = re.split(f"({'|'.join(self._functions)})", text)
        found = ([self._functions[part]] if part in self._functions else self._encode(part) for part in parts)
        return [token for tokens in found for token in tokens]


@contextlib.contextmanager
def _panics_as_errors() -> Iterator[None]:
    """A panic in Rust as a RuntimeError: PyO3's PanicException is no Exception, and would end the engine's thread."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":  # the exception cannot be imported
            raise
        raise RuntimeError("llguidance has failed on the grammar") from error


def _reason(message: str) -> str:
    """Its first line; of an error in a regular expression, which that only begins, what is wrong too."""
    lines = message.strip().splitlines() or ["llguidance gives no reason"]
    return one_line(" ".join([lines[0], *(line for line in lines[1:] if line.startswith("error: "))]))
