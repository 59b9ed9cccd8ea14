"""`gemma-tpu verify`: how far a checkpoint's answers are from those of a reference implementation."""

from __future__ import annotations

import argparse
import json

from gemma_tpu import signals
from gemma_tpu.cli.arguments import add_dtype_argument, add_shared, values

HELP = "Compare a checkpoint's answers with those of a reference implementation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exits with 0 if every logit is within the tolerance, with 1 if not."
    add_shared(parser, "checkpoint")
    parser.add_argument(
        "--against",
        required=True,
        choices=("gemma", "transformers"),
        help="the reference: Google's gemma or Hugging Face's transformers",
    )
    parser.add_argument("--python", metavar="FILE", help="interpreter that has the reference (default: this one)")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="taken without the chat format; may be given several times (default: three texts and one with an image)",
    )
    image = parser.add_mutually_exclusive_group()
    image.add_argument("--image", metavar="FILE", help="shown at <start_of_image> (default: a drawing)")
    image.add_argument("--no-image", action="store_true", help="leave images out")
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help="largest |Δlogit| that passes (default: 0.01; in bfloat16: 1)"
    )
    add_dtype_argument(parser, "weights and cache; the reference computes in float32", default="float32")
    parser.add_argument(
        "--new-tokens", type=int, default=32, metavar="N", help="tokens of each greedy answer (default: 32)"
    )
    add_shared(parser, "--quantize", "--mesh", "--adapter", "--tokenizer", "--json")


@signals.raise_exit()  # there may be a copy of the checkpoint on disk to remove, and a process of the reference to end
def main(args: argparse.Namespace) -> int:
    """Prints the report; 0 if the tolerance is met, else 1."""
    from gemma_tpu.verify import verify

    image = False if args.no_image else args.image
    options = values(args, "tolerance", "python", "dtype", "quantize", "new_tokens", "mesh", "tokenizer", "adapter")
    report = verify(args.checkpoint, args.against, prompts=args.prompt, image=image, progress=True, **options)
    print(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) if args.json else report.table())
    return 0 if report.passed else 1
