"""`gemma-tpu plan`: what a model needs on a TPU slice and how fast it may be there, without a TPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_tpu.cli.arguments import add_dtype_argument, add_shared, values

if TYPE_CHECKING:
    from gemma_tpu.config import GemmaConfig
    from gemma_tpu.quantization import Quantization

HELP = "Say what a model needs on a TPU slice, how fast it may be there, and what would fit. Needs no TPU."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gemma_tpu.config import CONFIGS
    from gemma_tpu.plan.chips import CHIPS

    parser.epilog = "Answers come from the TPU compiler. Exits with 0 if the model fits, with 1 if it does not."
    parser.add_argument("model", metavar="MODEL", help=f"a checkpoint, or one of {', '.join(CONFIGS)}")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", metavar="SLICE", help="a slice, such as v5e:2x4, or by its name: v5e-8")
    where.add_argument(
        "--chips",
        metavar="A,B,…",
        help=f"compare these: slices, or kinds of chip ({', '.join(CHIPS)}), each in the smallest slice that fits",
    )
    parser.add_argument(
        "--context",
        type=int,
        default=8192,
        metavar="TOKENS",
        help="room for a prompt and its answer together (default: 8192)",
    )
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="requests that run at once (default: 8)")
    parser.add_argument(
        "--cache-tokens", type=int, metavar="N", help="tokens that they share (default: as many as all could need)"
    )
    parser.add_argument(
        "--stored-prefixes", type=int, default=0, metavar="N", help="prefixes of prompts to keep besides (default: 0)"
    )
    add_shared(parser, "--draft", "--draft-tokens")
    add_dtype_argument(parser, "weights and cache", default="bfloat16")
    add_shared(parser, "--quantize", "--kv-cache-dtype")
    parser.add_argument("--images", type=int, metavar="N", help="images in a prompt; 0 leaves out the vision tower")
    search = parser.add_mutually_exclusive_group()
    search.add_argument("--quick", action="store_true", help="do not look for what would fit besides")
    search.add_argument(
        "--exact", action="store_true", help="compile what would fit besides, some minutes more, not estimate it"
    )
    add_shared(parser, "--json")


def main(args: argparse.Namespace) -> int:
    if args.rows < 1:
        raise ValueError(f"--rows must be at least 1, got {args.rows}")
    if args.cache_tokens is not None and args.cache_tokens < args.context:
        raise ValueError(f"--cache-tokens must be at least --context, {args.context}, got {args.cache_tokens}")
    if args.images is not None and args.images < 0:
        raise ValueError(f"--images must be at least 0, got {args.images}")
    if args.chips is not None and args.images:
        raise ValueError("--images goes with --topology: --chips compares text alone (--images 0 is understood)")
    if args.chips is not None and args.quick:
        raise ValueError("--quick goes with --topology: --chips looks for nothing that would fit besides")
    if args.chips is not None and args.exact:
        raise ValueError("--exact goes with --topology: --chips looks for nothing that would fit besides")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA logs what it then reports as an error
    import jax

    from gemma_tpu.plan import report
    from gemma_tpu.plan.chips import CHIPS, Chip, Slice, parse_slice
    from gemma_tpu.plan.compiled import topology_devices
    from gemma_tpu.plan.planner import make_plan, smallest_plan

    config, stored = model(args.model)
    options = {"rows": args.rows, "context": args.context, "dtype": args.dtype, "progress": _progress}
    options |= {"cache_tokens": args.cache_tokens, "stored_prefixes": args.stored_prefixes}
    if not 2 <= args.context <= config.max_context:
        raise ValueError(f"--context must be in [2, {config.max_context}] for this model, got {args.context}")
    if "draft" in args:
        options |= {"draft": model(args.draft)[0], "draft_name": args.draft}
    options |= {"quantize": stored} | values(args, "draft_tokens", "quantize", "kv_cache_dtype")
    if args.images and config.vision is None:
        raise ValueError(f"{args.model} has no vision tower: it takes no --images")
    if args.chips is None:
        places: list[Chip | Slice] = [parse_slice(args.topology)]
    else:
        places = [CHIPS.get(name) or parse_slice(name) for name in args.chips.split(",")]
    if args.images == 0:
        config = dataclasses.replace(config, vision=None)
    jax.config.update("jax_platforms", "cpu")  # nothing runs, and a TPU that is here stays free
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot hold programs for devices that are not here
    for where in places:
        if isinstance(where, Slice):
            topology_devices(where)  # so that one that there is not is said before another is compiled for
    search = {"search": args.chips is None and not args.quick, "exact": args.exact}
    plans = [
        smallest_plan(args.model, config, where, **options)
        if isinstance(where, Chip)
        else make_plan(args.model, config, where, images=args.images or 0, **search, **options)
        for where in places
    ]
    if args.json:
        found = [report.as_json(plan) for plan in plans]
        print(json.dumps(found[0] if args.chips is None else found, indent=2))
    elif args.chips is None:
        print(report.text(plans[0]))
    else:
        print(report.comparison(plans))
    return 0 if all(plan.fits for plan in plans) else 1


def model(name: str) -> tuple[GemmaConfig, Quantization | None]:
    """Of a size by its name, else of a checkpoint with what it stores as integers; none is downloaded."""
    from gemma_tpu.checkpoint import open_checkpoint, resolve, shipped, stored_quantization
    from gemma_tpu.config import CONFIGS

    if name in CONFIGS:
        return CONFIGS[name], None
    if not Path(name).exists() and "://" not in name and name != shipped.NAME:
        raise ValueError(f"{name} is neither a checkpoint nor one of {', '.join(CONFIGS)}")
    checkpoint = open_checkpoint(resolve(name))
    return checkpoint.config, stored_quantization(checkpoint)


def _progress(what: str) -> None:
    sys.stderr.write(f"{what} …\n")  # as one: programs are compiled on several threads
    sys.stderr.flush()
