"""Prefill and decode of one checkpoint here and in Google's sampler, on the same machine in one run.

    python benchmarks/against_reference.py checkpoints/gemma3-demo --python GEMMA_ENVIRONMENT/bin/python

The reference runs in an environment of its own (tests/reference/requirements-gemma.txt). Both sides are float32,
greedy, compiled and warm, one row, with the same cache length, and take turns; the figures are medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

REFERENCE = Path(__file__).parents[1] / "gemma_tpu" / "verify" / "reference_gemma.py"
CACHE, TURNS = 2048, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--python", required=True, help="the interpreter of an environment with gemma 3.3")
    parser.add_argument("--prompt", type=int, default=512, help="tokens (default: 512)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to decode (default: 128)")
    args = parser.parse_args()

    import gemma_tpu
    from gemma_tpu.checkpoint import open_checkpoint
    from gemma_tpu.options import SamplingParams

    config = dataclasses.asdict(open_checkpoint(args.checkpoint).config)
    request = {"checkpoint": str(Path(args.checkpoint).resolve()), "config": config, "tokens": args.tokens}
    prompt = [2, *(10 + i * 7 % (config["vocab_size"] - 20) for i in range(args.prompt - 1))]
    request |= {"size": None, "start_of_image": None, "double_newline": [], "prompt": prompt}
    command = [args.python, __file__, "--reference"]
    reference = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    reference.stdin.write(json.dumps(request) + "\n")

    def theirs(new: int) -> float:
        reference.stdin.write(f"{new}\n")
        reference.stdin.flush()
        return float(reference.stdout.readline())

    with gemma_tpu.load(
        args.checkpoint, dtype="float32", mesh=(1, 1), max_context=CACHE, max_rows=1, progress=False
    ) as model:

        def ours(new: int) -> float:
            begin = time.perf_counter()
            # A first token of its own keeps this prompt from continuing the last one's cache.
            ours.turn += 1
            tokens = [*prompt[:1], 10 + ours.turn, *prompt[2:]]
            for _ in model.engine.submit(tokens, (), SamplingParams(max_new_tokens=new, stop_tokens=())):
                pass
            return time.perf_counter() - begin

        ours.turn = 0
        seconds: dict[tuple[str, int], list[float]] = {}
        for turn in range(TURNS + 1):
            for name, run in (("gemma_tpu", ours), ("gemma", theirs)):
                for new in (1, args.tokens + 1):
                    measured = run(new)
                    if turn:  # the first compiles
                        seconds.setdefault((name, new), []).append(measured)
    reference.stdin.close()
    print(f"{args.prompt} tokens of prompt, {args.tokens} decoded, cache {CACHE}, float32, median of {TURNS}")
    rates = {}
    for name in ("gemma_tpu", "gemma"):
        first = statistics.median(seconds[name, 1])
        rest = statistics.median(seconds[name, args.tokens + 1]) - first
        rates[name] = args.prompt / first, args.tokens / rest
        print(f"{name:10} prefill {rates[name][0]:8.0f} tokens/s   decode {rates[name][1]:7.1f} tokens/s")
    ratios = [a / b for a, b in zip(rates["gemma_tpu"], rates["gemma"], strict=True)]
    print(f"{'ratio':10} prefill {ratios[0]:8.2f}            decode {ratios[1]:7.2f}")


def reference() -> None:
    """The child: reads the request, then numbers of new tokens; answers each with the seconds its call took."""
    spec = importlib.util.spec_from_file_location("reference_gemma", REFERENCE)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    request = json.loads(sys.stdin.readline())
    tokenizer, model = theirs.set_special_ids(request), theirs.build_model(request)
    params = theirs.gm.ckpts.load_params(request["checkpoint"])
    params = theirs.jax.tree.map(lambda x: theirs.jnp.asarray(x, theirs.jnp.float32), params)
    sampler = theirs.gm.text.Sampler(
        model=model, params=params, tokenizer=tokenizer, cache_length=CACHE, max_out_length=request["tokens"] + 1
    )
    prompt = " ".join(map(str, request["prompt"]))
    for line in sys.stdin:
        begin = time.perf_counter()
        state = sampler.sample(prompt, max_new_tokens=int(line), rng=0, return_state=True).state
        theirs.jax.block_until_ready(state.predicted_tokens)
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    reference() if sys.argv[1:] == ["--reference"] else main()
