"""What guessing tokens ahead gains: how many guesses are right, what a step costs with them, and the speed of both.

    python benchmarks/speculation.py --checkpoint checkpoints/gemma3-demo
    python benchmarks/speculation.py --model gemma3-4b --draft gemma3-1b --rows 1 8

Each line is a median of several runs of `rows` answers at once: `accepted` of the guesses were right, a step made
`tokens/step` tokens and cost `step` times one without guesses; `speed-up` is of tokens/s. A draft model with random
weights guesses nothing right, and random weights repeat themselves: of these, `step` alone tells something. The prompts
ask for text that they have in them, which suits guesses from the text.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import gemma_tpu
from gemma_tpu.bench import random_params
from gemma_tpu.config import CONFIGS
from gemma_tpu.loading import deploy
from gemma_tpu.options import SamplingParams

_TEXT = "Repeat: the red square is left of the blue circle, the blue circle is above the green star, and the green star"


def models(args: argparse.Namespace, rows: int) -> list[tuple[str, Any]]:
    """Each way with what makes the model."""
    guesses = {"draft_tokens": args.draft_tokens}
    ways: list[tuple[str, dict[str, Any]]] = [("none", {}), ("from the text", guesses)]
    if args.draft:
        ways.append((f"draft {args.draft}", guesses | {"draft": args.draft}))

    def make(options: dict[str, Any]) -> gemma_tpu.Model:
        if args.checkpoint:
            return gemma_tpu.load(args.checkpoint, max_context=1024, max_rows=rows, progress=False, **options)
        config, draft = (name and dataclasses.replace(CONFIGS[name], vision=None) for name in (args.model, args.draft))
        draft = draft if "draft" in options else None
        sizes = 1024, rows, None, 0, options.get("draft_tokens", 0), draft
        deployment, _ = deploy(config, None, "auto", *sizes)
        return gemma_tpu.Model(deployment, random_params(deployment), None)

    return [(way, lambda options=options: make(options)) for way, options in ways]


def measure(
    model: gemma_tpu.Model, prompts: Sequence[Sequence[int]], tokens: int, repeats: int, params: SamplingParams
) -> dict[str, float]:
    runs = []
    for seed in range(repeats + 1):
        begin = time.perf_counter()
        asked = dataclasses.replace(params, max_new_tokens=tokens, stop_tokens=(), seed=seed)
        requests = [model.engine.submit(prompt, (), asked) for prompt in prompts]
        for request in requests:
            request.wait()
        seconds = time.perf_counter() - begin
        usage = [request.usage for request in requests]
        written, right, guessed = (
            sum(getattr(one, name) for one in usage)
            for name in ("completion_tokens", "accepted_tokens", "draft_tokens")
        )
        steps = max(one.completion_tokens - one.accepted_tokens for one in usage)
        runs.append((written / seconds, right / max(guessed, 1), written / (written - right), seconds / steps))
    return dict(
        zip(("rate", "accepted", "tokens", "step"), map(statistics.median, zip(*runs[1:], strict=True)), strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="random weights of this size")
    source.add_argument("--checkpoint")
    parser.add_argument("--draft", help="a checkpoint, or with --model a size")
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    sampled = SamplingParams(temperature=1.0, top_k=64, top_p=0.95)
    print("rows  temperature  guesses            tokens/s  accepted  tokens/step  step  speed-up")
    for rows in args.rows:
        plain: dict[float, dict[str, float]] = {}
        for way, make in models(args, rows):
            with make() as model:
                if args.model:  # which has no tokenizer
                    prompts = [np.random.default_rng(i).integers(4, 200_000, 64).tolist() for i in range(rows)]
                else:
                    prompts = [model.tokenizer.encode(f"{i}. {_TEXT}", bos=True) for i in range(rows)]
                model.warmup()
                for params in (SamplingParams(), sampled):
                    found = measure(model, prompts, args.tokens, args.repeats, params)
                    base = plain.setdefault(params.temperature, found)
                    step, gain = found["step"] / base["step"], found["rate"] / base["rate"]
                    print(
                        f"{rows:4}  {params.temperature:11}  {way[-17:]:17}  {found['rate']:8.1f}  "
                        f"{found['accepted']:8.1%}  {found['tokens']:11.2f}  {step:4.2f}  {gain:8.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
