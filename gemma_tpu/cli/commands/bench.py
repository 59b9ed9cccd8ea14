"""`gemma-tpu bench`: speed as a caller sees it, of a checkpoint or of random weights."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from gemma_tpu.cli import bench_serve
from gemma_tpu.cli.arguments import add_distributed_arguments, add_dtype_argument, add_shared, check_folder, values

HELP = "Measure speed as a caller sees it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gemma_tpu.config import CONFIGS

    parser.set_defaults(options={"max_rows": "--rows", "max_context": "--context"})  # as errors of `load` call them
    parser.epilog = "All programs are compiled before anything is measured."
    load = parser.add_subparsers(title="load on a server").add_parser(
        "serve", help=bench_serve.HELP, description=bench_serve.HELP
    )
    bench_serve.add_arguments(load)
    load.set_defaults(main=bench_serve.main)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", choices=tuple(CONFIGS), help="random weights of this size")
    source.add_argument(
        "--checkpoint", metavar="CHECKPOINT", help="weights of a checkpoint: a directory, name or hub id"
    )
    for flag, default, help in (
        ("--context", 4096, "length of the KV cache in tokens"),
        ("--prompt", 1024, "length of the prompts in tokens"),
        ("--tokens", 256, "length of the answers in tokens"),
        ("--repeats", 3, "runs, of which the median is shown"),
    ):
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{help} (default: {default})")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 8], metavar="N", help="batch sizes to decode at (default: 1 8)"
    )
    add_dtype_argument(parser, "weights and cache", default="auto")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="write a picture (SVG): tokens/s beside the floor over the rows, and times over the length of the prompt, "
        "which are measured for it",
    )
    add_shared(parser, "--quantize", "--kv-cache-dtype", "--mesh", "--no-verify", "--json")
    add_distributed_arguments(parser)


def main(args: argparse.Namespace) -> int:
    import jax

    from gemma_tpu.bench import bench
    from gemma_tpu.bench_plot import speed_svg
    from gemma_tpu.config import CONFIGS
    from gemma_tpu.devices import available_devices

    if not (args.model or args.checkpoint):
        raise ValueError("bench needs --model or --checkpoint, or is bench serve")
    check_folder("--plot", args.plot)
    devices = available_devices()
    found, results = [], []
    source = CONFIGS[args.model] if args.model else args.checkpoint
    options = values(args, "rows", "context", "prompt", "tokens", "repeats", "dtype", "quantize", "mesh", "verify")
    options |= values(args, "kv_cache_dtype")
    for rows, measured in bench(source, **options, lengths=bool(args.plot)):
        found.append(measured)
        results.append({"rows": rows, **dataclasses.asdict(measured)})
        print(_line(results[-1]), flush=True, file=sys.stderr)
    name = args.model or args.checkpoint
    report = {
        "model": name,
        "device": f"{len(devices)} × {devices[0].device_kind}",
        "jax": jax.__version__,
        "context": args.context,
        "results": results,
    }
    title = f"{name} on {report['device']}, jax {jax.__version__}, cache {args.context}, median of {args.repeats}"
    if args.plot:
        Path(args.plot).write_text(speed_svg(found, title), encoding="utf-8")
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    print(title)
    for result in results:
        print(_line(result))
    return 0


def _line(result: dict) -> str:
    return f"  max_rows {result['rows']}: {result['what']:36} {result['value']:10.1f} {result['unit']}"
