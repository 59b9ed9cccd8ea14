"""`gemma-tpu download`: released weights, in the local cache."""

from __future__ import annotations

import argparse
import sys

from gemma_tpu import signals
from gemma_tpu.cli import standard_streams

HELP = "Fetch released weights into the local cache and print their directory."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        help="such as gemma3-4b-it, or of Hugging Face: google/medgemma-4b-it, OWNER/NAME@REVISION",
    )
    parser.set_defaults(needs_stdout=False)


@signals.exit_at_once()
def main(args: argparse.Namespace) -> int:
    from gemma_tpu.checkpoint import download

    print(download(args.name, progress=standard_streams.is_terminal(sys.stderr)))
    return 0
