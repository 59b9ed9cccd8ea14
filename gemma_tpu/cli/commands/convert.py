"""`gemma-tpu convert`: a checkpoint in another layout."""

from __future__ import annotations

import argparse
import sys

from gemma_tpu import signals
from gemma_tpu.cli import standard_streams
from gemma_tpu.cli.arguments import add_dtype_argument, add_shared, values

HELP = "Write a checkpoint in another layout."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the checkpoint to read: a directory, gs:// path, name or hub id")
    parser.add_argument("target", metavar="DST", help="the directory to write, which must not exist")
    parser.add_argument(
        "--to",
        required=True,
        choices=("orbax", "orbax-flat", "safetensors"),
        help="orbax: nested, as Flax has it; orbax-flat: as Google releases Gemma; safetensors: as Hugging Face does",
    )
    add_dtype_argument(parser, "the weights written", default=None)
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        default=argparse.SUPPRESS,
        help="the decoder's matrices as such integers, and the embeddings as they are (default: dequantise all)",
    )
    add_shared(parser, "--adapter", "--no-verify")
    parser.set_defaults(needs_stdout=False)


@signals.exit_at_once()
def main(args: argparse.Namespace) -> int:
    from gemma_tpu.checkpoint import convert, resolve

    adapter = None if args.adapter is None else resolve(args.adapter)
    progress = standard_streams.is_terminal(sys.stderr)
    options = values(args, "to", "dtype", "quantize", "verify")
    convert(resolve(args.source), args.target, adapter=adapter, progress=progress, **options)
    print(args.target)
    return 0
