"""`gemma-tpu plan`: what a model needs on a TPU slice and how fast it may be there, without a TPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import jax

from gemma_tpu.cli.standard_streams import is_terminal
from gemma_tpu.config import CONFIGS, GemmaConfig
from gemma_tpu.plan import report
from gemma_tpu.plan.chips import CHIPS, parse_slice
from gemma_tpu.plan.planner import make_plan, smallest_plan

DTYPES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "f32": "float32", "float32": "float32"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What a model needs on a TPU slice, how fast it may be there, and what would fit, from the TPU compiler; no "
        "TPU is needed. Exits with 0 if it fits, with 1 if it does not."
    )
    parser.add_argument("model", help=f"a checkpoint, or one of {', '.join(CONFIGS)}")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", metavar="SLICE", help="such as v5e:2x4, or by name: v5e-8")
    where.add_argument(
        "--chips", metavar="A,B,…", help=f"compares these: slices, or chips ({', '.join(CHIPS)}) in the smallest slice"
    )
    parser.add_argument("--context", type=int, default=8192, metavar="TOKENS", help="default: 8192")
    parser.add_argument("--rows", type=int, default=8, help="requests that run at once (default: 8)")
    parser.add_argument("--dtype", default="bf16", help="of weights and cache: bf16 (default) or f32")
    parser.add_argument("--images", type=int, metavar="N", help="of a prompt; 0 leaves out the vision tower")
    parser.add_argument("--quick", action="store_true", help="do not look for what would fit instead")
    parser.add_argument("--json", action="store_true")


def main(args: argparse.Namespace) -> int:
    config = model_config(args.model)
    if args.dtype not in DTYPES:
        raise ValueError(f"--dtype {args.dtype}: weights and cache are bf16 or f32")
    if not 2 <= args.context <= config.max_context:
        raise ValueError(f"--context must be in [2, {config.max_context}] for this model, got {args.context}")
    if args.rows < 1:
        raise ValueError(f"--rows must be at least 1, got {args.rows}")
    if args.images and config.vision is None:
        raise ValueError(f"{args.model} has no vision tower: it takes no --images")
    if args.images is not None and args.images < 0:
        raise ValueError(f"--images must be at least 0, got {args.images}")
    if args.images == 0:
        config = dataclasses.replace(config, vision=None)
    jax.config.update("jax_platforms", "cpu")  # nothing runs, and a TPU that is here stays free
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot hold programs for devices that are not here
    options = {"rows": args.rows, "context": args.context, "dtype": DTYPES[args.dtype], "progress": _progress}
    if args.topology:
        where = parse_slice(args.topology)
        plans = [make_plan(args.model, config, where, images=args.images or 0, search=not args.quick, **options)]
    else:
        plans = []
        for name in args.chips.split(","):
            if name in CHIPS:
                plans.append(smallest_plan(args.model, config, CHIPS[name], **options))
            else:
                plans.append(make_plan(args.model, config, parse_slice(name), search=False, **options))
    if args.json:
        found = [report.as_json(plan) for plan in plans]
        print(json.dumps(found[0] if args.topology else found, indent=2))
    elif args.topology:
        print(report.text(plans[0]))
    else:
        print(report.comparison(plans))
    return 0 if all(plan.fits for plan in plans) else 1


def model_config(name: str) -> GemmaConfig:
    """Of a size by its name, else of a checkpoint; none is downloaded."""
    if name in CONFIGS:
        return CONFIGS[name]
    from gemma_tpu.checkpoint import open_checkpoint, resolve, shipped

    if not Path(name).exists() and "://" not in name and name != shipped.NAME:
        raise ValueError(f"{name} is neither a checkpoint nor one of {', '.join(CONFIGS)}")
    return open_checkpoint(resolve(name)).config


def _progress(what: str) -> None:
    if is_terminal(sys.stderr):
        print(f"{what} …", file=sys.stderr)
