"""The load of `gemma-tpu bench serve` on this toolkit, four ways, and on a loop of Google's sampler, in one run.

    python benchmarks/serve.py --checkpoint checkpoints/gemma3-demo --prompt-tokens 16 512 --gemma PYTHON
    python benchmarks/serve.py --model gemma3-4b --max-rows 64 --gemma PYTHON --output figures.json

The ways: `stream` and `whole` over HTTP, whose client is a process of its own; `single`, a stream for which each decode
call makes one token; `engine`, without HTTP. The sampler (benchmarks/google_sampler.py) runs first, on the same device,
with a batch of as many prompts as are in flight, or four times with one. `host`: CPU time as a share of the time: what
planning steps and delivering tokens took on the engine's thread (`engine`), handing steps to the device (`run`), and
the server's thread. While the device always has work, which it has under load, that is their share of a decode step.
`…_wall` includes waiting, for the other thread to let go of Python or for the device. Random weights have no tokenizer:
the demo's takes its place, with made-up pieces for the tokens that it lacks.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_tpu.bench_serve import Engine, Load, run

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "checkpoints" / "gemma3-demo"
WAYS = ("stream", "whole", "single", "engine")


def google(args: argparse.Namespace, load: Load, config: Any) -> Iterator[dict[str, Any]]:
    """The figures of each level."""
    asked = {"config": dataclasses.asdict(config), "dtype": args.dtype, "context": load.context, "new": load.max_tokens}
    asked |= {"checkpoint": args.checkpoint and str(Path(args.checkpoint).resolve())}
    tokens = [2, *range(300, 400)]
    levels = [{"in_flight": n, "prompts": load.prompts(n, tokens)[: max(n, 4)]} for n in load.in_flight]
    command = [args.gemma, str(ROOT / "benchmarks" / "google_sampler.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n".join(map(json.dumps, [asked, *levels])))
        child.stdin.close()
        yield from map(json.loads, child.stdout)
    if child.returncode:
        raise SystemExit(f"{args.gemma} has ended with {child.returncode}")


def make_model(args: argparse.Namespace, load: Load, config: Any):
    import gemma_tpu
    from gemma_tpu.bench import random_params
    from gemma_tpu.loading import deploy
    from gemma_tpu.text.vocabulary import AddedToken

    cache = {"kv_cache_dtype": args.kv_cache_dtype}
    if args.checkpoint:
        sizes = {"max_context": load.context, "max_rows": args.max_rows}
        return gemma_tpu.load(args.checkpoint, dtype=args.dtype, progress=False, **sizes, **cache)
    deployment, _ = deploy(config, None, args.dtype, load.context, args.max_rows, **cache)
    file = DEMO / "tokenizer.model"
    pieces = range(gemma_tpu.Tokenizer(file).vocab_size, config.vocab_size)
    tokenizer = gemma_tpu.Tokenizer(file, added=[AddedToken(i, f"[{i}]", False) for i in pieces])
    return gemma_tpu.Model(deployment, random_params(deployment), tokenizer)


class Host:
    """What the host does for a model that a thread of this process serves, in seconds so far."""

    def __init__(self, model: Any, server: threading.Thread) -> None:
        scheduler, runner = model.engine._scheduler, model.engine._runner
        self._spent: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._clock = time.pthread_getcpuclockid(server.ident or 0)
        for name in ("plan", "dispatched", "commit"):
            setattr(scheduler, name, self._timed("engine", getattr(scheduler, name)))
        runner.run = self._timed("run", runner.run)

    def _timed(self, what: str, function: Any) -> Any:
        def timed(*args: Any) -> Any:
            begin, begin_cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args)
            finally:
                self._spent[what] += time.thread_time() - begin_cpu
                self._spent[f"{what}_wall"] += time.perf_counter() - begin

        return timed

    def read(self) -> dict[str, float]:
        return {**self._spent, "server": time.clock_gettime(self._clock)}


@contextlib.contextmanager
def serving(model: Any, load: Load) -> Iterator[tuple[str, threading.Thread]]:
    from gemma_tpu.server import Server, Settings, build_app, listen

    with listen("127.0.0.1", 0) as listener:
        server = Server(build_app(model, Settings(max_queue=max(load.in_flight))))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", thread
        finally:
            server.should_exit = True
            thread.join()


def measure(way: str, url: str, load: Load, model: Any) -> dict[str, Any]:
    """One level."""
    scheduler = model.engine._scheduler
    usual, scheduler.steps_per_call = scheduler.steps_per_call, 1 if way == "single" else scheduler.steps_per_call
    try:
        if way == "engine":
            return asyncio.run(anext(run(load, Engine(model))))
        asked: dict[str, Any] = {"--in-flight": load.in_flight[0], "--max-tokens": load.max_tokens, "--seed": load.seed}
        asked |= {"--requests": load.requests} if load.requests else {}
        asked |= {"--shared-prefix": load.shared_prefix}
        command = [sys.executable, "-m", "gemma_tpu", "bench", "serve", url, "--json", "--prompt-tokens"]
        command += [str(word) for word in (*load.prompt_tokens, *(word for pair in asked.items() for word in pair))]
        command += ["--whole"] if way == "whole" else []
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
        return json.loads(done.stdout)["levels"][0]
    finally:
        scheduler.steps_per_call = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="random weights of this size")
    source.add_argument("--checkpoint")
    parser.add_argument("--gemma", help="interpreter with gemma 3.3")
    parser.add_argument("--dtype", help="default: bfloat16 for random weights, else float32")
    parser.add_argument("--kv-cache-dtype", default="auto", choices=("auto", "int8"))
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    parser.add_argument("--max-rows", type=int, default=8)
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    for field in dataclasses.fields(Load):
        kind = {"nargs": "+"} if isinstance(field.default, tuple) else {}
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default, **kind)
    args = parser.parse_args()
    args.dtype = args.dtype or ("bfloat16" if args.model else "float32")
    load = Load(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Load)})

    from gemma_tpu.checkpoint import open_checkpoint
    from gemma_tpu.config import CONFIGS

    config = open_checkpoint(args.checkpoint).config if args.checkpoint else CONFIGS[args.model]
    config = config if args.checkpoint else dataclasses.replace(config, vision=None)
    figures: list[dict[str, Any]] = []

    def keep(figure: dict[str, Any]) -> None:
        figures.append(figure)
        print(json.dumps(figure), flush=True)
        if args.output:
            args.output.write_text(json.dumps(figures, indent=1))

    for level in google(args, load, config) if args.gemma else ():
        keep({"way": "gemma", "tokens_per_second": level["tokens"] / level["seconds"], **level})
    with make_model(args, load, config) as model, serving(model, load) as (url, thread):
        begin = time.perf_counter()
        model.warmup()
        print(f"compiled in {time.perf_counter() - begin:.0f} s", flush=True)
        host = Host(model, thread)
        for way in args.ways:
            for in_flight in load.in_flight:
                before = host.read()
                level = measure(way, url, dataclasses.replace(load, in_flight=[in_flight]), model)
                shares = {
                    name: (value - before.get(name, 0.0)) / level["seconds"] for name, value in host.read().items()
                }
                keep({"way": way, "host": shares, **level})


if __name__ == "__main__":
    main()
