"""What grammars cost over a vocabulary: the index of it, compiling a grammar, and the mask of each token.

python benchmarks/grammar_masks.py tokenizer.model
"""

from __future__ import annotations

import argparse
import statistics
import time

from gemma_tpu import Grammar, Tokenizer
from gemma_tpu.constraint import Grammars
from gemma_tpu.engine.row_params import allowed_bits

_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
        "text": {"type": "string"},
    },
    "required": ["name", "age", "tags", "text"],
    "additionalProperties": False,
}
_LARK = r"""
start: term (("+" | "-") term)*
term: factor (("*" | "/") factor)*
factor: NUMBER | NAME | "(" start ")"
NUMBER: /[0-9]+/
NAME: /[a-z]+/
"""
_CASES = (
    (
        "JSON schema",
        Grammar.json_schema(_SCHEMA),
        '{"name": "Ada", "age": 36, "tags": ["red"], "text": "It is as good."}',
    ),
    (
        "regex",
        Grammar.regex(r"[A-Z][a-z]+( [A-Z][a-z]+)*, \d{4}: .{1,80}"),
        "Ada Lovelace, 1843: the first of all times",
    ),
    ("Lark", Grammar.lark(_LARK), "(alpha+12)*3-(beta/(gamma+7))*delta+123456"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("tokenizer", help="a tokenizer.model or tokenizer.json")
    tokenizer = Tokenizer(parser.parse_args().tokenizer)
    grammars = Grammars(tokenizer, (tokenizer.eos_id, tokenizer.end_of_turn))
    begun = time.perf_counter()
    grammars.prepare()
    print(f"index of {tokenizer.vocab_size:,} tokens: {time.perf_counter() - begun:.2f} s")
    allowed = allowed_bits(tokenizer.vocab_size, None, [])
    for name, grammar, text in _CASES:
        begun = time.perf_counter()
        constraint = grammars.constraint(grammar, allowed)
        compiled, masks = time.perf_counter() - begun, []
        for token in tokenizer.encode(text):
            begun = time.perf_counter()
            constraint.mask()
            masks.append(1e3 * (time.perf_counter() - begun))
            constraint.push([token])
        took = f"median {statistics.median(masks):.2f} ms, longest {max(masks):.2f} ms"
        print(f"{name}: compiled in {1e3 * compiled:.1f} ms; masks of {len(masks)} tokens: {took}")


if __name__ == "__main__":
    main()
