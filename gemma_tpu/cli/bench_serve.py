"""`gemma-tpu bench serve`: load on a server, and its curves."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_tpu.cli.arguments import add_dtype_argument, add_shared, check_folder, values

if TYPE_CHECKING:
    from gemma_tpu.bench_serve import Engine, Load, Server

HELP = "Put load on a server, or on one that is started for a checkpoint, and show how fast it answers."
_KEY = "GEMMA_TPU_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"Three figures of a time are its p50, p95 and p99. A server's key is read from ${_KEY}."
    parser.add_argument("source", metavar="CHECKPOINT", help="a checkpoint, or the http(s) address of a server")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--whole", action="store_true", help="ask for whole answers, not for streams")
    way.add_argument("--in-process", action="store_true", help="ask the engine itself, without HTTP")
    for flag, count, metavar, help in (
        ("--in-flight", "+", "N", "requests at once (default: 1 8 32 64)"),
        ("--prompt-tokens", 2, ("MIN", "MAX"), "lengths of prompts, uniform in log (default: 128 7936)"),
        ("--max-tokens", None, "N", "length of the answers (default: 256)"),
        ("--requests", None, "N", "of each level (default: four for each in flight)"),
        ("--shared-prefix", None, "N", "tokens that all prompts have in common (default: 0)"),
        ("--seed", None, "N", "of lengths and tokens (default: 0)"),
    ):
        parser.add_argument(flag, type=int, nargs=count, metavar=metavar, default=argparse.SUPPRESS, help=help)
    parser.add_argument("--plot", metavar="FILE", help="write the curves, an SVG")
    parser.add_argument("--max-rows", type=int, default=8, metavar="N", help="answers at once (default: 8)")
    add_dtype_argument(parser, "weights and cache", default="auto")
    add_shared(parser, "--quantize", "--kv-cache-dtype", "--mesh", "--json")


def main(args: argparse.Namespace) -> int:
    from gemma_tpu.bench_plot import load_svg
    from gemma_tpu.bench_serve import Load, run

    check_folder("--plot", args.plot)
    load = Load(**values(args, *(field.name for field in dataclasses.fields(Load))))
    levels: list[dict[str, Any]] = []

    async def measure(target: Engine | Server) -> None:
        async for level in run(load, target):
            levels.append(level)
            print(_row(level), file=sys.stderr, flush=True)

    with _target(args, load) as target:
        asyncio.run(measure(target))
    if args.plot:
        title = f"{args.source}: prompts of {min(load.prompt_tokens)} to {max(load.prompt_tokens)}"
        Path(args.plot).write_text(load_svg(levels, title), encoding="utf-8")
    if args.json:
        way = "engine" if args.in_process else "whole" if args.whole else "stream"
        print(json.dumps({"source": args.source, "way": way, **dataclasses.asdict(load), "levels": levels}, indent=2))
    else:
        print(*map(_row, levels), sep="\n")
    return 0


@contextlib.contextmanager
def _target(args: argparse.Namespace, load: Load) -> Iterator[Engine | Server]:
    from gemma_tpu.bench_serve import Engine, KeyRefused, Server, started

    if args.source.startswith(("http://", "https://")):
        if args.in_process:
            raise ValueError("--in-process takes a checkpoint, not the address of a server")
        try:
            server = Server(args.source, os.environ.get(_KEY, ""), stream=not args.whole)
        except KeyRefused as error:
            raise ValueError(f"{error}: set ${_KEY} to one of its keys") from error
        yield server
    elif args.in_process:
        import gemma_tpu

        options = values(args, "mesh", "dtype", "quantize", "kv_cache_dtype", "max_rows")
        with gemma_tpu.load(args.source, max_context=load.context, progress=False, **options) as model:
            model.warmup()
            yield Engine(model)
    else:
        options = {"max-context": load.context, "max-queue": max(load.in_flight)}
        options |= {"max-rows": args.max_rows} | values(args, "dtype", "quantize")
        options |= {name.replace("_", "-"): value for name, value in values(args, "kv_cache_dtype").items()}
        options |= {"mesh": ",".join(map(str, args.mesh))} if args.mesh else {}
        with started(args.source, [f"--{name}={value}" for name, value in options.items()]) as url:
            yield Server(url, stream=not args.whole)


def _row(level: dict[str, Any]) -> str:
    shown = {
        name: "/".join(f"{1e3 * value:.4g}" for value in level[name] or ())
        for name in ("first_token", "token", "pause")
    }
    return (
        f"{level['in_flight']:3} in flight: {level['requests']} requests, {sum(level['errors'].values())} errors, "
        f"{level['requests_per_second']:.2f} requests/s, {level['tokens_per_second']:.1f} tokens/s, "
        f"{level['cached_tokens'] / max(level['prompt_tokens'], 1):.0%} cached"
        + "".join(f", {name.replace('_', ' ')} {times} ms" for name, times in shown.items() if times)
    )
