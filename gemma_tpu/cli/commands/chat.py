"""`gemma-tpu chat`: a conversation in a terminal."""

from __future__ import annotations

import argparse
import functools

from gemma_tpu.cli.arguments import add_generation_arguments, add_model_arguments, generation_kwargs, load_model

HELP = "Talk with a model in the terminal. Ctrl-C stops an answer, Ctrl-D ends."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--drop-oldest", action="store_true", help="forget the oldest turns of a conversation that outgrows the context"
    )
    add_generation_arguments(parser)


def main(args: argparse.Namespace) -> int:
    from gemma_tpu.cli.terminal import converse

    kwargs = generation_kwargs(args) | {"drop_oldest": args.drop_oldest, "pan_and_scan": args.pan_and_scan}
    with load_model(args) as model:
        new_chat = functools.partial(model.chat, args.system, allow_urls=args.allow_urls, **kwargs)
        return converse(model, new_chat, allow_urls=args.allow_urls)
